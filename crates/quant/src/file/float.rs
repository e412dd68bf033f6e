//! Float operators in a file: their constants are the tensors `NAME.weight`, `NAME.bias` and so on.

use ottava_tensor::conv::ConvAttrs;

use super::Container;
use crate::{Error, FloatOp, QParams, Result, Window};

/// Writes the constants of the operator called `name`.
pub(super) fn put(container: &mut Container, name: &str, op: &FloatOp) -> Result<()> {
    for (what, constant) in op.constants() {
        container.put(format!("{name}.{what}"), &constant)?;
    }
    if let FloatOp::DynamicLinear { codes, .. } = op {
        container.put(format!("{name}.weight"), codes)?;
    }
    Ok(())
}

/// The attributes that operators have; each takes its own.
pub(super) struct Attributes {
    pub attrs: ConvAttrs,
    pub window: Option<Window>,
    pub count_padding: bool,
    pub axis: usize,
    /// The smallest and the largest code of a fake quantization.
    pub codes: [i32; 2],
}

/// The operator `op` called `name`; `None` if there is no such operator.
pub(super) fn get(
    container: &Container,
    name: &str,
    op: &str,
    attributes: &Attributes,
) -> Result<Option<FloatOp>> {
    let entry = |what: &str| format!("{name}.{what}");
    let floats = |what: &str| container.get::<f32>(&entry(what));
    let optional = |what: &str| {
        let has = container.tensors().contains_key(&entry(what));
        has.then(|| floats(what)).transpose()
    };
    let Attributes { attrs, window, count_padding, axis, codes } = *attributes;
    Ok(Some(match op {
        "float_conv" => FloatOp::Conv { weight: floats("weight")?, bias: optional("bias")?, attrs },
        "float_linear" => FloatOp::Linear { weight: floats("weight")?, bias: optional("bias")? },
        "float_matmul" => FloatOp::MatMul(floats("weight")?),
        "float_affine" => FloatOp::Affine { scale: floats("scale")?, shift: floats("shift")? },
        "float_add" => FloatOp::Add(optional("constant")?),
        "float_mul" => FloatOp::Mul(optional("constant")?),
        "float_avg_pool" => FloatOp::AvgPool { window, count_padding },
        "softmax" => FloatOp::Softmax,
        "log_softmax" => FloatOp::LogSoftmax,
        "fake_quant" => {
            let (scales, zeros) = (floats("scale")?.to_vec(), floats("zero_point")?.to_vec());
            if scales.len() != zeros.len() || zeros.iter().any(|zero| zero.fract() != 0.0) {
                let reason = format!("{} scales with the zero-points {zeros:?}", scales.len());
                return Err(Error::Entry { name: name.into(), reason });
            }
            let [qmin, qmax] = codes;
            let grids = scales.iter().zip(&zeros);
            let grids = grids.map(|(&scale, &zero)| QParams::new(scale, zero as i32, qmin..=qmax));
            FloatOp::FakeQuant { grids: grids.collect::<Result<_>>()?, axis }
        }
        "dynamic_linear" => FloatOp::DynamicLinear {
            codes: container.get(&entry("weight"))?,
            scales: floats("scale")?.to_vec(),
            bias: floats("bias")?.to_vec(),
        },
        _ => return Ok(None),
    }))
}
