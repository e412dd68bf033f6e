use ottava_quant::{QParams, covers_per_channel, fake_quantize_per_channel};

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
