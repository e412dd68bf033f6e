//! The integer layer: convolution or fully connected, BatchNorm and activation fused, rounded once.
//!
//! Forward is what the integer program computes, on the same kernels with the same parameters:
//!
//! ```text
//! folded    W', b' = fold(W, γ, β, μ, σ)       the BatchNorm, if any, is frozen
//!           acc    = Σ (q_x − z_x) · q_W'  (i32, exact) + round(b' / (s_x · s_W'))
//!           q_y    = clamp(round(acc · s_x · s_W' / s_y)) + z_y
//! unfolded  y₀     = s_x · s_W · Σ (q_x − z_x) · q_W      the batch's statistics are needed first
//!           q_y    = quantize(clip(BN(y₀)))
//! ```
//!
//! Why the unfolded form trains the network that the folded form deploys: with a symmetric scale per
//! output channel, the codes of `W · f` are the codes of `W` up to the sign of `f`, so folding
//! commutes with rounding, no division by `f` is needed, and γ = 0 and γ < 0 are ordinary. Where it
//! does not commute (one scale for the tensor, or scales that are powers of two) the whitepaper's
//! two-convolution form is computed (Krishnamoorthi 2018, arXiv:1806.08342, section 3.2.2).
//! [`Folding::Approximate`] is PyTorch's form instead.
//!
//! Backward is the straight-through float rule: the float layer's gradient, with the rounded weights
//! and inputs in the place of the real ones, where the output was not clamped. (The two-convolution form goes back
//! through its first product, whose weights are the real ones.)

mod back;
mod folded;
mod unfolded;

use ottava_quant::{
    Activation, BatchNormStats, QParams, QTensor, QuantizedLayer, WeightRange, WeightSpec,
    fold_batch_norm, quantize_layer_on,
};
use ottava_tensor::conv::f32::Images;
use ottava_tensor::conv::int8::{Algorithm, Int8Conv, Output as Sink};
use ottava_tensor::conv::{self, ConvAttrs, ConvGeometry};
use ottava_tensor::{Level, Tensor};

use self::back::{Back, WeightRounding};
use super::norm::BatchNorm2d;
use super::quantizer::ActivationQuant;
use crate::op::{Context, Output, Rule};
use crate::saving::Saved;
use crate::{Error, Result, Value};

/// Convolution or fully connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerKind {
    /// 2-D convolution of `[n, c, h, w]`.
    Conv(ConvAttrs),
    /// Fully connected layer of `[n, k]`.
    Linear,
}

/// How a BatchNorm is folded into rounded weights while it normalises by the batch. Once its statistics
/// are frozen there is one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Folding {
    /// What is rounded is what will be deployed; nothing is divided by γ (see
    /// [`QuantLayer`]'s module).
    #[default]
    Exact,
    /// `BN((x ⋆ round(W · f)) / f)` with `f = γ / σ` of the running statistics before the batch, through
    /// which the gradient flows. The gradient of a channel grows as its γ falls; at γ = 0, where
    /// PyTorch has NaN, `f` is 1. To the gradient of γ scales are constants, learned ones too, also where
    /// statistics are frozen.
    ///
    /// # Source
    /// PyTorch `torch.ao.nn.intrinsic.qat.ConvBn2d` (`_forward_approximate`).
    Approximate,
}

/// A quantized convolution or fully connected layer.
///
/// # Shapes
/// Inputs: `x` as codes; `weight`; `bias [o]` if [`bias`](Self::bias); BatchNorm's weight, bias,
/// running mean and running variance, each `[o]`, if [`norm`](Self::norm); the weight's scales `[o]`
/// if [`learn_scales`](Self::learn_scales); the output observer's state. Result: codes, shaped as the
/// float layer's. Without an [`output`](Self::output) there is no state, and `x` and the result are
/// floats.
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
    /// How it is folded while it is live.
    pub folding: Folding,
    /// What the result is clamped to.
    pub activation: Activation,
    /// The observer and the grid of the result; `None` if only the weights are rounded, and the layer
    /// computes in float.
    pub output: Option<ActivationQuant>,
}

impl QuantLayer {
    /// How many inputs there are.
    fn arity(&self) -> usize {
        let norm = if self.norm.is_some() { 4 } else { 0 };
        let flags = [self.bias, self.learn_scales, self.output.is_some()];
        2 + norm + flags.into_iter().filter(|&there| there).count()
    }

    /// Whether the codes of `W · f` are those of `W` up to the sign of `f`.
    fn commutes(&self) -> bool {
        self.weight.per_channel && !self.weight.power_of_two
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
        let expected = self.arity() - 1 - usize::from(self.output.is_some());
        if leaves.len() != expected {
            let reason = format!("has {expected} leaves, but got {}", leaves.len());
            return Err(Error::Op { op: "quant_layer", reason });
        }
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
    /// conversion writes. `leaves` are the inputs behind `x`, without the observer's state.
    ///
    /// # Errors
    /// What does not fit, or is not finite.
    pub fn fold(&self, leaves: &[Tensor<f32>], x: QParams) -> Result<QuantizedLayer> {
        let Folded { weight, bias, grids } = self.folded(leaves)?;
        Ok(quantize_layer_on(grids, &weight, &bias, x.scale(), self.weight)?)
    }

    /// The rounded weight and the bias, in float, with everything folded in: the layer without an
    /// [`output`](Self::output). `leaves` as for [`fold`](Self::fold).
    ///
    /// # Errors
    /// As [`fold`](Self::fold).
    pub fn fold_float(&self, leaves: &[Tensor<f32>]) -> Result<(Tensor<f32>, Vec<f32>)> {
        let Folded { weight, bias, grids } = self.folded(leaves)?;
        Ok((self.weight.fake_quantize(&weight, &grids)?, bias))
    }

    /// The weight and the bias with everything folded in and nothing rounded. `leaves` as for
    /// [`fold`](Self::fold).
    ///
    /// # Errors
    /// As [`fold`](Self::fold).
    pub fn fold_exact(&self, leaves: &[Tensor<f32>]) -> Result<(Tensor<f32>, Vec<f32>)> {
        let Folded { weight, bias, .. } = self.folded(leaves)?;
        Ok((weight, bias))
    }

    /// The weight scale of each output channel, everything folded in, as [`fold`](Self::fold) takes it
    /// unless a bias needs a wider one.
    ///
    /// # Errors
    /// As [`fold`](Self::fold).
    pub fn scales(&self, leaves: &[Tensor<f32>]) -> Result<Vec<f32>> {
        Ok(self.folded(leaves)?.grids.iter().map(QParams::scale).collect())
    }

    /// The way back through the rounding of `weight` to `grids`.
    fn weight_rounding(
        &self,
        leaves: &[Tensor<f32>],
        weight: &Tensor<f32>,
        grids: Vec<QParams>,
    ) -> WeightRounding {
        let scales = leaves.last().filter(|_| self.learn_scales);
        WeightRounding {
            spec: self.weight,
            clipped: self.learn_scales || self.weight.range != WeightRange::Largest,
            scales: scales.map(Tensor::to_vec),
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

impl Rule for QuantLayer {
    fn forward(&self, inputs: &[Value], context: &mut Context) -> Result<Output> {
        if inputs.len() != self.arity() {
            let reason = format!("takes {} inputs, but got {}", self.arity(), inputs.len());
            return Err(Error::Op { op: "quant_layer", reason });
        }
        let end = inputs.len() - usize::from(self.output.is_some());
        let leaves: Vec<Tensor<f32>> = inputs[1..end].iter().map(Value::float).collect();
        let run = Run::new(self, &inputs[0], leaves, inputs.get(end))?;
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
    /// How the result is rounded, and its observer's state.
    output: Option<(ActivationQuant, &'a Value)>,
    geometry: ConvGeometry,
    attrs: ConvAttrs,
}

/// What a run multiplies with its rounded weights.
enum Input {
    Codes(QTensor),
    Float(Tensor<f32>),
}

impl Input {
    /// For the way back: codes are small already.
    fn saved(self, context: &Context) -> SavedInput {
        match self {
            Self::Codes(x) => SavedInput::Codes(x),
            Self::Float(x) => SavedInput::Float(context.save_inner(&x)),
        }
    }
}

/// An [`Input`] that waits for the way back.
enum SavedInput {
    Codes(QTensor),
    Float(Saved),
}

impl SavedInput {
    fn images(&self) -> Images {
        match self {
            Self::Codes(x) => {
                let params = x.params();
                let zero_point = params.zero_point() as u8;
                Images::Codes { codes: x.codes().clone(), zero_point, scale: params.scale() }
            }
            Self::Float(x) => Images::Floats(x.full()),
        }
    }
}

/// A product of `x` and a rounded weight.
struct Product {
    x: Input,
    weight: Tensor<f32>,
    y: Tensor<f32>,
}

impl<'a> Run<'a> {
    fn new(
        layer: &'a QuantLayer,
        x: &'a Value,
        leaves: Vec<Tensor<f32>>,
        state: Option<&'a Value>,
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
        Ok(Self { layer, x, leaves, output: layer.output.zip(state), geometry, attrs })
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

    fn bias(&self) -> Vec<f32> {
        let none = || vec![0.0; self.geometry.out_channels];
        if self.layer.bias { self.leaves[1].to_vec() } else { none() }
    }

    fn codes(&self) -> Result<QTensor> {
        let codes = self.x.codes().ok_or_else(|| Error::Op {
            op: "quant_layer",
            reason: "needs an integer input; put a quantize in front of it".into(),
        })?;
        let shape = self.geometry.input_shape();
        Ok(QTensor::new(codes.codes().reshape(&shape)?.channels_last(), codes.params()))
    }

    fn float(&self) -> Result<Tensor<f32>> {
        Ok(self.x.float().reshape(&self.geometry.input_shape())?)
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
        let mut scratch =
            Tensor::<u8>::recycled_channels_last(&[kernel.scratch_len(&self.geometry)]);
        let input = x.codes().as_nhwc().expect("made channels-last above");
        kernel.run(&self.geometry, input, x.params().zero_point() as u8, sink, scratch.data_mut());
    }

    /// `Σ (q_x − z_x) · q_W`, exact.
    fn accumulate(&self, x: &QTensor, codes: &Tensor<i8>) -> Result<Tensor<i32>> {
        let mut sums = Tensor::recycled_channels_last(&self.geometry.output_shape());
        self.run(&self.kernel(codes)?, x, Sink::Accumulate(sums.data_mut()));
        Ok(sums)
    }

    /// `x ⋆ round(W)`: of codes the exact sums, scaled once.
    fn product(&self, weight: &Tensor<f32>, grids: Vec<QParams>) -> Result<Product> {
        let spec = self.layer.weight;
        if self.output.is_none() {
            let (x, rounded) = (self.float()?, spec.fake_quantize(weight, &grids)?);
            let y = conv::f32::forward(&x, &rounded, None, &self.geometry);
            return Ok(Product { x: Input::Float(x), weight: rounded, y });
        }
        let x = self.codes()?;
        let x_scale = x.params().scale();
        let zeros = vec![0.0; self.geometry.out_channels];
        let layer = quantize_layer_on(grids, weight, &zeros, x_scale, spec)?;
        let steps: Vec<f32> = layer.scales.iter().map(|s| x_scale * s).collect();
        let mut y = Tensor::recycled_channels_last(&self.geometry.output_shape());
        self.run(&self.kernel(&layer.codes)?, &x, Sink::Scale(&steps, y.data_mut()));
        Ok(Product { x: Input::Codes(x), weight: layer.dequantize(), y })
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
            output: self.output.is_some(),
        }
    }
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
