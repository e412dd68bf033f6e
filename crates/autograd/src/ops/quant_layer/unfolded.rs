//! The layer before folding: in float while nothing is rounded yet, with rounded weights while the
//! batch's statistics are needed.

use ottava_quant::{Activation, BatchNormStats, QTensor};
use ottava_tensor::Tensor;
use ottava_tensor::conv;
use ottava_tensor::norm::{Gate, batch_norm_grad, channel_affine, channel_sums};

use super::super::conv::vector;
use super::super::norm::affine;
use super::super::passes;
use super::super::quantizer::Rounding;
use super::back::{WeightRounding, frozen_norm_grad, products, scale_rows};
use super::{Folding, Input, Product, Run};
use crate::Result;
use crate::Value;
use crate::mask::Mask;
use crate::op::{Context, Output};

/// The layer before BatchNorm.
struct Linear {
    x: Input,
    /// The weight that the way back to `x` sees.
    weight: Tensor<f32>,
    /// `x ⋆ W + b`.
    y0: Tensor<f32>,
    /// The way back through the rounding of the weight, if it was rounded here.
    weight_rounding: Option<WeightRounding>,
    /// What the weight was multiplied with before it was rounded, and the product divided by.
    factors: Option<Vec<f32>>,
}

impl Run<'_> {
    /// `q_y = quantize(clip(BN(x ⋆ W + b)))`.
    pub(super) fn unfolded(self, context: &mut Context, live: bool) -> Result<Output> {
        let geometry = self.geometry;
        let rounds = context.mode.quantize;
        let approximate = live && rounds && self.layer.folding == Folding::Approximate;
        let two_products = live && rounds && !approximate && !self.layer.commutes();
        let linear = if approximate {
            self.approximate()?
        } else if rounds && !two_products {
            self.rounded()?
        } else {
            self.plain()?
        };
        let Linear { x, weight: rounded, y0, weight_rounding, factors } = linear;
        let weight = self.weight()?;

        // y = clip(BN(y₀)); a ReLU in the same pass
        let activation = self.layer.activation;
        let relu = activation == Activation::RELU;
        let mut running = Vec::new();
        let mut fused = None;
        let (y, normed) = match &self.layer.norm {
            None => (activation.map(&y0), None),
            Some(norm) => {
                let [gamma, beta, mut mean, var] = [0, 1, 2, 3].map(|i| self.norm_leaf(i));
                let mut inv_std = norm.inv_std(&var);
                let mut ends = Vec::new();
                running = inv_std.clone();
                if live {
                    let batch = norm.batch_statistics(&y0, &mean, &var)?;
                    let at = self.norm_index();
                    context.update(at + 2, batch.running_mean.clone());
                    context.update(at + 3, batch.running_var.clone());
                    (mean, inv_std, ends) = (batch.mean, batch.inv_std, batch.ends);
                    if two_products {
                        running = norm.inv_std(&batch.running_var.to_vec());
                    }
                }
                let y = if two_products {
                    self.second_product(&gamma, &beta, &mean, &inv_std, &running)?
                } else {
                    let (scale, shift) = affine(&gamma, &beta, &mean, &inv_std);
                    fused = self.round_normed(&y0, &ends, &scale, &shift, context)?;
                    match &fused {
                        // Its values have become codes already.
                        Some(_) => y0.clone(),
                        None => channel_affine(&y0, &scale, &shift, relu),
                    }
                };
                let y = if relu { y } else { activation.map(&y) };
                (y, Some((gamma, mean, inv_std)))
            }
        };

        let index = self.state_index();
        let open = |y: &Tensor<f32>| Rounding::none(Mask::of(y, move |y| activation.passes(y)));
        let (value, rounding): (Value, _) = match (fused, self.output) {
            (Some(fused), _) => fused,
            (None, Some((output, state))) if rounds => {
                let params = output.observe(|| y.clone(), state, index, context)?;
                let codes = QTensor::quantize(&y, params);
                let codes = QTensor::new(self.shaped(codes.codes().clone())?, params);
                let rounding = || output.rounding(&y, params, activation);
                (codes.into(), context.backward().then(rounding))
            }
            (None, output) => {
                if let Some((output, state)) = output {
                    output.watch(&y, state, index, context)?;
                }
                let rounding = context.backward().then(|| open(&y));
                (self.shaped(y)?.into(), rounding)
            }
        };
        let Some(rounding) = rounding else { return Ok(Output::constant(value)) };

        let back = self.back();
        let (x, y0) = (x.saved(context), normed.is_some().then(|| context.save_inner(&y0)));
        Ok(Output::new(value, move |grad, wanted| {
            let mut grad = back.image(grad);
            let range = rounding.range(&grad);
            // BatchNorm's passes leave out what was clamped; elsewhere it is zeroed first.
            let y0 = y0.map(|y0| y0.full());
            let seen = y0.as_ref().filter(|_| live);
            let gate = seen.and_then(|y0| rounding.bits(y0)).map(Gate::Bits);
            if gate.is_none() {
                grad = rounding.pass(grad);
            }
            let mut norm_grads = None;
            if let (Some((gamma, mean, inv_std)), Some(y0)) = (normed, &y0) {
                let (dx, dgamma, dbeta) = if live {
                    let gate = gate.unwrap_or(Gate::Open);
                    batch_norm_grad(&grad, y0, &mean, &inv_std, &gamma, gate)
                } else {
                    frozen_norm_grad(&grad, y0, &mean, &inv_std, &gamma)
                };
                grad = dx;
                norm_grads = Some((dgamma, dbeta));
            }
            let db = back.bias.then(|| channel_sums(&grad));
            // y₀ = c/f + b: ∂c = ∂y₀/f
            if let Some(factors) = &factors {
                let inverse: Vec<f32> = factors.iter().map(|f| 1.0 / f).collect();
                grad = channel_affine(&grad, &inverse, &vec![0.0; inverse.len()], false);
            }
            let rounded = rounded.reshape(&geometry.weight_shape()).expect("the shape of W");
            let dx = wanted[0].then(|| back.input(&grad, &rounded));
            let mut dw = conv::f32::grad_weight(&grad, x.images(), &geometry);
            let of_product = factors.as_ref().map(|_| products(&dw, &rounded));
            let slopes = weight_rounding.as_ref().and_then(|rounding| rounding.back(&mut dw));
            let scales = slopes.as_ref().map(|slopes| slopes.of_scales(factors.as_deref()));
            if let (Some(factors), Some(of_product)) = (&factors, of_product) {
                // ∂f = Σ ∂(W·f)·W − Σ ∂c·c / f, ∂γ += ∂f / σ, ∂W = f·∂(W·f); PyTorch takes the scale as a
                // constant here, learned or not
                let of_weight = products(&dw, &weight);
                if let Some((dgamma, _)) = &mut norm_grads {
                    for (c, dgamma) in dgamma.iter_mut().enumerate() {
                        *dgamma += (of_weight[c] - of_product[c] / factors[c]) * running[c];
                    }
                }
                scale_rows(&mut dw, factors);
            }
            let norm_grads = norm_grads.map_or_else(Vec::new, |(dgamma, dbeta)| {
                vec![Some(vector(dgamma)), Some(vector(dbeta)), None, None]
            });
            back.collect(dx, dw, db, norm_grads, scales, range)
        }))
    }

    /// Nothing rounded: `y₀ = x ⋆ W + b`.
    fn plain(&self) -> Result<Linear> {
        let (x, weight) = (self.float()?, self.weight()?);
        let bias = self.layer.bias.then(|| self.leaves[1].clone());
        let y0 = conv::f32::forward(&x, &weight, bias.as_ref(), &self.geometry);
        let x = Input::Float(x);
        Ok(Linear { x, weight, y0, weight_rounding: None, factors: None })
    }

    /// `y₀ = x ⋆ round(W) + b`.
    fn rounded(&self) -> Result<Linear> {
        let weight = self.weight()?;
        let grids = self.layer.grids(&self.leaves, &weight, None)?;
        let weight_rounding =
            Some(self.layer.weight_rounding(&self.leaves, &weight, grids.clone()));
        let Product { x, weight, y } = self.product(&weight, grids)?;
        let y0 = self.with_bias(y, None);
        Ok(Linear { x, weight, y0, weight_rounding, factors: None })
    }

    /// `y₀ = (x ⋆ round(W·f)) / f + b`, `f = γ/σ` of the running statistics; 1 where γ = 0.
    fn approximate(&self) -> Result<Linear> {
        let norm = self.layer.norm.expect("only a live BatchNorm is folded approximately");
        let [gamma, beta, mean, var] = [0, 1, 2, 3].map(|i| self.norm_leaf(i));
        let (gamma, beta, mean, var) = (&gamma[..], &beta[..], &mean[..], &var[..]);
        let mut factors = BatchNormStats { gamma, beta, mean, var, eps: norm.eps }.factors();
        factors.iter_mut().filter(|f| !f.is_normal()).for_each(|f| *f = 1.0);
        let mut weight = self.weight()?;
        scale_rows(&mut weight, &factors);
        let grids = self.layer.grids(&self.leaves, &weight, Some(&factors))?;
        let weight_rounding =
            Some(self.layer.weight_rounding(&self.leaves, &weight, grids.clone()));
        let Product { x, weight, y } = self.product(&weight, grids)?;
        let y0 = self.with_bias(y, Some(&factors));
        Ok(Linear { x, weight, y0, weight_rounding, factors: Some(factors) })
    }

    /// `product / f + b`.
    fn with_bias(&self, product: Tensor<f32>, factors: Option<&[f32]>) -> Tensor<f32> {
        if factors.is_none() && !self.layer.bias {
            return product;
        }
        let scale = match factors {
            Some(factors) => factors.iter().map(|f| 1.0 / f).collect(),
            None => vec![1.0; self.geometry.out_channels],
        };
        channel_affine(&product, &scale, &self.bias(), false)
    }

    /// The codes of `relu(scale · y₀ + shift)` and the way back through their rounding, without the
    /// values in between; `ends` are the extremes of each channel of `y₀`. `None` where somebody needs
    /// those values, or nothing is rounded.
    fn round_normed(
        &self,
        y0: &Tensor<f32>,
        ends: &[[f32; 2]],
        scale: &[f32],
        shift: &[f32],
        context: &mut Context,
    ) -> Result<Option<(Value, Option<Rounding>)>> {
        let (Some((output, state)), Some(relu)) = (self.output, self.layer.activation.relu())
        else {
            return Ok(None);
        };
        if !context.mode.quantize || ends.is_empty() || y0.is_empty() || !output.extremes_suffice()
        {
            return Ok(None);
        }
        // A channel's values are monotone in its y₀.
        let values = ends
            .iter()
            .enumerate()
            .flat_map(|(c, ends)| ends.map(|end| passes::affine(end, scale[c], shift[c], relu)));
        let (index, extremes) = (self.state_index(), || passes::extremes(values));
        let params = output.observe_extremes(extremes, state, index, context)?;
        let Some((codes, mask)) = passes::round_affine(y0, scale, shift, relu, params) else {
            let y = channel_affine(y0, scale, shift, relu);
            let codes =
                QTensor::new(self.shaped(QTensor::quantize(&y, params).codes().clone())?, params);
            let rounding =
                context.backward().then(|| output.rounding(&y, params, self.layer.activation));
            return Ok(Some((codes.into(), rounding)));
        };
        let codes = QTensor::new(self.shaped(codes)?, params);
        let rounding = context.backward().then(|| Rounding::none(mask));
        Ok(Some((codes.into(), rounding)))
    }

    /// `c = x ⋆ round(W·γ/σ_running)`; `y = c · σ_running/σ_batch + β − γ·μ/σ_batch`.
    fn second_product(
        &self,
        gamma: &[f32],
        beta: &[f32],
        mean: &[f32],
        inv_std: &[f32],
        running: &[f32],
    ) -> Result<Tensor<f32>> {
        let mut folded = self.weight()?;
        let factors: Vec<f32> = gamma.iter().zip(running).map(|(g, i)| g * i).collect();
        scale_rows(&mut folded, &factors);
        let grids = self.layer.grids(&self.leaves, &folded, Some(&factors))?;
        let c = self.product(&folded, grids)?.y;
        let ratio: Vec<f32> = inv_std.iter().zip(running).map(|(b, r)| b / r).collect();
        let centre: Vec<f32> = mean.iter().zip(self.bias()).map(|(m, b)| m - b).collect();
        let (_, shift) = affine(gamma, beta, &centre, inv_std);
        Ok(channel_affine(&c, &ratio, &shift, self.layer.activation == Activation::RELU))
    }
}
