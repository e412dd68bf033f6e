//! Differentiation for Ottava: a tape of operators, each with its way back beside it, and the graph
//! that a run of the tape becomes.
//!
//! Start at [`Tape`] and [`Var`] for training, at [`Graph`] for networks as data, at [`ops`] for the
//! operators. Quantized operators compute *integers* in their forward pass, on the kernels of the
//! deployed network; only backward is the straight-through float rule. Not here: modules, optimizers
//! (`ottava-nn`).
#![forbid(unsafe_code)]

mod error;
mod gradcheck;
mod graph;
mod leaf;
mod mask;
mod mode;
mod observer;
mod op;
pub mod ops;
mod recompute;
mod saving;
mod tape;
mod trace;
mod value;
mod var;

pub use error::{Error, Result};
pub use gradcheck::gradcheck;
pub use graph::{Graph, GraphNode, NodeId, NodeKind};
pub use leaf::{Kind, Leaf};
pub use mode::Mode;
pub use observer::{Degenerate, Observer, Stage};
pub use op::{Backward, Context, Op, Output, Rule};
pub use saving::Saving;
pub use tape::{Gradients, Span, Tape, Var};
pub use trace::trace;
pub use value::Value;
