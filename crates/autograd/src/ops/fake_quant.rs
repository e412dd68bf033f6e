use ottava_quant::{MIN_SCALE, QParams, covers_per_channel, fake_quantize_per_channel};
use ottava_tensor::Tensor;

use super::conv::vector;
use crate::op::{self, Context, Output, Rule};
use crate::{Error, Result, Value};

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

/// Rounds to a grid whose scale and zero-point are learned; the zero-point is rounded before use, and the
/// scale used without its sign, at least [`MIN_SCALE`].
///
/// # Shapes
/// Inputs: `x`, any; `scale` and `zero_point`, both `[1]`, or `[c]` for the `c` indices of
/// [`axis`](Self::axis); result: as `x`.
///
/// # Source
/// Esser et al. 2020 (LSQ, arXiv:1902.08153), Bhalgat et al. 2020 (LSQ+, arXiv:2004.09576), in the form
/// of PyTorch `torch._fake_quantize_learnable_per_tensor_affine` and `…_per_channel_affine`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearnedFakeQuant {
    /// The smallest code.
    pub qmin: i32,
    /// The largest code.
    pub qmax: i32,
    /// The axis whose indices have a grid each; `None` for one grid.
    pub axis: Option<usize>,
    /// What the gradients of scale and zero-point are multiplied by: LSQ's `1 / √(n · qmax)`.
    pub grad_factor: f32,
}

impl LearnedFakeQuant {
    /// The grids it rounds to.
    ///
    /// # Errors
    /// [`Error::Op`] if there are not as many scales as zero-points; a scale that is not finite; a range
    /// without codes.
    pub fn grids(&self, scale: &Tensor<f32>, zero_point: &Tensor<f32>) -> Result<Vec<QParams>> {
        let Self { qmin, qmax, .. } = *self;
        if qmin >= qmax {
            return Err(ottava_quant::Error::BadCodes { qmin, qmax }.into());
        }
        if scale.len() != zero_point.len() || (self.axis.is_none() && scale.len() != 1) {
            let reason = format!(
                "{} scales and {} zero-points are not those of {}",
                scale.len(),
                zero_point.len(),
                self.axis.map_or("one grid".into(), |axis| format!("axis {axis}"))
            );
            return Err(Error::Op { op: "learned_fake_quant", reason });
        }
        let grid = |(scale, zero_point): (f32, f32)| {
            let zero_point = (zero_point.round_ties_even() as i32).clamp(self.qmin, self.qmax);
            // `max` would take a NaN for the least scale.
            let scale = if scale.is_nan() { scale } else { scale.abs().max(MIN_SCALE) };
            Ok(QParams::new(scale, zero_point, self.qmin..=self.qmax)?)
        };
        scale.iter().zip(zero_point.iter()).map(grid).collect()
    }
}

impl Rule for LearnedFakeQuant {
    fn forward(&self, inputs: &[Value], context: &mut Context) -> Result<Output> {
        let [x, scale, zero_point] = op::inputs("learned_fake_quant", inputs)?;
        let (x, scale, zero_point) = (x.float(), scale.float(), zero_point.float());
        let grids = self.grids(&scale, &zero_point)?;

        // y = s·(clamp(round(x/s) + z) − z)
        let axis = self.axis.unwrap_or(0);
        let y = fake_quantize_per_channel(&x, &grids, axis)?;
        if !context.backward() {
            return Ok(Output::constant(y));
        }
        // Inside: ∂x = g, ∂s = g·(y − x)/s. Where the code was clamped to c: ∂s = g·(c − z), ∂z = −g·s.
        let inner: usize = match self.axis {
            // A scalar has no axis, and one grid.
            Some(axis) => x.shape().iter().skip(axis + 1).product(),
            None => x.len(),
        };
        let (saved, factor) = (y.clone(), self.grad_factor);
        Ok(Output::new(y, move |grad, _| {
            let (mut dx, x, y) = (grad.to_vec(), x.to_vec(), saved.to_vec());
            let mut sums = vec![(0.0f64, 0.0f64); grids.len()];
            let inner = inner.max(1);
            let rows = dx.chunks_mut(inner).zip(x.chunks(inner)).zip(y.chunks(inner));
            for (row, ((dx, x), y)) in rows.enumerate() {
                let channel = row % grids.len();
                let (grid, (ds, dz)) = (&grids[channel], &mut sums[channel]);
                for ((g, &x), &y) in dx.iter_mut().zip(x).zip(y) {
                    if grid.covers(x) {
                        *ds += f64::from(*g * (y - x) / grid.scale());
                    } else {
                        *ds += f64::from(*g * y / grid.scale());
                        *dz -= f64::from(*g * grid.scale());
                        *g = 0.0;
                    }
                }
            }
            let signed = sums.iter().zip(scale.iter());
            let ds = signed.map(|(sum, s)| sum.0 as f32 * factor * 1f32.copysign(s)).collect();
            let dz = sums.iter().map(|sum| sum.1 as f32 * factor).collect();
            let dx = Tensor::new(grad.shape(), dx).expect("the shape of x");
            vec![Some(dx), Some(vector(ds)), Some(vector(dz))]
        }))
    }
}
