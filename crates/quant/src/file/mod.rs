//! Files: a [`Container`] of named tensors and text, and the integer [`Program`](crate::Program) in
//! one.

mod atomic;
mod container;
mod float;
mod json;
mod program;

pub use atomic::write_atomic;
pub use container::{Container, Dtype, Entry, Stored};
