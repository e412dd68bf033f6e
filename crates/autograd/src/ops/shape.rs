use ottava_quant::QTensor;
use ottava_tensor::shape::checked_len;
use ottava_tensor::{Element, Tensor, parallel};

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
            let mut result = Tensor::zeros_channels_last(&shape);
            place(&grad, &mut result, axis, start, step);
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
            Value::Float(x) => Value::Float(self.padded(x, 0.0)?),
            Value::Codes(x) => {
                let zero = x.params().zero_point() as u8;
                QTensor::new(self.padded(x.codes(), zero)?, x.params()).into()
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
    fn padded<T: Element>(&self, x: &Tensor<T>, zero: T) -> Result<Tensor<T>> {
        let mut shape = x.shape().to_vec();
        // More than memory can address is found out by its product.
        shape[self.axis] = shape[self.axis].saturating_add(self.before).saturating_add(self.after);
        checked_len::<T>(&shape)?;
        let mut result = Tensor::zeros_channels_last(&shape);
        if zero != T::default() {
            result.data_mut().fill(zero);
        }
        place(x, &mut result, self.axis, self.before, 1);
        Ok(result)
    }
}

/// Puts `x` into `target`, which is channels-last, at every `step`-th index of `axis`, not the batch,
/// from `start`: in runs of what lies together in both.
fn place<T: Element>(
    x: &Tensor<T>,
    target: &mut Tensor<T>,
    axis: usize,
    start: usize,
    step: usize,
) {
    let x = if x.rank() < 3 { x.contiguous() } else { x.channels_last() };
    let source = x.as_nhwc().or(x.as_slice()).expect("one of the two orders");
    // In memory the channels, axis 1, come last.
    let behind = match axis {
        1 => 1,
        _ => x.shape()[axis + 1..].iter().product::<usize>() * x.shape()[1],
    };
    let (from, to) = (x.shape()[axis] * behind, target.shape()[axis] * behind);
    if from == 0 {
        return;
    }
    let rows = (parallel::CHUNK / to).max(1);
    parallel::for_each_chunk(target.data_mut(), rows * to, |chunk, target| {
        let source = source[chunk * rows * from..].chunks_exact(from);
        for (target, source) in target.chunks_exact_mut(to).zip(source) {
            if step == 1 {
                target[start * behind..][..from].copy_from_slice(source);
                continue;
            }
            for (k, run) in source.chunks_exact(behind).enumerate() {
                target[(start + k * step) * behind..][..behind].copy_from_slice(run);
            }
        }
    });
}
