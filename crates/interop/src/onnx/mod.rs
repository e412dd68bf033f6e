//! ONNX, the exchange format: float networks in, float and integer networks out.
//!
//! [`proto`] is the file's language, [`constant`] its numbers, [`attributes`] the settings of a node;
//! [`import`] makes graphs and programs of files, [`export`] files of graphs and programs.

mod attributes;
mod constant;
mod export;
mod import;
mod proto;

pub use export::{OnnxFormat, OnnxOptions, graph_to_onnx, program_to_onnx};
pub use import::{
    OnnxNetwork, onnx_from_bytes, onnx_is_quantized, onnx_program_from_bytes, read_onnx,
    read_onnx_program,
};
