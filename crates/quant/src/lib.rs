//! Integer arithmetic of Ottava: scales and zero-points, quantized tensors, and the program that
//! runs on them.
//!
//! Start at [`QParams`] for the mathematics, at [`Program`] for the network, at [`Engine`] for running
//! it, at [`Container`] for its file. Not here: ranges from data (`ottava-autograd`'s observers),
//! files other than our own (`ottava-interop`).
#![forbid(unsafe_code)]

mod activation;
mod codes;
mod combine;
mod concat;
mod dynamic;
mod error;
mod file;
mod float;
mod instr;
mod kernels;
mod layer;
mod levels;
mod plan;
mod program;
mod qparams;
mod qtensor;
mod run;
mod scheme;
mod step;
mod summary;
mod tune;
mod workspace;

pub use activation::Activation;
pub use combine::{add_codes, average, requantize_codes};
pub use concat::concat;
pub use dynamic::DynamicLinear;
pub use error::{Error, Result};
pub use file::{Container, Dtype, Entry, Stored, write_atomic};
pub use float::FloatOp;
#[cfg(feature = "float")]
pub use float::linear;
pub use instr::{Elements, Instr, ValueType, Window};
pub use layer::{
    BatchNormStats, QuantizedLayer, WeightRange, WeightSpec, fold_batch_norm, quantize_layer,
    quantize_layer_on,
};
pub use levels::Levels;
pub use ottava_tensor::parallel::Threads;
pub use program::{Builder, Node, Program, ValueId};
pub use qparams::{
    QParams, covers_per_channel, dequantize, fake_quantize_per_channel, quantize,
    quantize_per_channel,
};
pub use qtensor::QTensor;
pub use run::{Engine, Options, Value};
pub use scheme::{MIN_SCALE, Scheme, choose_power_of_two, choose_qparams};
pub use summary::{NodeSummary, Summary};
pub use tune::Tuning;
pub use workspace::Workspace;
