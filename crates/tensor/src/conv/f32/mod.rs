//! `f32` convolution and its two gradients, on channels-last images.
//!
//! All three copy a few rows of the image into a strip with a border of zeros, and read the windows
//! there in place (`strip.rs`): nothing is unrolled in memory. Neighbouring windows of a row are the
//! rows of a register tile, at a constant distance; the taps of a window's row are one run of values.
//! Forward and the gradient of the input are the same loops (`convolve.rs`); the gradient of the
//! weight is a product over pixels (`grad_weight.rs`). Images too narrow for a tile go through the
//! matrix product, packed window by window (`patches.rs`). Where 3×3 layers of stride one are large enough,
//! Winograd's algorithm takes the place of all three (`winograd`). Weights that stay are packed once
//! (`packed.rs`).

mod convolve;
mod forward;
mod grad_input;
mod grad_weight;
mod images;
mod packed;
mod patches;
#[cfg(test)]
pub(crate) mod reference;
mod strip;
#[cfg(test)]
mod tests;
mod weights;
mod windows;
mod winograd;

pub use forward::{forward, forward_on, infer};
pub use grad_input::{grad_input, grad_input_on};
pub use grad_weight::{grad_weight, grad_weight_on};
pub use images::{Images, dequantize};
pub use packed::{Ending, PackedConv};
