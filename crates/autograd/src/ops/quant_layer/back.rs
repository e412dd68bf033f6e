//! The way back through a layer: what each form needs of it.

use ottava_quant::{QParams, WeightSpec};
use ottava_tensor::Tensor;
use ottava_tensor::conv::{self, ConvGeometry};
use ottava_tensor::norm::{channel_affine, channel_sums};

use super::super::activation::zip;
use super::super::conv::vector;

/// The way back through the rounding of a weight.
pub(super) struct WeightRounding {
    pub spec: WeightSpec,
    /// Whether a weight may lie beyond its grid.
    pub clipped: bool,
    /// The scales before folding, if they are learned.
    pub scales: Option<Vec<f32>>,
    pub weight: Tensor<f32>,
    pub grids: Vec<QParams>,
}

impl WeightRounding {
    /// Stops the gradient where a weight was clipped. What the scales were to the rounded weights, if
    /// they are learned.
    pub(super) fn back(&self, grad: &mut Tensor<f32>) -> Option<Slopes<'_>> {
        if !self.clipped {
            return None;
        }
        *grad = grad.contiguous();
        let inner = (grad.len() / self.grids.len().max(1)).max(1);
        let weight = self.weight.to_vec();
        let channels = grad.data_mut().chunks_mut(inner).zip(weight.chunks(inner));
        let slopes: Vec<f64> = channels
            .zip(&self.grids)
            .map(|((grad, weight), grid)| {
                let mut sum = 0.0f64;
                for (g, &w) in grad.iter_mut().zip(weight) {
                    let code = self.spec.round(grid, w) / grid.scale();
                    let inside = self.spec.covers(grid, w);
                    let slope = if inside { code - w / grid.scale() } else { code };
                    sum += f64::from(*g * slope);
                    *g = if inside { *g } else { 0.0 };
                }
                sum
            })
            .collect();
        let qmax = self.grids.first().map_or(1, QParams::qmax);
        let damping = (inner as f64 * f64::from(qmax)).sqrt().recip();
        Some(Slopes { slopes, scales: self.scales.as_ref()?, damping })
    }
}

/// What learned scales, folded, were to the rounded weights: `∂s' = Σ g·(q − w/s')` inside, `Σ g·q`
/// where a weight was clipped; `s' = |s·f|` with f what was folded in.
pub(super) struct Slopes<'a> {
    slopes: Vec<f64>,
    /// s: what descent has pushed below zero is used without its sign.
    scales: &'a [f32],
    /// `1/√(n·qmax)`, n weights a channel: LSQ's, for the scales' own gradients.
    damping: f64,
}

impl Slopes<'_> {
    /// The gradient of each scale.
    pub(super) fn of_scales(&self, factors: Option<&[f32]>) -> Vec<f32> {
        let folded = |c: usize| factors.map_or(1.0, |factors| factors[c].abs());
        let slopes = self.slopes.iter().zip(self.scales).enumerate();
        slopes
            .map(|(c, (d, s))| (d * self.damping) as f32 * 1f32.copysign(*s) * folded(c))
            .collect()
    }

    /// What channel c's scale adds to the gradient of `factor`, which it was folded with.
    pub(super) fn of_factor(&self, c: usize, factor: f32) -> f32 {
        self.slopes[c] as f32 * self.scales[c].abs() * 1f32.copysign(factor)
    }
}

/// What every way back of a layer needs.
pub(super) struct Back {
    pub geometry: ConvGeometry,
    pub x_shape: Vec<usize>,
    pub weight_shape: Vec<usize>,
    pub bias: bool,
    pub learn_scales: bool,
    pub output: bool,
}

impl Back {
    /// The gradient in the convolution's shape.
    pub(super) fn image(&self, grad: Tensor<f32>) -> Tensor<f32> {
        grad.reshape(&self.geometry.output_shape()).expect("the shape of y").channels_last()
    }

    pub(super) fn input(&self, grad: &Tensor<f32>, weight: &Tensor<f32>) -> Tensor<f32> {
        let dx = conv::f32::grad_input(grad, weight, &self.geometry);
        dx.reshape(&self.x_shape).expect("the shape of x")
    }

    /// Gradients in the order of the operator's inputs.
    pub(super) fn collect(
        &self,
        dx: Option<Tensor<f32>>,
        dw: Tensor<f32>,
        db: Option<Vec<f32>>,
        norm: Vec<Option<Tensor<f32>>>,
        scales: Option<Vec<f32>>,
        range: Option<Tensor<f32>>,
    ) -> Vec<Option<Tensor<f32>>> {
        let mut grads = vec![dx, Some(dw.reshape(&self.weight_shape).expect("the shape of W"))];
        grads.extend(self.bias.then(|| db.map(vector)));
        grads.extend(norm);
        grads.extend(self.learn_scales.then(|| scales.map(vector)));
        grads.extend(self.output.then_some(range));
        grads
    }
}

/// The gradients of `(y₀ − μ)/σ · γ + β` with constant μ and σ.
pub(super) fn frozen_norm_grad(
    grad: &Tensor<f32>,
    y0: &Tensor<f32>,
    mean: &[f32],
    inv_std: &[f32],
    gamma: &[f32],
) -> (Tensor<f32>, Vec<f32>, Vec<f32>) {
    let zeros = vec![0.0; gamma.len()];
    let scale: Vec<f32> = gamma.iter().zip(inv_std).map(|(g, i)| g * i).collect();
    let shift: Vec<f32> = mean.iter().zip(inv_std).map(|(m, i)| -m * i).collect();
    let normalised = channel_affine(y0, inv_std, &shift, false);
    let dgamma = channel_sums(&zip(grad, &normalised, |g, n| g * n));
    (channel_affine(grad, &scale, &zeros, false), dgamma, channel_sums(grad))
}

/// `Σ a·b` over each index of axis 0.
pub(super) fn products(a: &Tensor<f32>, b: &Tensor<f32>) -> Vec<f32> {
    let (a, b) = (a.contiguous(), b.contiguous());
    let inner = (a.len() / a.shape()[0].max(1)).max(1);
    let [a, b] = [&a, &b].map(|t| t.as_slice().expect("contiguous").chunks(inner));
    let dot = |(a, b): (&[f32], &[f32])| {
        a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>() as f32
    };
    a.zip(b).map(dot).collect()
}

/// Multiplies each index of axis 0 by its factor.
pub(super) fn scale_rows(x: &mut Tensor<f32>, factors: &[f32]) {
    *x = x.contiguous();
    let inner = (x.len() / factors.len().max(1)).max(1);
    for (row, factor) in x.data_mut().chunks_mut(inner).zip(factors) {
        row.iter_mut().for_each(|x| *x *= factor);
    }
}
