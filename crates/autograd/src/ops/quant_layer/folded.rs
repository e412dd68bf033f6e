//! The layer with a frozen BatchNorm: what is deployed.

use std::cell::LazyCell;

use ottava_quant::{QTensor, linear, quantize_layer_on};
use ottava_tensor::Tensor;
use ottava_tensor::conv;
use ottava_tensor::conv::int8::Output as Sink;

use super::super::conv::vector;
use super::super::passes::{LayerSums, per_channel};
use super::super::quantizer::{ActivationQuant, Rounding};
use super::back::{products, scale_rows};
use super::{Folded, Folding, Input, LayerKind, Run};
use crate::mask::Mask;
use crate::op::{Context, Output};
use crate::{Result, Value};

/// What the forward pass leaves to the way back.
struct Forward {
    value: Value,
    x: Input,
    /// The rounded weight.
    rounded: Tensor<f32>,
    rounding: Option<Rounding>,
}

impl Run<'_> {
    /// The integer network's own arithmetic, rounded once.
    pub(super) fn folded(self, context: &mut Context) -> Result<Output> {
        let folded = self.layer.folded(&self.leaves)?;
        let Forward { value, x, rounded, rounding } = match self.output {
            None => self.in_float(&folded, context)?,
            Some((output, state)) => {
                let state = state.float();
                if !context.mode.observe && !context.backward() {
                    return self.at_once(&folded, &output, &state);
                }
                self.in_integers(&folded, &output, context)?
            }
        };
        let Some(rounding) = rounding else { return Ok(Output::constant(value)) };

        // ∂x = ∂y ⋆ flipped s·q_W', ∂W = f · (x ⋆ ∂y), ∂b = f · Σ∂y; with BatchNorm also
        // ∂γ = (Σ_k W·∂W' + (b − μ) Σ∂y) / σ, ∂β = Σ∂y; a learned scale is folded with γ too, which
        // PyTorch's folding takes for a constant
        let Folded { weight: folded, grids, .. } = folded;
        let weight_rounding = self.layer.weight_rounding(&self.leaves, &folded, grids);
        let rounded = rounded.reshape(&self.geometry.weight_shape())?;
        let back = self.back();
        let norm = self.layer.norm.as_ref().map(|norm| {
            let inv_std = norm.inv_std(&self.norm_leaf(3));
            let factors = self.norm_leaf(0).iter().zip(&inv_std).map(|(g, i)| g * i).collect();
            (factors, self.norm_leaf(2), inv_std)
        });
        let scales_fold = self.layer.folding == Folding::Exact;
        let (weight, bias, x) = (self.weight()?, self.bias(), x.saved(context));
        Ok(Output::new(value, move |grad, wanted| {
            let (grad, mut db, range) = rounding.back_and_sum(back.image(grad));
            let dx = wanted[0].then(|| back.input(&grad, &rounded));
            let mut dw = conv::f32::grad_weight(&grad, x.images(), &back.geometry);
            let slopes = weight_rounding.back(&mut dw);
            let factors = norm.as_ref().map(|(factors, ..): &(Vec<f32>, _, _)| &factors[..]);
            let scales = slopes.as_ref().map(|slopes| slopes.of_scales(factors));
            let mut norm_grads = Vec::new();
            if let Some((factors, mean, inv_std)) = &norm {
                let of_weight = products(&dw, &weight);
                let folded = slopes.as_ref().filter(|_| scales_fold);
                let of_scale = |c| folded.map_or(0.0, |slopes| slopes.of_factor(c, factors[c]));
                let dgamma = (0..db.len()).map(|c| {
                    (of_weight[c] + of_scale(c) + (bias[c] - mean[c]) * db[c]) * inv_std[c]
                });
                norm_grads.push(Some(vector(dgamma.collect())));
                norm_grads.push(Some(vector(db.clone())));
                norm_grads.extend([None, None]);
                scale_rows(&mut dw, factors);
                db.iter_mut().zip(factors).for_each(|(db, f)| *db *= f);
            }
            back.collect(dx, dw, Some(db), norm_grads, scales, range)
        }))
    }

    /// Nobody looks at the sums: the deployed kernel, straight to codes.
    fn at_once(
        &self,
        folded: &Folded,
        output: &ActivationQuant,
        state: &Tensor<f32>,
    ) -> Result<Output> {
        let x = self.codes()?;
        let x_scale = x.params().scale();
        let Folded { weight, bias, grids } = folded;
        let layer = quantize_layer_on(grids.clone(), weight, bias, x_scale, self.layer.weight)?;
        let params = output.params(state)?;
        let requantize = layer.requantize(x_scale, params, self.layer.activation);
        let mut y = Tensor::recycled_channels_last(&self.geometry.output_shape());
        let sink = Sink::Requantize(&requantize, y.data_mut());
        self.run(&self.kernel(&layer.codes)?, &x, sink);
        Ok(Output::constant(QTensor::new(self.shaped(y)?, params)))
    }

    /// The same integers, by way of the sums: observers and the clip mask look at them.
    fn in_integers(
        &self,
        folded: &Folded,
        output: &ActivationQuant,
        context: &mut Context,
    ) -> Result<Forward> {
        let x = self.codes()?;
        let x_scale = x.params().scale();
        let Folded { weight, bias, grids } = folded;
        let layer = quantize_layer_on(grids.clone(), weight, bias, x_scale, self.layer.weight)?;
        let activation = self.layer.activation;
        let sums = self.accumulate(&x, &layer.codes)?;
        let steps: Vec<f32> = layer.scales.iter().map(|s| x_scale * s).collect();
        let sums = LayerSums { sums: &sums, bias: &layer.bias, steps: &steps, activation };
        let float = LazyCell::new(|| sums.values());
        let state = self.output.map(|(_, state)| state).expect("the layer rounds its result");
        let index = self.state_index();
        let fused = output.extremes_suffice() && !sums.sums.is_empty();
        let params = match fused {
            true => output.observe_extremes(|| sums.extremes(), state, index, context)?,
            false => output.observe(|| float.clone(), state, index, context)?,
        };
        let law = layer.requantize(x_scale, params, activation);
        let (codes, rounding) = match fused.then(|| sums.round(&law, params)).flatten() {
            Some((codes, mask)) => (codes, context.backward().then(|| Rounding::none(mask))),
            None => {
                let rounding = || output.rounding(&float, params, activation);
                (
                    per_channel(sums.sums, |c, sum| law.apply(c, sum)),
                    context.backward().then(rounding),
                )
            }
        };
        let value = QTensor::new(self.shaped(codes)?, params).into();
        Ok(Forward { value, x: Input::Codes(x), rounded: layer.dequantize(), rounding })
    }

    /// Rounded weights, everything else in float: `y = clip(x ⋆ round(W') + b')`.
    fn in_float(&self, folded: &Folded, context: &Context) -> Result<Forward> {
        let x = self.float()?;
        let rounded = self.layer.weight.fake_quantize(&folded.weight, &folded.grids)?;
        let bias = vector(folded.bias.clone());
        let y = match self.layer.kind {
            LayerKind::Conv(_) => conv::f32::forward(&x, &rounded, Some(&bias), &self.geometry),
            LayerKind::Linear => {
                let y = linear(&self.x.float(), &rounded, Some(&bias))?;
                y.reshape(&self.geometry.output_shape())?
            }
        };
        let activation = self.layer.activation;
        let y = activation.map(&y);
        let open = || Rounding::none(Mask::of(&y, move |y| activation.passes(y)));
        let rounding = context.backward().then(open);
        Ok(Forward { value: self.shaped(y)?.into(), x: Input::Float(x), rounded, rounding })
    }
}
