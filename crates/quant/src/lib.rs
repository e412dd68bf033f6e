//! Integer arithmetic of Ottava: scales and zero-points, quantized tensors, and the program that
//! runs on them.
//!
//! Start at [`QParams`] for the mathematics. Not here: ranges from data (`ottava-autograd`'s
//! observers), files other than our own (`ottava-interop`).
#![forbid(unsafe_code)]

mod combine;
mod error;
mod layer;
mod qparams;
mod qtensor;
mod scheme;

pub use combine::{add_codes, average};
pub use error::{Error, Result};
pub use layer::{BatchNormStats, QuantizedLayer, WeightSpec, fold_batch_norm, quantize_layer};
pub use qparams::{
    QParams, covers_per_channel, dequantize, fake_quantize_per_channel, quantize,
    quantize_per_channel,
};
pub use qtensor::QTensor;
pub use scheme::{MIN_SCALE, Scheme, choose_qparams, weight_codes};
