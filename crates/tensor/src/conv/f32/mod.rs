//! `f32` convolution and its two gradients, on channels-last images.
//!
//! Forward and the gradient of the input are matrix products whose left operand is the image itself,
//! read patch by patch while tiles are packed (`patches.rs`); the gradient of the weight is a
//! product over pixels that reads a zero-bordered copy of a few image rows in place
//! (`grad_weight.rs`). Nothing is unrolled in memory.

mod forward;
mod grad_input;
mod grad_weight;
mod patches;
#[cfg(test)]
pub(crate) mod reference;
mod strip;
#[cfg(test)]
mod tests;

pub use forward::{forward, forward_on};
pub use grad_input::{grad_input, grad_input_on};
pub use grad_weight::{grad_weight, grad_weight_on};
