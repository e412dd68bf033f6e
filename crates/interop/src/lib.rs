//! Other people's files: weights in safetensors and PyTorch state dicts, networks in ONNX.
//!
//! Start at [`read_state_dict`] for any file of weights (`ottava_nn::Network::load_state_dict` fits them
//! to a network), at [`read_onnx`] for a network, at [`read_onnx_program`] for one of integers.
//! Not here: Ottava's own files (`ottava-quant`), images (`ottava-data`).
#![forbid(unsafe_code)]

#[cfg(any(feature = "safetensors", feature = "pth", feature = "onnx"))]
mod dtype;
mod error;
#[cfg(feature = "onnx")]
mod onnx;
#[cfg(feature = "pth")]
mod pth;
#[cfg(feature = "safetensors")]
mod safetensors;
mod state_dict;

pub use error::{Error, Result};
#[cfg(feature = "onnx")]
pub use onnx::{
    OnnxFormat, OnnxNetwork, OnnxOptions, graph_to_onnx, onnx_from_bytes, onnx_is_quantized,
    onnx_program_from_bytes, program_to_onnx, read_onnx, read_onnx_program,
};
#[cfg(feature = "pth")]
pub use pth::{pth_from_bytes, read_pth};
#[cfg(feature = "safetensors")]
pub use safetensors::{Precision, read_safetensors, safetensors_from_bytes, write_safetensors};
pub use state_dict::{StateDict, read_state_dict};
