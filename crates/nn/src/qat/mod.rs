//! The road from a float network to an integer one.
//!
//! ```text
//! trace ─► Graph ─► prepare ─► Graph of quantized operators ─► train ─► convert ─► Program
//! ```
//!
//! [`prepare`] fuses conv + BatchNorm + ReLU and puts an observer and a rounding where the integer
//! network rounds; [`Milestones`] says when observers, rounding and statistics move during
//! training; [`diagnose`] says which layers deserve a second look; [`reestimate_batch_norm`] may follow
//! training; [`fold_norms`], [`equalize`], [`adaround`] and [`correct_bias`] help where nothing is trained;
//! [`analyze`] says what each layer costs, and [`allocate`] chooses its width; [`convert`] writes the
//! integer program, in which whatever stayed in float computes in `f32`; [`verify`] compares the two, node
//! by node.

mod allocate;
mod analyze;
mod config;
mod convert;
mod diagnose;
mod float;
mod fuse;
mod glob;
mod milestones;
mod mixed;
mod prepare;
mod ptq;
mod reestimate;
mod verify;

pub use allocate::{Allocation, Candidate, Choice, allocate, sensitivities};
pub use analyze::{Analysis, NodeAnalysis, WeightAnalysis, analyze};
pub use config::{QConfig, QConfigMap};
pub use convert::{convert, convert_dynamic};
pub use diagnose::{Finding, Problem, diagnose};
pub use milestones::Milestones;
pub use prepare::{FloatNode, Prepared, prepare};
pub use ptq::{
    AdaRound, Corrected, Equalized, Rounded, adaround, correct_bias, equalize, fold_norms,
};
pub use reestimate::reestimate_batch_norm;
pub use verify::{NodeDifference, verify};
