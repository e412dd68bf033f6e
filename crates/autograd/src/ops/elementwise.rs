use ottava_tensor::{Tensor, elementwise};

use super::activation::zip;
use crate::op::{self, Context, Output, Rule};
use crate::{Result, Value};

/// `a + b`, broadcast.
///
/// # Source
/// PyTorch `torch.add`; ONNX `Add`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Add;

impl Rule for Add {
    fn forward(&self, inputs: &[Value], context: &mut Context) -> Result<Output> {
        let [a, b] = op::inputs("add", inputs)?;
        let (a, b) = (a.float(), b.float());

        // y = a + b
        let y = elementwise::add(&a, &b)?;
        if !context.backward() {
            return Ok(Output::constant(y));
        }
        // ∂a = ∂b = ∂y, summed over what was stretched
        let shapes = [a.shape().to_vec(), b.shape().to_vec()];
        Ok(Output::new(y, move |grad, wanted| {
            shapes.iter().zip(wanted).map(|(shape, &w)| w.then(|| sum_to(&grad, shape))).collect()
        }))
    }
}

/// `a · b` element by element, broadcast.
///
/// # Source
/// PyTorch `torch.mul`; ONNX `Mul`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mul;

impl Rule for Mul {
    fn forward(&self, inputs: &[Value], context: &mut Context) -> Result<Output> {
        let [a, b] = op::inputs("mul", inputs)?;
        let (a, b) = (a.float(), b.float());

        // y = a·b
        let y = a.zip_map("mul", &b, |a, b| a * b)?;
        if !context.backward() {
            return Ok(Output::constant(y));
        }
        // ∂a = ∂y·b, ∂b = ∂y·a, summed over what was stretched
        Ok(Output::new(y, move |grad, wanted| {
            vec![
                wanted[0].then(|| sum_to(&zip(&grad, &b, |g, b| g * b), a.shape())),
                wanted[1].then(|| sum_to(&zip(&grad, &a, |g, a| g * a), b.shape())),
            ]
        }))
    }
}

/// The sum of all elements; a scalar.
///
/// # Source
/// PyTorch `torch.sum`; ONNX `ReduceSum`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum;

impl Rule for Sum {
    fn forward(&self, inputs: &[Value], _: &mut Context) -> Result<Output> {
        let [x] = op::inputs("sum", inputs)?;
        let x = x.float();

        // y = Σ x
        let y = Tensor::scalar(x.sum());
        // ∂x = ∂y everywhere
        let shape = x.shape().to_vec();
        Ok(Output::new(y, move |grad, _| {
            vec![Some(Tensor::full(&shape, grad.item().expect("the gradient of a scalar")))]
        }))
    }
}

/// The gradient of what was stretched to the shape of `grad`.
pub(super) fn sum_to(grad: &Tensor<f32>, shape: &[usize]) -> Tensor<f32> {
    grad.sum_to(shape).expect("a shape that was stretched to this one")
}
