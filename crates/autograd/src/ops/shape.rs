use ottava_quant::QTensor;
use ottava_tensor::{Element, Tensor};

use crate::op::{self, Context, Output, Rule};
use crate::{Error, Result, Value};

/// Moves elements without changing them: floats stay floats, codes stay codes on their grid.
fn rearrange(
    x: &Value,
    float: impl FnOnce(&Tensor<f32>) -> Result<Tensor<f32>>,
    codes: impl FnOnce(&Tensor<u8>) -> Result<Tensor<u8>>,
) -> Result<Value> {
    Ok(match x {
        Value::Float(x) => float(x)?.into(),
        Value::Codes(x) => QTensor::new(codes(x.codes())?, x.params()).into(),
    })
}

/// All axes but the first made one, in logical (NCHW) order.
///
/// # Source
/// PyTorch `torch.flatten(x, 1)`; ONNX `Flatten` with `axis = 1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flatten;

impl Rule for Flatten {
    fn forward(&self, inputs: &[Value], context: &mut Context) -> Result<Output> {
        let [x] = op::inputs("flatten", inputs)?;
        let features = x.shape().iter().skip(1).product();
        Reshape { shape: vec![features] }.forward(inputs, context)
    }
}

/// All axes but the first, the batch, made others.
///
/// # Source
/// PyTorch `torch.reshape`; ONNX `Reshape`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reshape {
    /// The sizes of the axes behind the first.
    pub shape: Vec<usize>,
}

impl Rule for Reshape {
    fn forward(&self, inputs: &[Value], _: &mut Context) -> Result<Output> {
        let [x] = op::inputs("reshape", inputs)?;
        let before = x.shape().to_vec();
        let Some(&batch) = before.first() else {
            return Err(Error::Op {
                op: "reshape",
                reason: "a scalar has no batch axis to keep".into(),
            });
        };
        let shape: Vec<usize> = std::iter::once(batch).chain(self.shape.iter().copied()).collect();
        let y = rearrange(x, |x| Ok(x.reshape(&shape)?), |x| Ok(x.reshape(&shape)?))?;
        Ok(Output::new(y, move |grad, _| {
            vec![Some(grad.reshape(&before).expect("as many elements as before"))]
        }))
    }
}

/// Every `step`-th index of `start..end` along `axis`.
///
/// # Source
/// PyTorch `x[:, :, ::2]`; ONNX `Slice`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The axis, not the batch.
    pub axis: usize,
    /// The first index.
    pub start: usize,
    /// One past the last index; beyond the axis it means its end.
    pub end: usize,
    /// The distance between indices.
    pub step: usize,
}

impl Rule for Slice {
    fn forward(&self, inputs: &[Value], _: &mut Context) -> Result<Output> {
        let [x] = op::inputs("slice", inputs)?;
        let Self { axis, start, end, step } = *self;
        let shape = x.shape().to_vec();
        if axis == 0 || axis >= shape.len() || step == 0 {
            let reason = format!(
                "axis {axis}, step {step} does not fit shape {shape:?} (the batch, axis 0, cannot be sliced)"
            );
            return Err(Error::Op { op: "slice", reason });
        }
        let range = start..end.min(shape[axis]).max(start);
        let y = rearrange(
            x,
            |x| Ok(x.slice(axis, range.clone(), step)?.channels_last()),
            |x| Ok(x.slice(axis, range.clone(), step)?.channels_last()),
        )?;
        // ∂x is ∂y where it came from, zero elsewhere
        Ok(Output::new(y, move |grad, _| {
            let mut result = if shape.len() == 4 {
                Tensor::zeros_channels_last(&shape)
            } else {
                Tensor::zeros(&shape)
            };
            let strides = result.strides().to_vec();
            let data = result.data_mut();
            for_each_index(grad.shape(), |index| {
                let place = index.iter().zip(&strides).enumerate();
                let at = place.map(|(i, (&k, s))| s * if i == axis { start + k * step } else { k });
                data[at.sum::<usize>()] = grad.at(index);
            });
            vec![Some(result)]
        }))
    }
}

/// Zeros before and after an axis; codes get the zero-point.
///
/// # Source
/// PyTorch `torch.nn.functional.pad`; ONNX `Pad`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pad {
    /// The axis, not the batch.
    pub axis: usize,
    /// Zeros before the first element.
    pub before: usize,
    /// Zeros after the last one.
    pub after: usize,
}

impl Rule for Pad {
    fn forward(&self, inputs: &[Value], _: &mut Context) -> Result<Output> {
        let [x] = op::inputs("pad", inputs)?;
        let Self { axis, before, .. } = *self;
        let size = *x.shape().get(axis).filter(|_| axis > 0).ok_or_else(|| Error::Op {
            op: "pad",
            reason: format!(
                "axis {axis} does not fit shape {:?} (the batch, axis 0, cannot be padded)",
                x.shape()
            ),
        })?;
        let y = match x {
            Value::Float(x) => Value::Float(self.padded(x, 0.0)),
            Value::Codes(x) => {
                let zero = x.params().zero_point() as u8;
                QTensor::new(self.padded(x.codes(), zero), x.params()).into()
            }
        };
        // ∂x is the middle of ∂y
        Ok(Output::new(y, move |grad, _| {
            vec![Some(
                grad.slice(axis, before..before + size, 1).expect("the middle").channels_last(),
            )]
        }))
    }
}

impl Pad {
    fn padded<T: Element>(&self, x: &Tensor<T>, zero: T) -> Tensor<T> {
        let mut shape = x.shape().to_vec();
        shape[self.axis] += self.before + self.after;
        let mut result = Tensor::zeros_channels_last(&shape);
        let strides = result.strides().to_vec();
        let data = result.data_mut();
        if zero != T::default() {
            data.fill(zero);
        }
        for_each_index(x.shape(), |index| {
            let place = index.iter().zip(&strides).enumerate();
            let at =
                place.map(|(i, (k, s))| s * (k + if i == self.axis { self.before } else { 0 }));
            data[at.sum::<usize>()] = x.at(index);
        });
        result
    }
}

/// Calls `f` with each index of a tensor of `shape`, the last axis fastest.
fn for_each_index(shape: &[usize], mut f: impl FnMut(&[usize])) {
    if shape.contains(&0) {
        return;
    }
    let mut index = vec![0; shape.len()];
    loop {
        f(&index);
        let Some(axis) = (0..shape.len()).rev().find(|&axis| index[axis] + 1 < shape[axis]) else {
            return;
        };
        index[axis] += 1;
        index[axis + 1..].fill(0);
    }
}
