use ottava_quant::{QParams, covers_per_channel, fake_quantize_per_channel};
use ottava_tensor::Tensor;

use super::activation::zip;
use crate::op::{self, Context, Output, Rule};
use crate::{Result, Value};

/// Rounds to a fixed grid and back to float; differentiated by a straight-through estimator that
/// lets the gradient pass where the rounded code was in range.
///
/// # Shapes
/// `x`: any; one grid for the tensor, or one for each index of `axis`; result: as `x`.
///
/// # Source
/// Bengio et al. 2013 (arXiv:1308.3432); PyTorch `torch.fake_quantize_per_tensor_affine` and
/// `torch.fake_quantize_per_channel_affine`.
#[derive(Clone, Debug, PartialEq)]
pub struct FakeQuant {
    /// The grids.
    pub params: Vec<QParams>,
    /// The axis whose indices they belong to, if there is more than one.
    pub axis: usize,
}

impl Rule for FakeQuant {
    fn forward(&self, inputs: &[Value], context: &mut Context) -> Result<Output> {
        let [x] = op::inputs("fake_quant", inputs)?;
        let x = x.float();

        // y = s·(clamp(round(x/s) + z) − z)
        let y = fake_quantize_per_channel(&x, &self.params, self.axis)?;
        if !context.backward() {
            return Ok(Output::constant(y));
        }
        // ∂y/∂x ≈ 1 where x was not clamped, 0 elsewhere
        let inside = covers_per_channel(&x, &self.params, self.axis)?;
        Ok(Output::new(y, move |grad, _| {
            let pass = |g, inside| if inside { g } else { 0.0 };
            vec![Some(grad.zip_map("fake_quant", &inside, pass).expect("the shape of x"))]
        }))
    }
}

/// Rounds to a grid whose scale and zero-point are learned; the zero-point is rounded before use.
///
/// # Shapes
/// Inputs: `x`, any; `scale [1]`, above zero; `zero_point [1]`; result: as `x`.
///
/// # Source
/// Esser et al. 2020 (LSQ, arXiv:1902.08153), Bhalgat et al. 2020 (LSQ+, arXiv:2004.09576), in the form
/// of PyTorch `torch._fake_quantize_learnable_per_tensor_affine`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearnedFakeQuant {
    /// The smallest code.
    pub qmin: i32,
    /// The largest code.
    pub qmax: i32,
    /// What the gradients of scale and zero-point are multiplied by: LSQ's `1 / √(n · qmax)`.
    pub grad_factor: f32,
}

impl LearnedFakeQuant {
    /// The grid it rounds to.
    ///
    /// # Errors
    /// A scale that is not above zero.
    pub fn grid(&self, scale: f32, zero_point: f32) -> Result<QParams> {
        let zero_point = (zero_point.round_ties_even() as i32).clamp(self.qmin, self.qmax);
        Ok(QParams::new(scale, zero_point, self.qmin..=self.qmax)?)
    }
}

impl Rule for LearnedFakeQuant {
    fn forward(&self, inputs: &[Value], context: &mut Context) -> Result<Output> {
        let [x, scale, zero_point] = op::inputs("learned_fake_quant", inputs)?;
        let (x, scale, zero_point) = (x.float(), scale.float().item()?, zero_point.float().item()?);
        let grid = self.grid(scale, zero_point)?;

        // y = s·(clamp(round(x/s) + z) − z)
        let y = x.map(move |x| grid.fake_quantize(x));
        if !context.backward() {
            return Ok(Output::constant(y));
        }
        // Inside: ∂x = g, ∂s = g·(y − x)/s. Where the code was clamped to c: ∂s = g·(c − z), ∂z = −g·s.
        let (saved, factor) = (y.clone(), self.grad_factor);
        Ok(Output::new(y, move |grad, _| {
            let dx = zip(&grad, &x, move |g, x| if grid.covers(x) { g } else { 0.0 });
            let error = zip(
                &saved,
                &x,
                move |y, x| {
                    if grid.covers(x) { (y - x) / scale } else { y / scale }
                },
            );
            let clamped = x.map(move |x| if grid.covers(x) { 0.0 } else { -scale });
            let sum = |slope: &Tensor<f32>| {
                Tensor::full(&[1], zip(&grad, slope, |g, d| g * d).sum() * factor)
            };
            vec![Some(dx), Some(sum(&error)), Some(sum(&clamped))]
        }))
    }
}
