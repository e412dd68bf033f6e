//! The road from a float network to an integer one.
//!
//! ```text
//! trace ─► Graph ─► prepare ─► Graph of quantized operators ─► train ─► convert ─► Program
//! ```
//!
//! [`prepare`] fuses conv + BatchNorm + ReLU and puts an observer and a rounding where the integer
//! network rounds; [`Milestones`] says when observers, rounding and statistics move during
//! training; [`convert`] writes the integer program; [`verify`] compares the two, node by node.

mod config;
mod convert;
mod fuse;
mod milestones;
mod prepare;
mod verify;

pub use config::{QConfig, QConfigMap};
pub use convert::convert;
pub use milestones::Milestones;
pub use prepare::{FloatNode, Prepared, prepare};
pub use verify::{NodeDifference, verify};
