use ottava_tensor::norm::{
    Gate, Statistics, batch_norm_grad, channel_affine, channel_affine_add_relu, channel_statistics,
    channel_sums,
};
use ottava_tensor::{Tensor, elementwise};

use super::activation::{is_open, zip};
use super::conv::vector;
use super::elementwise::sum_to;
use crate::mask::Mask;
use crate::op::{self, Context, Output, Rule};
use crate::{Error, Result, Value};

/// Batch normalisation over all axes but the channels:
/// `y = (x − mean) / √(var + eps) · weight + bias`.
///
/// With batch statistics, the running ones move by `momentum` towards the batch's (the variance
/// unbiased); otherwise the running ones are used.
///
/// # Shapes
/// Inputs: `x [n, c, h, w]`; `weight`, `bias`, `running_mean`, `running_var`, each `[c]`.
///
/// # Source
/// PyTorch `torch.nn.BatchNorm2d`; ONNX `BatchNormalization`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNorm2d {
    /// Added to the variance.
    pub eps: f32,
    /// How far running statistics move a step.
    pub momentum: f32,
}

impl Default for BatchNorm2d {
    fn default() -> Self {
        Self { eps: 1e-5, momentum: 0.1 }
    }
}

impl BatchNorm2d {
    /// Mean and biased variance of a batch, and the running statistics after it.
    pub(crate) fn batch_statistics(
        &self,
        x: &Tensor<f32>,
        running_mean: &[f32],
        running_var: &[f32],
    ) -> Result<BatchStatistics> {
        let channels = x.shape().get(1).copied().unwrap_or(0);
        let per_channel = x.len() / channels.max(1);
        if per_channel < 2 {
            return Err(Error::Op {
                op: "batch_norm2d",
                reason: format!(
                    "batch statistics need more than one value per channel, but the input's shape is {:?}; use a larger batch",
                    x.shape()
                ),
            });
        }
        let Statistics { mean, var, ends } = channel_statistics(x);
        let unbiased = per_channel as f32 / (per_channel - 1) as f32;
        let step = |old: &[f32], new: &[f32], factor: f32| {
            let moved = old.iter().zip(new);
            vector(
                moved
                    .map(|(o, n)| (1.0 - self.momentum) * o + self.momentum * n * factor)
                    .collect(),
            )
        };
        let running_mean = step(running_mean, &mean, 1.0);
        let running_var = step(running_var, &var, unbiased);
        let inv_std = self.inv_std(&var);
        Ok(BatchStatistics { mean, inv_std, ends, running_mean, running_var })
    }

    /// `scale` and `shift` of `y = scale·x + shift`, each `[c]`: what normalising by the running
    /// statistics comes to.
    pub fn affine(
        &self,
        weight: &[f32],
        bias: &[f32],
        running_mean: &[f32],
        running_var: &[f32],
    ) -> (Vec<f32>, Vec<f32>) {
        affine(weight, bias, running_mean, &self.inv_std(running_var))
    }

    /// `1 / √(var + eps)`.
    pub(crate) fn inv_std(&self, var: &[f32]) -> Vec<f32> {
        var.iter().map(|v| 1.0 / (v + self.eps).sqrt()).collect()
    }
}

/// What a batch says of its channels.
pub(crate) struct BatchStatistics {
    pub mean: Vec<f32>,
    pub inv_std: Vec<f32>,
    /// The least and the largest values.
    pub ends: Vec<[f32; 2]>,
    pub running_mean: Tensor<f32>,
    pub running_var: Tensor<f32>,
}

/// `scale` and `shift` of `(x − mean) · inv_std · weight + bias`.
pub(crate) fn affine(
    weight: &[f32],
    bias: &[f32],
    mean: &[f32],
    inv_std: &[f32],
) -> (Vec<f32>, Vec<f32>) {
    let scale: Vec<f32> = weight.iter().zip(inv_std).map(|(w, i)| w * i).collect();
    let shift = bias.iter().zip(mean).zip(&scale).map(|((b, m), s)| b - m * s).collect();
    (scale, shift)
}

impl Rule for BatchNorm2d {
    fn forward(&self, inputs: &[Value], context: &mut Context) -> Result<Output> {
        self.normalise(inputs, End::Open, context)
    }
}

/// A BatchNorm and what is behind it, in one pass: what a graph runs where nobody reads the values in
/// between. The same bits as one after the other.
///
/// # Shapes
/// Inputs: as [`BatchNorm2d`]'s, and what is added, if `sum`.
pub(crate) struct NormRelu {
    pub norm: BatchNorm2d,
    /// Whether something is added in front of the ReLU.
    pub sum: bool,
}

impl Rule for NormRelu {
    fn forward(&self, inputs: &[Value], context: &mut Context) -> Result<Output> {
        match inputs {
            [inputs @ .., shortcut] if self.sum => {
                self.norm.normalise(inputs, End::AddRelu(shortcut.float()), context)
            }
            _ => self.norm.normalise(inputs, End::Relu, context),
        }
    }
}

/// What a BatchNorm's value goes through.
enum End {
    Open,
    Relu,
    AddRelu(Tensor<f32>),
}

impl End {
    /// The value of `scale·x + shift` behind this, and where the gradient passes, if the value says so.
    fn of(
        &self,
        x: &Tensor<f32>,
        scale: &[f32],
        shift: &[f32],
    ) -> Result<(Tensor<f32>, Option<Mask>)> {
        Ok(match self {
            Self::Open => (channel_affine(x, scale, shift, false), None),
            Self::Relu => (channel_affine(x, scale, shift, true), None),
            Self::AddRelu(shortcut) if shortcut.shape() == x.shape() => {
                let (y, words) = channel_affine_add_relu(x, scale, shift, shortcut);
                let mask = Mask::channels_last(words);
                (y, Some(mask))
            }
            Self::AddRelu(shortcut) => {
                let y = elementwise::add(&channel_affine(x, scale, shift, false), shortcut)?;
                let y = elementwise::relu(&y);
                let mask = Mask::of(&y, is_open);
                (y, Some(mask))
            }
        })
    }
}

impl BatchNorm2d {
    /// The forward pass, and what is behind it.
    fn normalise(&self, inputs: &[Value], end: End, context: &mut Context) -> Result<Output> {
        let [x, weight, bias, mean, var] = op::inputs("batch_norm2d", inputs)?;
        let x = x.float();
        let [_, channels, _, _] = x.dims("batch_norm2d")?;
        let vectors = [weight, bias, mean, var].map(|v| v.float().to_vec());
        if vectors.iter().any(|v| v.len() != channels) {
            return Err(Error::Op {
                op: "batch_norm2d",
                reason: format!(
                    "the input has {channels} channels, but weight, bias, mean and variance have {:?}",
                    vectors.map(|v| v.len())
                ),
            });
        }
        let [weight, bias, mean, var] = vectors;
        // ∂ of what is added: the gradient in front of the ReLU, summed over what was stretched
        let sides = |grad: &Tensor<f32>, shapes: &Option<[Vec<usize>; 2]>| match shapes {
            None => (grad.clone(), None),
            Some([x, shortcut]) => (sum_to(grad, x), Some(Some(sum_to(grad, shortcut)))),
        };
        let shapes = match &end {
            End::Open | End::Relu => None,
            End::AddRelu(shortcut) => Some([x.shape().to_vec(), shortcut.shape().to_vec()]),
        };

        if context.mode.batch_stats {
            // y = (x − μ_batch) / σ_batch · γ + β
            let batch = self.batch_statistics(&x, &mean, &var)?;
            context.update(3, batch.running_mean);
            context.update(4, batch.running_var);
            let (mean, inv_std) = (batch.mean, batch.inv_std);
            let (scale, shift) = affine(&weight, &bias, &mean, &inv_std);
            let (y, open) = end.of(&x, &scale, &shift)?;
            if !context.backward() {
                return Ok(Output::constant(y));
            }
            // What a ReLU let through follows from x, unless x is rounded.
            let relu = matches!(end, End::Relu);
            let open =
                open.or_else(|| (relu && context.saving().half).then(|| Mask::of(&y, is_open)));
            let x = context.save(0, &x);
            return Ok(Output::new(y, move |grad, _| {
                let x = x.full();
                let (grad, gate) = match open {
                    Some(open) => (open.apply(grad), Gate::Open),
                    None if relu => (grad, Gate::Relu { scale: &scale, shift: &shift }),
                    None => (grad, Gate::Open),
                };
                let (grad, side) = sides(&grad, &shapes);
                let (dx, dw, db) = batch_norm_grad(&grad, &x, &mean, &inv_std, &weight, gate);
                let own = [Some(dx), Some(vector(dw)), Some(vector(db)), None, None];
                own.into_iter().chain(side).collect()
            }));
        }
        // y = (x − μ) / σ · γ + β with the running statistics, which are constants
        let inv_std = self.inv_std(&var);
        let (scale, shift) = affine(&weight, &bias, &mean, &inv_std);
        let (y, open) = end.of(&x, &scale, &shift)?;
        if !context.backward() {
            return Ok(Output::constant(y));
        }
        let open = match end {
            End::Open => None,
            End::Relu | End::AddRelu(_) => Some(open.unwrap_or_else(|| Mask::of(&y, is_open))),
        };
        let x = context.save(0, &x);
        Ok(Output::new(y, move |grad, wanted| {
            let grad = match open {
                None => grad,
                Some(mask) => mask.apply(grad),
            };
            let (grad, side) = sides(&grad, &shapes);
            let x = x.full();
            // ∂x = ∂y·γ/σ, ∂γ = Σ ∂y·(x − μ)/σ, ∂β = Σ ∂y
            let no_shift = vec![0.0; scale.len()];
            let dw = wanted[1].then(|| {
                let negative: Vec<f32> = mean.iter().zip(&inv_std).map(|(m, i)| -m * i).collect();
                let normalised = channel_affine(&x, &inv_std, &negative, false);
                vector(channel_sums(&zip(&grad, &normalised, |g, n| g * n)))
            });
            let db = wanted[2].then(|| vector(channel_sums(&grad)));
            let dx = wanted[0].then(|| channel_affine(&grad, &scale, &no_shift, false));
            [dx, dw, db, None, None].into_iter().chain(side).collect()
        }))
    }
}
