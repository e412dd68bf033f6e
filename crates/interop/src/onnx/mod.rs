//! ONNX, the exchange format: float networks in, float and integer networks out.
//!
//! [`proto`] is the file's language, [`constant`] its numbers, [`attributes`] the settings of a node;
//! [`import`] makes graphs of files.

mod attributes;
mod constant;
mod import;
mod proto;

pub use import::{OnnxNetwork, onnx_from_bytes, read_onnx};
