#![cfg_attr(feature = "fashion-mini", doc = include_str!("../README.md"))]
//! # In this crate
//!
//! Re-exports, nothing else. [`prelude`] holds the names that most programs need; each module is a
//! crate of its own, and says at its top where to start:
//!
//! - [`tensor`]: strided tensors and the kernels; [`quant`]: scales, integer programs, their runtime and
//!   their file. These two are all that a product needs to run a network.
//! - [`autograd`]: the tape and the graph; [`nn`]: modules, models, training, and the road to integers.
//! - `data` (feature `data`): data sets and batches; `interop` (feature `interop`): safetensors,
//!   PyTorch state dicts, ONNX.
#![forbid(unsafe_code)]

pub mod prelude;

pub use ottava_autograd as autograd;
#[cfg(feature = "data")]
pub use ottava_data as data;
#[cfg(feature = "interop")]
pub use ottava_interop as interop;
pub use ottava_nn as nn;
pub use ottava_quant as quant;
pub use ottava_tensor as tensor;
