use ottava_quant::{Activation, QTensor};
use ottava_tensor::Tensor;
use ottava_tensor::elementwise;

use crate::mask::Mask;
use crate::op::{self, Context, Output, Rule};
use crate::{Result, Value};

/// `max(x, 0)`. Codes stay codes on their grid, clamped at the zero-point.
///
/// # Source
/// PyTorch `torch.relu`; ONNX `Relu`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Relu;

impl Rule for Relu {
    fn forward(&self, inputs: &[Value], context: &mut Context) -> Result<Output> {
        let [x] = op::inputs("relu", inputs)?;

        // y = max(x, 0)
        let y = match x {
            Value::Float(x) => Value::Float(elementwise::relu(x)),
            Value::Codes(x) => {
                let zero = x.params().zero_point() as u8;
                Value::Codes(QTensor::new(x.codes().map(|q| q.max(zero)), x.params()))
            }
        };
        if !context.backward() {
            return Ok(Output::constant(y));
        }
        // ∂x = ∂y where y > 0
        let mask = Mask::of(&y.float(), is_open);
        Ok(Output::new(y, move |grad, _| vec![Some(mask.apply(grad))]))
    }
}

/// `clamp(x, min, max)`; ReLU6 is `0..6`. Codes stay codes on their grid.
///
/// # Source
/// PyTorch `hardtanh`, `relu6`; ONNX `Clip`. (`torch.clamp` passes the gradient at its ends too.)
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clip {
    /// The lower bound.
    pub min: f32,
    /// The upper bound.
    pub max: f32,
}

impl Clip {
    /// `clamp(x, 0, 6)`.
    pub const RELU6: Self = Self { min: 0.0, max: 6.0 };

    /// The interval.
    pub fn activation(self) -> Activation {
        Activation { min: self.min, max: self.max }
    }
}

impl Rule for Clip {
    fn forward(&self, inputs: &[Value], context: &mut Context) -> Result<Output> {
        let [x] = op::inputs("clip", inputs)?;
        let Self { min, max } = *self;

        // y = min(max(x, low), high); codes are ordered as their values are
        let y = match x {
            Value::Float(x) => Value::Float(self.activation().map(x)),
            Value::Codes(x) => {
                let ends = self.activation().clamp(x.params());
                let (low, high) = (ends.qmin() as u8, ends.qmax() as u8);
                let codes = x.codes().map(move |q| q.max(low).min(high));
                Value::Codes(QTensor::new(codes, x.params()))
            }
        };
        if !context.backward() {
            return Ok(Output::constant(y));
        }
        // ∂x = ∂y where low < x < high
        let mask = Mask::of(&x.float(), move |x| min < x && x < max);
        Ok(Output::new(y, move |grad, _| vec![Some(mask.apply(grad))]))
    }
}

/// `x − log Σ exp(x)` of each row of `[n, c]`.
///
/// # Source
/// PyTorch `torch.log_softmax(x, 1)`; ONNX `LogSoftmax`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogSoftmax;

impl Rule for LogSoftmax {
    fn forward(&self, inputs: &[Value], context: &mut Context) -> Result<Output> {
        let [x] = op::inputs("log_softmax", inputs)?;
        let x = x.float();
        x.dims::<2>("log_softmax")?;

        // y = x − log Σ exp(x)
        let y = elementwise::log_softmax_rows(&x)?;
        if !context.backward() {
            return Ok(Output::constant(y));
        }
        // ∂x = ∂y − exp(y) Σ ∂y
        let saved = y.clone();
        Ok(Output::new(y, move |grad, _| {
            let sums = grad.sum_axes(&[1]).expect("a matrix").reshape(&[grad.shape()[0], 1]);
            let shares = zip(&saved, &sums.expect("a column"), |y, sum| y.exp() * sum);
            vec![Some(zip(&grad, &shares, |g, share| g - share))]
        }))
    }
}

/// `exp(x) / Σ exp(x)` of each row of `[n, c]`.
///
/// # Source
/// PyTorch `torch.softmax(x, 1)`; ONNX `Softmax`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Softmax;

impl Rule for Softmax {
    fn forward(&self, inputs: &[Value], context: &mut Context) -> Result<Output> {
        let [x] = op::inputs("softmax", inputs)?;
        let x = x.float();
        x.dims::<2>("softmax")?;

        // y = exp(x) / Σ exp(x)
        let y = elementwise::softmax_rows(&x)?;
        if !context.backward() {
            return Ok(Output::constant(y));
        }
        // ∂x = y (∂y − Σ ∂y·y)
        let saved = y.clone();
        Ok(Output::new(y, move |grad, _| {
            let products = zip(&grad, &saved, |g, y| g * y);
            let sums = products.sum_axes(&[1]).expect("a matrix").reshape(&[grad.shape()[0], 1]);
            let centred = zip(&grad, &sums.expect("a column"), |g, sum| g - sum);
            vec![Some(zip(&centred, &saved, |g, y| g * y))]
        }))
    }
}

/// `zip_map` of operands whose shapes forward has checked.
pub(crate) fn zip(
    a: &Tensor<f32>,
    b: &Tensor<f32>,
    f: impl Fn(f32, f32) -> f32 + Sync + Send,
) -> Tensor<f32> {
    a.zip_map("backward", b, f).expect("shapes that forward has checked")
}

/// Whether a rectifier that returned `y` lets the gradient pass.
#[inline(always)]
pub(crate) fn is_open(y: f32) -> bool {
    y.is_nan() || y > 0.0
}
