//! From networks to ONNX files.

mod float;
mod float_op;
mod integer;
mod writer;

use ottava_quant::Program;

use crate::{Error, Result};

pub use float::graph_to_onnx;

/// How an integer network is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnnxFormat {
    /// Float operators between `QuantizeLinear` and `DequantizeLinear`, which every runtime reads and
    /// most turn into integer operators.
    #[default]
    Qdq,
    /// Integer operators: `QLinearConv`, and ONNX Runtime's own `QGemm`, `QLinearAdd`,
    /// `QLinearGlobalAveragePool`, `QLinearAveragePool` and `QLinearConcat`.
    QOperator,
}

/// How a file is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnnxOptions {
    /// For integer networks.
    pub format: OnnxFormat,
    /// The version of ONNX's operators, 13 to 21.
    pub opset: i64,
    /// The version of the file format, 7 to 10.
    pub ir_version: i64,
    /// Writes weights as `u8` with zero-point 128 instead of `s8`: the same values, which ONNX
    /// Runtime multiplies exactly on CPUs whose `s8` instructions saturate (AVX2 without VNNI).
    pub unsigned_weights: bool,
}

impl Default for OnnxOptions {
    /// QDQ, operators of version 17, format 8, signed weights.
    fn default() -> Self {
        Self { format: OnnxFormat::Qdq, opset: 17, ir_version: 8, unsigned_weights: false }
    }
}

impl OnnxOptions {
    fn check(&self) -> Result<()> {
        let Self { opset, ir_version, .. } = self;
        if (13..=21).contains(opset) && (7..=10).contains(ir_version) {
            return Ok(());
        }
        let reason = format!(
            "operators of version {opset} in format {ir_version}; versions 13 to 21 and formats 7 to \
             10 can be written"
        );
        Err(Error::unsupported("ONNX export", reason))
    }
}

/// An integer network as an ONNX file, its metadata included.
///
/// ONNX Runtime answers with the same bytes for convolutions, linear layers, global averages and what
/// only moves codes, where its kernels do not saturate (see [`OnnxOptions::unsigned_weights`]; the
/// session option `session.x64quantprecision = 1` does the same). By one step, next to the middle
/// between two codes, it may differ in residual sums (it fuses multiplications into additions), in
/// averages over windows (it rounds floats) and at the input (ONNX divides by the scale, we multiply
/// by its reciprocal).
///
/// # Errors
/// [`Error::Unsupported`] for versions that cannot be written.
pub fn program_to_onnx(program: &Program, options: &OnnxOptions) -> Result<Vec<u8>> {
    options.check()?;
    integer::write(program, options)
}
