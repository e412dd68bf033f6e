//! Exact integer convolution: `u8` codes, `i8` weights, `i32` sums, and the way to the next codes.
//!
//! [`Int8Conv`] is prepacked for an instruction set and an [`Algorithm`]; every choice gives the
//! integers of [`reference()`]. [`Requantize`] and [`AddCodes`] are the laws behind the sum.

mod algorithm;
mod depthwise;
mod direct;
mod image;
mod packed;
mod reference;
mod requantize;
#[cfg(test)]
pub(crate) mod testing;
mod winograd;

pub use crate::gemm::int8::Output;
pub use algorithm::Algorithm;
pub use packed::Int8Conv;
pub use reference::conv as reference;
pub use requantize::{AddCodes, Grid, Requantize};
