use ottava_quant::{Activation, QTensor, concat, requantize_codes};
use ottava_tensor::{Element, Tensor};

use super::quantizer::ActivationQuant;
use crate::op::{Context, Output, Rule};
use crate::{Error, Result, Value};

/// Values one behind another along an axis. Codes that all lie on one grid stay codes.
///
/// # Shapes
/// Inputs: any number, of one shape but for the axis.
///
/// # Source
/// PyTorch `torch.cat`; ONNX `Concat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Concat {
    /// The axis, not the batch.
    pub axis: usize,
}

impl Rule for Concat {
    fn forward(&self, inputs: &[Value], context: &mut Context) -> Result<Output> {
        let sizes = sizes("concat", inputs, self.axis)?;
        let grid = inputs[0].codes().map(QTensor::params);
        let codes = inputs.iter().map(|x| x.codes().filter(|x| Some(x.params()) == grid));

        // y = x₁ … xₙ
        let y = match (grid, codes.collect::<Option<Vec<_>>>()) {
            (Some(grid), Some(codes)) => {
                let codes: Vec<&Tensor<u8>> = codes.iter().map(|x| x.codes()).collect();
                QTensor::new(joined(&codes, self.axis)?, grid).into()
            }
            _ => Value::Float(floats(inputs, self.axis)?),
        };
        if !context.backward() {
            return Ok(Output::constant(y));
        }
        // ∂xᵢ is its part of ∂y
        let axis = self.axis;
        Ok(Output::new(y, move |grad, _| parts(&grad, axis, &sizes)))
    }
}

/// Integer values one behind another, on a grid of their own: each is rounded to it.
///
/// # Shapes
/// Inputs: any number of codes, of one shape but for the axis; the observer's state.
///
/// # Source
/// ONNX Runtime `com.microsoft.QLinearConcat`; PyTorch `FloatFunctional.cat`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QuantConcat {
    /// The axis, not the batch.
    pub axis: usize,
    /// The observer and the grid.
    pub output: ActivationQuant,
}

impl Rule for QuantConcat {
    fn forward(&self, inputs: &[Value], context: &mut Context) -> Result<Output> {
        let op = "quant_concat";
        let Some((state, inputs)) = inputs.split_last() else {
            return Err(Error::Op { op, reason: "takes values and an observer's state".into() });
        };
        let (axis, index) = (self.axis, inputs.len());
        let sizes = sizes(op, inputs, axis)?;
        if !context.mode.quantize {
            let y = floats(inputs, axis)?;
            self.output.watch(&y, state, index, context)?;
            return Ok(Output::new(y, move |grad, _| {
                parts(&grad, axis, &sizes).into_iter().chain([None]).collect()
            }));
        }
        let codes: Option<Vec<&QTensor>> = inputs.iter().map(Value::codes).collect();
        let codes = codes.ok_or_else(|| Error::Op {
            op,
            reason: "needs integer inputs; put a quantize in front of it".into(),
        })?;

        // qᵢ = quantize(dequantize(qᵢ)), on the grid of y
        let float = context.mode.observe || context.backward();
        let float = float.then(|| floats(inputs, axis)).transpose()?;
        let seen = || float.clone().expect("computed when observing");
        let params = self.output.observe(seen, state, index, context)?;
        let moved: Vec<Tensor<u8>> = codes
            .iter()
            .map(|x| {
                let table = requantize_codes(x.params(), params);
                x.codes().map(move |q| table[usize::from(q)])
            })
            .collect();
        let y = QTensor::new(joined(&moved.iter().collect::<Vec<_>>(), axis)?, params);
        let Some(float) = float.filter(|_| context.backward()) else {
            return Ok(Output::constant(y));
        };
        // ∂xᵢ is its part of ∂y, where it was not clamped
        let rounding = self.output.rounding(&float, params, Activation::NONE);
        Ok(Output::new(y, move |grad, _| {
            let (grad, range) = rounding.back(grad);
            parts(&grad, axis, &sizes).into_iter().chain([range]).collect()
        }))
    }
}

/// The size of each input along the axis, if all fit together.
fn sizes(op: &'static str, inputs: &[Value], axis: usize) -> Result<Vec<usize>> {
    let refuse = |reason: String| Error::Op { op, reason };
    let first = inputs.first().ok_or_else(|| refuse("takes at least one value".into()))?.shape();
    if axis == 0 || axis >= first.len() {
        return Err(refuse(format!(
            "axis {axis} does not fit shape {first:?} (the batch, axis 0, is not concatenated)"
        )));
    }
    inputs
        .iter()
        .map(|x| {
            let shape = x.shape();
            let fits = shape.len() == first.len()
                && (0..first.len()).all(|i| i == axis || shape[i] == first[i]);
            let unequal =
                || refuse(format!("shapes {first:?} and {shape:?} differ beside axis {axis}"));
            fits.then(|| shape[axis]).ok_or_else(unequal)
        })
        .collect()
}

fn floats(inputs: &[Value], axis: usize) -> Result<Tensor<f32>> {
    let floats: Vec<Tensor<f32>> = inputs.iter().map(Value::float).collect();
    joined(&floats.iter().collect::<Vec<_>>(), axis)
}

fn joined<T: Element>(parts: &[&Tensor<T>], axis: usize) -> Result<Tensor<T>> {
    Ok(concat(parts, axis)?)
}

/// The gradient of each input.
fn parts(grad: &Tensor<f32>, axis: usize, sizes: &[usize]) -> Vec<Option<Tensor<f32>>> {
    let mut start = 0;
    sizes
        .iter()
        .map(|&size| {
            start += size;
            let part = grad.slice(axis, start - size..start, 1).expect("a part of the whole");
            Some(part.channels_last())
        })
        .collect()
}
