//! The integer layer: convolution or fully connected, BatchNorm and ReLU fused, rounded once.
//!
//! Forward is what the integer program computes, on the same kernels with the same parameters:
//!
//! ```text
//! folded    W', b' = fold(W, γ, β, μ, σ)       the BatchNorm, if any, is frozen
//!           acc    = Σ (q_x − z_x) · q_W'  (i32, exact) + round(b' / (s_x · s_W'))
//!           q_y    = clamp(round(acc · s_x · s_W' / s_y)) + z_y
//! unfolded  y₀     = s_x · s_W · Σ (q_x − z_x) · q_W      the batch's statistics are needed first
//!           q_y    = quantize(relu(BN(y₀)))
//! ```
//!
//! Why the unfolded form trains the network that the folded form deploys: with a symmetric scale per
//! output channel, the codes of `W · f` are the codes of `W` up to the sign of `f`, so folding
//! commutes with rounding, no division by `f` is needed, and γ = 0 and γ < 0 are ordinary. With one
//! scale for the tensor it does not commute; there the whitepaper's two-convolution form is computed
//! (Krishnamoorthi 2018, arXiv:1806.08342, section 3.2.2).
//!
//! Backward is the straight-through float rule: the float layer's gradient, with the rounded weights
//! and inputs in the place of the real ones, where the output was not clamped.

use ottava_quant::{
    BatchNormStats, QParams, QTensor, QuantizedLayer, WeightRange, WeightSpec, fold_batch_norm,
    quantize_layer, quantize_layer_on,
};
use ottava_tensor::conv::int8::{Algorithm, Int8Conv, Output as Sink};
use ottava_tensor::conv::{self, ConvAttrs, ConvGeometry};
use ottava_tensor::norm::{batch_norm_grad, channel_affine, channel_sums};
use ottava_tensor::{Level, Tensor, parallel};

use super::activation::zip;
use super::conv::vector;
use super::norm::{BatchNorm2d, affine};
use super::quantizer::{ActivationQuant, Rounding};
use crate::mask::Mask;
use crate::op::{Context, Output, Rule};
use crate::{Error, Result, Value};

/// Convolution or fully connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerKind {
    /// 2-D convolution of `[n, c, h, w]`.
    Conv(ConvAttrs),
    /// Fully connected layer of `[n, k]`.
    Linear,
}

/// A quantized convolution or fully connected layer.
///
/// # Shapes
/// Inputs: `x` as codes; `weight`; `bias [o]` if [`bias`](Self::bias); BatchNorm's weight, bias,
/// running mean and running variance, each `[o]`, if [`norm`](Self::norm); the weight's scales `[o]`
/// if [`learn_scales`](Self::learn_scales); the output observer's state. Result: codes, shaped as the
/// float layer's.
///
/// # Source
/// ONNX `QLinearConv`; PyTorch `torch.ao.nn.intrinsic.qat.ConvBnReLU2d`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QuantLayer {
    /// Convolution or fully connected.
    pub kind: LayerKind,
    /// How the weights are rounded.
    pub weight: WeightSpec,
    /// Whether the weights' scales, one an output channel and before folding, are parameters (LSQ)
    /// instead of following the weights.
    pub learn_scales: bool,
    /// Whether there is a bias besides BatchNorm's.
    pub bias: bool,
    /// The BatchNorm behind it.
    pub norm: Option<BatchNorm2d>,
    /// Whether a ReLU follows.
    pub relu: bool,
    /// The observer and the grid of the result.
    pub output: ActivationQuant,
}

impl QuantLayer {
    /// How many inputs there are.
    fn arity(&self) -> usize {
        let norm = if self.norm.is_some() { 4 } else { 0 };
        3 + usize::from(self.bias) + norm + usize::from(self.learn_scales)
    }

    /// The grid of each channel of `weight`, which is the layer's own weight times `factors`.
    fn grids(
        &self,
        leaves: &[Tensor<f32>],
        weight: &Tensor<f32>,
        factors: Option<&[f32]>,
    ) -> Result<Vec<QParams>> {
        let Some(scales) = leaves.last().filter(|_| self.learn_scales) else {
            return Ok(self.weight.grids(weight)?);
        };
        let scales = scales.iter().enumerate();
        let folded = scales.map(|(c, s)| s.abs() * factors.map_or(1.0, |f| f[c].abs()));
        Ok(folded.map(|s| self.weight.grid_of_scale(s)).collect::<ottava_quant::Result<_>>()?)
    }

    /// The weight, bias and weight grids with everything folded in. `leaves` are the inputs behind `x`.
    fn folded(&self, leaves: &[Tensor<f32>]) -> Result<Folded> {
        let weight = &leaves[0];
        let channels = weight.shape().first().copied().unwrap_or(0);
        let bias = self.bias.then(|| leaves[1].to_vec());
        let (weight, bias, factors) = match &self.norm {
            None => (weight.clone(), bias.unwrap_or_else(|| vec![0.0; channels]), None),
            Some(norm) => {
                let at = 1 + usize::from(self.bias);
                let [gamma, beta, mean, var] = [0, 1, 2, 3].map(|i| leaves[at + i].to_vec());
                let (gamma, beta, mean, var) = (&gamma[..], &beta[..], &mean[..], &var[..]);
                let stats = BatchNormStats { gamma, beta, mean, var, eps: norm.eps };
                let (weight, bias) = fold_batch_norm(weight, bias.as_deref(), &stats)?;
                (weight, bias, Some(stats.factors()))
            }
        };
        let grids = self.grids(leaves, &weight, factors.as_deref())?;
        Ok(Folded { weight, bias, grids })
    }

    /// The layer's integer parameters with everything folded in: what evaluation runs and what
    /// conversion writes. `leaves` are the inputs behind `x`.
    ///
    /// # Errors
    /// What does not fit, or is not finite.
    pub fn fold(&self, leaves: &[Tensor<f32>], x: QParams) -> Result<QuantizedLayer> {
        let Folded { weight, bias, grids } = self.folded(leaves)?;
        Ok(quantize_layer_on(grids, &weight, &bias, x.scale(), self.weight)?)
    }

    /// The way back through the rounding of `weight` to `grids`.
    fn weight_rounding(&self, weight: &Tensor<f32>, grids: Vec<QParams>) -> WeightRounding {
        let clipped = self.learn_scales || self.weight.range == WeightRange::LeastError;
        WeightRounding {
            spec: self.weight,
            clipped,
            learned: self.learn_scales,
            weight: weight.clone(),
            grids,
        }
    }
}

/// A layer before rounding, everything folded in.
struct Folded {
    weight: Tensor<f32>,
    bias: Vec<f32>,
    grids: Vec<QParams>,
}

/// The way back through the rounding of a weight.
struct WeightRounding {
    spec: WeightSpec,
    /// Whether a weight may lie beyond its grid.
    clipped: bool,
    learned: bool,
    weight: Tensor<f32>,
    grids: Vec<QParams>,
}

impl WeightRounding {
    /// Stops the gradient where a weight was clipped. The gradients of the scales, if they are learned:
    /// `∂s = Σ g·(q − w/s)` inside, `Σ g·q` outside, times `1/√(n·qmax)`, n weights a channel (LSQ).
    fn back(&self, grad: &mut Tensor<f32>) -> Option<Vec<f32>> {
        if !self.clipped {
            return None;
        }
        *grad = grad.contiguous();
        let inner = (grad.len() / self.grids.len().max(1)).max(1);
        let weight = self.weight.to_vec();
        let channels = grad.data_mut().chunks_mut(inner).zip(weight.chunks(inner));
        let slopes: Vec<f32> = channels
            .zip(&self.grids)
            .map(|((grad, weight), grid)| {
                let mut sum = 0.0f64;
                for (g, &w) in grad.iter_mut().zip(weight) {
                    let code = f32::from(self.spec.code(grid, w));
                    let inside = grid.covers(w);
                    let slope = if inside { code - w / grid.scale() } else { code };
                    sum += f64::from(*g * slope);
                    *g = if inside { *g } else { 0.0 };
                }
                (sum / (inner as f64 * f64::from(grid.qmax())).sqrt()) as f32
            })
            .collect();
        self.learned.then_some(slopes)
    }
}

impl Rule for QuantLayer {
    fn forward(&self, inputs: &[Value], context: &mut Context) -> Result<Output> {
        if inputs.len() != self.arity() {
            let reason = format!("takes {} inputs, but got {}", self.arity(), inputs.len());
            return Err(Error::Op { op: "quant_layer", reason });
        }
        let leaves: Vec<Tensor<f32>> =
            inputs[1..inputs.len() - 1].iter().map(Value::float).collect();
        let run = Run::new(self, &inputs[0], leaves, &inputs[inputs.len() - 1])?;
        let live = self.norm.is_some() && context.mode.batch_stats;
        if context.mode.quantize && !live {
            run.folded(context)
        } else {
            run.unfolded(context, live)
        }
    }
}

/// One run of a layer: its inputs, taken apart.
struct Run<'a> {
    layer: &'a QuantLayer,
    x: &'a Value,
    leaves: Vec<Tensor<f32>>,
    state: &'a Value,
    geometry: ConvGeometry,
    attrs: ConvAttrs,
}

impl<'a> Run<'a> {
    fn new(
        layer: &'a QuantLayer,
        x: &'a Value,
        leaves: Vec<Tensor<f32>>,
        state: &'a Value,
    ) -> Result<Self> {
        let attrs = match layer.kind {
            LayerKind::Conv(attrs) => attrs,
            LayerKind::Linear => ConvAttrs::default(),
        };
        let (input, weight) =
            (image(layer.kind, x.shape())?, image(layer.kind, leaves[0].shape())?);
        let geometry = ConvGeometry::new(input, weight, attrs)?;
        let channels = geometry.out_channels;
        if let Some(wrong) = leaves[1..].iter().find(|leaf| leaf.shape() != [channels]) {
            let reason = format!("{:?} values for {channels} output channels", wrong.shape());
            return Err(Error::Op { op: "quant_layer", reason });
        }
        Ok(Self { layer, x, leaves, state, geometry, attrs })
    }

    /// The position of the observer's state among the operator's inputs.
    fn state_index(&self) -> usize {
        1 + self.leaves.len()
    }

    /// The position of BatchNorm's weight among the operator's inputs.
    fn norm_index(&self) -> usize {
        2 + usize::from(self.layer.bias)
    }

    fn norm_leaf(&self, i: usize) -> Vec<f32> {
        self.leaves[self.norm_index() - 1 + i].to_vec()
    }

    fn codes(&self) -> Result<QTensor> {
        let codes = self.x.codes().ok_or_else(|| Error::Op {
            op: "quant_layer",
            reason: "needs an integer input; put a quantize in front of it".into(),
        })?;
        let shape = self.geometry.input_shape();
        Ok(QTensor::new(codes.codes().reshape(&shape)?.channels_last(), codes.params()))
    }

    fn weight(&self) -> Result<Tensor<f32>> {
        Ok(self.leaves[0].reshape(&self.geometry.weight_shape())?)
    }

    fn kernel(&self, codes: &Tensor<i8>) -> Result<Int8Conv> {
        let codes = codes.to_vec();
        let shape = self.geometry.weight_shape();
        Ok(Int8Conv::new(Level::current(), &codes, shape, self.attrs, Algorithm::Auto)?)
    }

    fn run(&self, kernel: &Int8Conv, x: &QTensor, sink: Sink<'_>) {
        let mut scratch = Tensor::<u8>::zeros(&[kernel.scratch_len(&self.geometry)]);
        let input = x.codes().as_nhwc().expect("made channels-last above");
        kernel.run(&self.geometry, input, x.params().zero_point() as u8, sink, scratch.data_mut());
    }

    /// `Σ (q_x − z_x) · q_W`, exact.
    fn accumulate(&self, x: &QTensor, codes: &Tensor<i8>) -> Result<Tensor<i32>> {
        let mut sums = Tensor::zeros_channels_last(&self.geometry.output_shape());
        self.run(&self.kernel(codes)?, x, Sink::Accumulate(sums.data_mut()));
        Ok(sums)
    }

    /// The integer network's own arithmetic, rounded once.
    fn folded(self, context: &mut Context) -> Result<Output> {
        let x = self.codes()?;
        let x_scale = x.params().scale();
        let Folded { weight: folded, bias: folded_bias, grids } =
            self.layer.folded(&self.leaves)?;
        let spec = self.layer.weight;
        let layer = quantize_layer_on(grids.clone(), &folded, &folded_bias, x_scale, spec)?;
        let relu = self.layer.relu;

        if !context.mode.observe && !context.backward() {
            let params = self.layer.output.params(&self.state.float())?;
            let requantize = layer.requantize(x_scale, params, relu);
            let mut y = Tensor::zeros_channels_last(&self.geometry.output_shape());
            let kernel = self.kernel(&layer.codes)?;
            self.run(&kernel, &x, Sink::Requantize(&requantize, y.data_mut()));
            return Ok(Output::constant(QTensor::new(self.shaped(y)?, params)));
        }

        // The same integers, by way of the sums: observers and the clip mask look at them.
        let sums = self.accumulate(&x, &layer.codes)?;
        let steps: Vec<f32> = layer.scales.iter().map(|s| x_scale * s).collect();
        let float = per_channel(&sums, |c, sum| {
            let y = sum.wrapping_add(layer.bias[c]) as f32 * steps[c];
            if relu { y.max(0.0) } else { y }
        });
        let index = self.state_index();
        let params = self.layer.output.observe(|| float.clone(), self.state, index, context)?;
        let requantize = layer.requantize(x_scale, params, relu);
        let codes = per_channel(&sums, |c, sum| requantize.apply(c, sum));
        let y = QTensor::new(self.shaped(codes)?, params);
        if !context.backward() {
            return Ok(Output::constant(y));
        }

        // ∂x = ∂y ⋆ flipped s·q_W', ∂W = f · (x ⋆ ∂y), ∂b = f · Σ∂y; with BatchNorm also
        // ∂γ = (Σ_k W·∂W' + (b − μ) Σ∂y) / σ, ∂β = Σ∂y
        let rounding = self.layer.output.rounding(&float, params, relu);
        let weight_rounding = self.layer.weight_rounding(&folded, grids);
        let rounded = layer.dequantize().reshape(&self.geometry.weight_shape())?;
        let back = self.back();
        let norm = self.layer.norm.as_ref().map(|norm| {
            let inv_std = norm.inv_std(&self.norm_leaf(3));
            (self.norm_leaf(0), self.norm_leaf(2), inv_std)
        });
        let weight = self.weight()?;
        let bias = self.layer.bias.then(|| self.leaves[1].to_vec());
        Ok(Output::new(y, move |grad, wanted| {
            let (grad, range) = back.rounded(grad, &rounding);
            let dx = wanted[0].then(|| back.input(&grad, &rounded));
            let mut dw = conv::f32::grad_weight(&grad, &x.dequantize(), &back.geometry);
            let mut scales = weight_rounding.back(&mut dw);
            let mut db = channel_sums(&grad);
            let mut norm_grads = Vec::new();
            if let Some((gamma, mean, inv_std)) = norm {
                let of_weight = products(&dw, &weight);
                let dgamma = (0..db.len()).map(|c| {
                    let centre = bias.as_ref().map_or(0.0, |b| b[c]) - mean[c];
                    (of_weight[c] + centre * db[c]) * inv_std[c]
                });
                norm_grads.push(Some(vector(dgamma.collect())));
                norm_grads.push(Some(vector(db.clone())));
                norm_grads.extend([None, None]);
                let factors: Vec<f32> = gamma.iter().zip(&inv_std).map(|(g, i)| g * i).collect();
                scale_rows(&mut dw, &factors);
                db.iter_mut().zip(&factors).for_each(|(db, f)| *db *= f);
                // The folded scale is the learned one times |f|.
                if let Some(scales) = &mut scales {
                    scales.iter_mut().zip(&factors).for_each(|(ds, f)| *ds *= f.abs());
                }
            }
            back.collect(dx, dw, db, norm_grads, scales, range)
        }))
    }

    /// The layer before folding: in float when nothing is rounded yet, on the integer sums while the
    /// batch's statistics are needed.
    fn unfolded(self, context: &mut Context, live: bool) -> Result<Output> {
        let geometry = self.geometry;
        let weight = self.weight()?;
        let bias = self.layer.bias.then(|| self.leaves[1].clone());
        let commutes = self.layer.weight.per_channel;

        // y₀ = x ⋆ W + b, and the weight that the way back sees
        let mut weight_rounding = None;
        let (x, rounded, y0) = if context.mode.quantize && commutes {
            let x = self.codes()?;
            let zeros = vec![0.0; geometry.out_channels];
            let (spec, grids) = (self.layer.weight, self.layer.grids(&self.leaves, &weight, None)?);
            let x_scale = x.params().scale();
            let layer = quantize_layer_on(grids.clone(), &weight, &zeros, x_scale, spec)?;
            weight_rounding = Some(self.layer.weight_rounding(&weight, grids));
            let sums = self.accumulate(&x, &layer.codes)?;
            let bias = bias.as_ref().map_or(zeros, Tensor::to_vec);
            let steps: Vec<f32> = layer.scales.iter().map(|s| x.params().scale() * s).collect();
            let y0 = per_channel(&sums, |c, sum| sum as f32 * steps[c] + bias[c]);
            (Value::Codes(x), layer.dequantize(), y0)
        } else {
            let x = self.x.float().reshape(&geometry.input_shape())?;
            let y0 = conv::f32::forward(&x, &weight, bias.as_ref(), &geometry);
            (self.x.clone(), weight.clone(), y0)
        };

        // y = relu(BN(y₀))
        let mut normed = None;
        let mut y = y0.clone();
        if let Some(norm) = &self.layer.norm {
            let [gamma, beta, mut mean, var] = [0, 1, 2, 3].map(|i| self.norm_leaf(i));
            let mut inv_std = norm.inv_std(&var);
            if live {
                let batch = norm.batch_statistics(&y0, &mean, &var)?;
                let at = self.norm_index();
                let running_std = norm.inv_std(&batch.running_var.to_vec());
                context.update(at + 2, batch.running_mean);
                context.update(at + 3, batch.running_var);
                (mean, inv_std) = (batch.mean, batch.inv_std);
                if context.mode.quantize && !commutes {
                    // c = x ⋆ round(W·γ/σ_running);  y = c · σ_running/σ_batch + β − γ·μ/σ_batch
                    let c = self.folded_product(&gamma, &running_std, &weight)?;
                    let ratio: Vec<f32> =
                        inv_std.iter().zip(&running_std).map(|(b, r)| b / r).collect();
                    let centre: Vec<f32> = match &bias {
                        None => mean.clone(),
                        Some(bias) => mean.iter().zip(bias.to_vec()).map(|(m, b)| m - b).collect(),
                    };
                    let (_, shift) = affine(&gamma, &beta, &centre, &inv_std);
                    y = channel_affine(&c, &ratio, &shift, self.layer.relu);
                }
            }
            if !(live && context.mode.quantize && !commutes) {
                let (scale, shift) = affine(&gamma, &beta, &mean, &inv_std);
                y = channel_affine(&y0, &scale, &shift, self.layer.relu);
            }
            normed = Some((gamma, mean, inv_std));
        } else if self.layer.relu {
            y = y.map(|y| y.max(0.0));
        }

        let (relu, index) = (self.layer.relu, self.state_index());
        let (value, rounding) = if context.mode.quantize {
            let params = self.layer.output.observe(|| y.clone(), self.state, index, context)?;
            let codes = QTensor::quantize(&y, params);
            let codes = QTensor::new(self.shaped(codes.codes().clone())?, params);
            let rounding = || self.layer.output.rounding(&y, params, relu);
            (Value::Codes(codes), context.backward().then(rounding))
        } else {
            self.layer.output.watch(&y, self.state, index, context)?;
            let open = || Rounding::none(Mask::of(&y, move |y| !relu || y > 0.0));
            let rounding = context.backward().then(open);
            (Value::Float(self.shaped(y)?), rounding)
        };
        let Some(rounding) = rounding else { return Ok(Output::constant(value)) };

        let back = self.back();
        Ok(Output::new(value, move |grad, wanted| {
            let (mut grad, range) = back.rounded(grad, &rounding);
            let mut norm_grads = Vec::new();
            if let Some((gamma, mean, inv_std)) = normed {
                let (dx, dgamma, dbeta) = if live {
                    batch_norm_grad(&grad, &y0, &mean, &inv_std, &gamma)
                } else {
                    frozen_norm_grad(&grad, &y0, &mean, &inv_std, &gamma)
                };
                grad = dx;
                norm_grads = vec![Some(vector(dgamma)), Some(vector(dbeta)), None, None];
            }
            let x = x.float().reshape(&geometry.input_shape()).expect("the shape of x");
            let rounded = rounded.reshape(&geometry.weight_shape()).expect("the shape of W");
            let dx = wanted[0].then(|| back.input(&grad, &rounded));
            let mut dw = conv::f32::grad_weight(&grad, &x, &geometry);
            let scales = weight_rounding.and_then(|rounding| rounding.back(&mut dw));
            let db = channel_sums(&grad);
            back.collect(dx, dw, db, norm_grads, scales, range)
        }))
    }

    /// `x ⋆ round(W · γ/σ)` in floats.
    fn folded_product(
        &self,
        gamma: &[f32],
        inv_std: &[f32],
        weight: &Tensor<f32>,
    ) -> Result<Tensor<f32>> {
        let x = self.codes()?;
        let mut folded = weight.clone();
        let factors: Vec<f32> = gamma.iter().zip(inv_std).map(|(g, i)| g * i).collect();
        scale_rows(&mut folded, &factors);
        let zeros = vec![0.0; factors.len()];
        let layer = quantize_layer(&folded, &zeros, x.params().scale(), self.layer.weight)?;
        let sums = self.accumulate(&x, &layer.codes)?;
        let steps: Vec<f32> = layer.scales.iter().map(|s| x.params().scale() * s).collect();
        Ok(per_channel(&sums, |c, sum| sum as f32 * steps[c]))
    }

    /// The result in the layer's own shape: `[n, o]` for a fully connected one.
    fn shaped<T: ottava_tensor::Element>(&self, y: Tensor<T>) -> Result<Tensor<T>> {
        Ok(match self.layer.kind {
            LayerKind::Conv(_) => y,
            LayerKind::Linear => y.reshape(&[self.geometry.batch, self.geometry.out_channels])?,
        })
    }

    fn back(&self) -> Back {
        Back {
            geometry: self.geometry,
            x_shape: self.x.shape().to_vec(),
            weight_shape: self.leaves[0].shape().to_vec(),
            bias: self.layer.bias,
            learn_scales: self.layer.learn_scales,
        }
    }
}

/// What every way back of a layer needs.
struct Back {
    geometry: ConvGeometry,
    x_shape: Vec<usize>,
    weight_shape: Vec<usize>,
    bias: bool,
    learn_scales: bool,
}

impl Back {
    /// The gradient in the convolution's shape, zero where the output was clamped; and the range's.
    fn rounded(
        &self,
        grad: Tensor<f32>,
        rounding: &Rounding,
    ) -> (Tensor<f32>, Option<Tensor<f32>>) {
        let grad = grad.reshape(&self.geometry.output_shape()).expect("the shape of y");
        rounding.back(grad.channels_last())
    }

    fn input(&self, grad: &Tensor<f32>, weight: &Tensor<f32>) -> Tensor<f32> {
        let dx = conv::f32::grad_input(grad, weight, &self.geometry);
        dx.reshape(&self.x_shape).expect("the shape of x")
    }

    /// Gradients in the order of the operator's inputs.
    fn collect(
        &self,
        dx: Option<Tensor<f32>>,
        dw: Tensor<f32>,
        db: Vec<f32>,
        norm: Vec<Option<Tensor<f32>>>,
        scales: Option<Vec<f32>>,
        range: Option<Tensor<f32>>,
    ) -> Vec<Option<Tensor<f32>>> {
        let mut grads = vec![dx, Some(dw.reshape(&self.weight_shape).expect("the shape of W"))];
        grads.extend(self.bias.then(|| Some(vector(db))));
        grads.extend(norm);
        grads.extend(self.learn_scales.then(|| scales.map(vector)));
        grads.push(range);
        grads
    }
}

/// The gradients of `(y₀ − μ)/σ · γ + β` with constant μ and σ.
fn frozen_norm_grad(
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

/// The shape of a layer's tensor as a convolution sees it.
fn image(kind: LayerKind, shape: &[usize]) -> Result<[usize; 4]> {
    let op = "quant_layer";
    match (kind, shape) {
        (LayerKind::Conv(_), &[a, b, c, d]) => Ok([a, b, c, d]),
        (LayerKind::Linear, &[a, b]) => Ok([a, b, 1, 1]),
        (LayerKind::Conv(_), _) => Err(rank(op, 4, shape)),
        (LayerKind::Linear, _) => Err(rank(op, 2, shape)),
    }
}

fn rank(op: &'static str, expected: usize, shape: &[usize]) -> Error {
    ottava_tensor::Error::Rank { op, expected, shape: shape.to_vec() }.into()
}

/// `f(channel, sum)` of every sum of a channels-last tensor.
fn per_channel<T: ottava_tensor::Element>(
    sums: &Tensor<i32>,
    f: impl Fn(usize, i32) -> T + Sync + Send,
) -> Tensor<T> {
    let channels = sums.shape()[1].max(1);
    let source = sums.as_nhwc().expect("kernels write channels-last");
    let mut result = Tensor::zeros_channels_last(sums.shape());
    let rows = (parallel::CHUNK / channels).max(1) * channels;
    parallel::for_each_chunk(result.data_mut(), rows, |i, chunk| {
        let source = &source[i * rows..][..chunk.len()];
        for (target, sums) in chunk.chunks_mut(channels).zip(source.chunks(channels)) {
            for (c, (target, &sum)) in target.iter_mut().zip(sums).enumerate() {
                *target = f(c, sum);
            }
        }
    });
    result
}

/// `Σ a·b` over each index of axis 0.
fn products(a: &Tensor<f32>, b: &Tensor<f32>) -> Vec<f32> {
    let (a, b) = (a.contiguous(), b.contiguous());
    let inner = (a.len() / a.shape()[0].max(1)).max(1);
    let rows = |t: &Tensor<f32>| t.to_vec().chunks(inner).map(<[f32]>::to_vec).collect::<Vec<_>>();
    let dot = |(a, b): (&Vec<f32>, &Vec<f32>)| {
        a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>() as f32
    };
    rows(&a).iter().zip(&rows(&b)).map(dot).collect()
}

/// Multiplies each index of axis 0 by its factor.
fn scale_rows(x: &mut Tensor<f32>, factors: &[f32]) {
    *x = x.contiguous();
    let inner = (x.len() / factors.len().max(1)).max(1);
    for (row, factor) in x.data_mut().chunks_mut(inner).zip(factors) {
        row.iter_mut().for_each(|x| *x *= factor);
    }
}
