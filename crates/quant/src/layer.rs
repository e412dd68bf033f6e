use std::ops::RangeInclusive;

use bytemuck::Pod;
use ottava_tensor::conv::int8::Requantize;
use ottava_tensor::{Element, Level, Tensor, parallel};

use crate::scheme::power_of_two_above;
use crate::{Activation, Error, Levels, MIN_SCALE, QParams, Result, Scheme, choose_qparams};

/// How the weights of a layer are quantized: symmetric, `bits` wide, with a scale for each output
/// channel or one for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WeightSpec {
    /// Width of a code, 2 to 8.
    pub bits: u8,
    /// A scale for each output channel (axis 0) instead of one for the tensor.
    pub per_channel: bool,
    /// Which codes there are.
    pub levels: Levels,
    /// What the scale is made to fit.
    pub range: WeightRange,
    /// Whether scales are rounded up to powers of two.
    pub power_of_two: bool,
}

impl Default for WeightSpec {
    /// 8 bits, per channel, uniform, no weight clipped, any scale.
    fn default() -> Self {
        let (levels, range) = (Levels::Uniform, WeightRange::default());
        Self { bits: 8, per_channel: true, levels, range, power_of_two: false }
    }
}

/// The codes of which a file holds two in a byte.
pub(crate) const FOUR_BITS: RangeInclusive<i32> = -8..=7;

/// What the scale of weights is made to fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WeightRange {
    /// The largest weight: nothing is clipped.
    #[default]
    Largest,
    /// The least squared error of the rounded weights, of 80 scales up to that of the largest weight:
    /// worth it below 8 bits (Banner et al. 2019, arXiv:1810.05723).
    LeastError,
    /// Twice the mean magnitude over `√qmax` for a step: where LSQ begins to learn (Esser et al. 2020,
    /// arXiv:1902.08153, section 2.1). Made for 2 to 4 bits; at 8 bits it leaves most codes unused.
    MeanMagnitude,
}

/// Scales that [`WeightRange::LeastError`] tries.
const TRIALS: usize = 80;

impl WeightSpec {
    /// The grid of each output channel (all equal if there is one for the tensor).
    ///
    /// # Errors
    /// [`Error::BadRange`] if a weight is NaN or infinite; [`Error::Levels`] if there are no such
    /// levels.
    pub fn grids(&self, weight: &Tensor<f32>) -> Result<Vec<QParams>> {
        let channels = weight.shape().first().copied().unwrap_or(1);
        let weight = weight.contiguous();
        let values = weight.as_slice().expect("contiguous");
        if self.per_channel {
            let inner = (values.len() / channels.max(1)).max(1);
            let grids =
                parallel::map(values.len() / inner, |c| self.grid(&values[c * inner..][..inner]));
            grids.into_iter().collect()
        } else {
            Ok(vec![self.grid(values)?; channels])
        }
    }

    /// The grid of weights that share one.
    fn grid(&self, values: &[f32]) -> Result<QParams> {
        let most = largest(values);
        if !most.is_finite() {
            return Err(Error::BadRange { min: -most, max: most });
        }
        let codes = self.levels.codes(self.bits)?;
        let up_to = |most: f32| -> Result<QParams> {
            let grid = choose_qparams(-most, most, Scheme::Symmetric, codes.clone())?;
            self.grid_of_scale(grid.scale())
        };
        match self.range {
            WeightRange::Largest => up_to(most),
            WeightRange::MeanMagnitude => {
                let sum: f64 = values.iter().map(|w| f64::from(w.abs())).sum();
                let mean = (sum / values.len().max(1) as f64) as f32;
                self.grid_of_scale(2.0 * mean / (*codes.end() as f32).sqrt())
            }
            WeightRange::LeastError => {
                let mut best = up_to(most)?;
                let mut least = self.squared_error(values, &best);
                for trial in (1..TRIALS).rev() {
                    let grid = up_to(most * trial as f32 / TRIALS as f32)?;
                    let error = self.squared_error(values, &grid);
                    if error < least {
                        (best, least) = (grid, error);
                    }
                }
                Ok(best)
            }
        }
    }

    fn squared_error(&self, values: &[f32], grid: &QParams) -> f64 {
        let error = |w: f32| f64::from(self.round(grid, w) - w);
        values.iter().map(|&w| error(w).powi(2)).sum()
    }

    /// Bytes that `count` weights take in a file: half a byte each where all codes lie in −8..=7, four where the
    /// levels [have no codes](Levels::has_codes).
    ///
    /// ```
    /// use ottava_quant::{Levels, WeightSpec};
    ///
    /// let narrow = WeightSpec { bits: 4, ..WeightSpec::default() };
    /// assert_eq!(narrow.bytes(9), 5);
    /// // Codes up to ten.
    /// assert_eq!(WeightSpec { levels: Levels::AdditivePowerOfTwo, ..narrow }.bytes(9), 9);
    /// // Powers of two of more than 4 bits are floats.
    /// assert_eq!(WeightSpec { bits: 8, levels: Levels::PowerOfTwo, ..narrow }.bytes(9), 36);
    /// ```
    pub fn bytes(&self, count: usize) -> usize {
        if !self.levels.has_codes(self.bits) {
            return count * size_of::<f32>();
        }
        let range = self.levels.codes(self.bits);
        let narrow = range.is_ok_and(|codes| {
            FOUR_BITS.contains(codes.start()) && FOUR_BITS.contains(codes.end())
        });
        if narrow { count.div_ceil(2) } else { count }
    }

    /// The code of a weight on its channel's grid: the nearest of the [`levels`](Self::levels). They have
    /// codes ([`Levels::has_codes`]).
    pub fn code(&self, grid: &QParams, weight: f32) -> i8 {
        self.levels.code(self.bits, grid, weight)
    }

    /// Whether the gradient of a rounded weight passes: where the weight was not clipped.
    pub fn covers(&self, grid: &QParams, weight: f32) -> bool {
        self.levels.covers(self.bits, grid, weight)
    }

    /// The value of the level that a weight is rounded to.
    pub fn round(&self, grid: &QParams, weight: f32) -> f32 {
        self.levels.round(self.bits, grid, weight)
    }

    /// `weight` rounded, in float: each output channel to its grid.
    ///
    /// # Errors
    /// [`Error::ChannelCount`] if there are not as many grids as channels; [`Error::BadRange`] if a weight
    /// is NaN or infinite.
    pub fn fake_quantize(&self, weight: &Tensor<f32>, grids: &[QParams]) -> Result<Tensor<f32>> {
        let shape = weight.shape();
        if grids.len() != shape.first().copied().unwrap_or(1) {
            return Err(Error::ChannelCount {
                axis: 0,
                shape: shape.to_vec(),
                params: grids.len(),
            });
        }
        check_finite(weight)?;
        Ok(map_channels(weight, grids, |grid, w| self.round(grid, w)))
    }

    /// The grid of a given scale: a learned one. If scales are powers of two, it is rounded up to one.
    ///
    /// # Errors
    /// [`Error::Levels`] if there are no such levels; what [`QParams::new`] says of the scale.
    pub fn grid_of_scale(&self, scale: f32) -> Result<QParams> {
        // `max` would take a NaN for the least scale.
        let scale = if scale < MIN_SCALE { MIN_SCALE } else { scale };
        let scale =
            if self.power_of_two && scale.is_finite() { power_of_two_above(scale) } else { scale };
        QParams::new(scale, 0, self.levels.codes(self.bits)?)
    }
}

/// The integer parameters of a convolution or linear layer: what training, conversion and export
/// share, so that they cannot differ.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedLayer {
    /// Weight codes, in the weight's own shape (`[o, c, kh, kw]` or `[o, k]`), row-major.
    pub codes: Tensor<i8>,
    /// The scale of each output channel.
    pub scales: Vec<f32>,
    /// The bias of each output channel in units of `x_scale · scale`.
    pub bias: Vec<i32>,
}

/// Scales and codes of `weight`, and `bias` rounded to `x_scale · scale`: `round(b / (x_scale · s))`.
///
/// A channel whose bias would take more than half of `i32` gets the least scale for which it does not:
/// the other half is for the sum of products, below 2³⁰ for up to 33 155 terms.
///
/// # Errors
/// [`Error::BadRange`] if a weight or a bias is NaN or infinite; [`Error::Levels`] if the levels have no
/// integer codes.
///
/// # Source
/// ONNX `QLinearConv` (bias); the widened scale as ONNX Runtime's quantizer has it.
pub fn quantize_layer(
    weight: &Tensor<f32>,
    bias: &[f32],
    x_scale: f32,
    spec: WeightSpec,
) -> Result<QuantizedLayer> {
    quantize_layer_on(spec.grids(weight)?, weight, bias, x_scale, spec)
}

/// [`quantize_layer`] with a given grid for each output channel: a learned scale.
///
/// # Errors
/// As [`quantize_layer`]; [`Error::ChannelCount`] if there are not as many grids as channels.
pub fn quantize_layer_on(
    mut grids: Vec<QParams>,
    weight: &Tensor<f32>,
    bias: &[f32],
    x_scale: f32,
    spec: WeightSpec,
) -> Result<QuantizedLayer> {
    if !spec.levels.has_codes(spec.bits) {
        return Err(Error::Levels { levels: spec.levels, bits: spec.bits });
    }
    if grids.len() != weight.shape().first().copied().unwrap_or(1) || bias.len() != grids.len() {
        return Err(Error::ChannelCount {
            axis: 0,
            shape: weight.shape().to_vec(),
            params: bias.len(),
        });
    }
    check_finite(weight)?;
    for (grid, &b) in grids.iter_mut().zip(bias) {
        if !b.is_finite() {
            return Err(Error::BadRange { min: b, max: b });
        }
        // In f64: the bound itself must not round.
        let least = 1.0001 * f64::from(b.abs()) / (f64::from(x_scale) * f64::from(i32::MAX / 2));
        if f64::from(grid.scale()) < least {
            *grid = spec.grid_of_scale(least as f32)?;
        }
    }
    let codes = map_channels(weight, &grids, |grid, w| spec.code(grid, w));
    let scales: Vec<f32> = grids.iter().map(QParams::scale).collect();
    let bias = bias.iter().zip(&scales).map(|(&b, &s)| quantize_bias(b, x_scale * s)).collect();
    Ok(QuantizedLayer { codes, scales, bias })
}

fn quantize_bias(bias: f32, scale: f32) -> i32 {
    (bias / scale).round_ties_even() as i32
}

impl QuantizedLayer {
    /// The weight's values: `scale · code`.
    pub fn dequantize(&self) -> Tensor<f32> {
        map_channels(&self.codes, &self.scales, |&scale, q| scale * f32::from(q))
    }

    /// The step from this layer's sums to codes on the grid `y`, clamped by the fused activation:
    /// `multiplier = x_scale · scale / y_scale` in `f32`, as ONNX Runtime's `QLinearConv` has it.
    pub fn requantize(&self, x_scale: f32, y: QParams, activation: Activation) -> Requantize {
        let y = activation.clamp(y.to_unsigned());
        Requantize {
            bias: self.bias.clone(),
            multiplier: self.scales.iter().map(|s| x_scale * s / y.scale()).collect(),
            zero_point: y.zero_point() as u8,
            low: y.qmin() as u8,
            high: y.qmax() as u8,
        }
    }
}

/// Weight and bias of a convolution with the BatchNorm behind it folded in:
/// `f = γ / √(var + eps)`, `W' = W · f`, `b' = β + (b − mean) · f`, per output channel.
///
/// # Errors
/// [`Error::ChannelCount`] if a vector has another length than the weight has output channels.
///
/// # Source
/// Jacob et al. 2018, section 3.2 (arXiv:1712.05877).
pub fn fold_batch_norm(
    weight: &Tensor<f32>,
    bias: Option<&[f32]>,
    norm: &BatchNormStats<'_>,
) -> Result<(Tensor<f32>, Vec<f32>)> {
    let channels = weight.shape().first().copied().unwrap_or(0);
    let lengths = [norm.gamma, norm.beta, norm.mean, norm.var, bias.unwrap_or(norm.mean)];
    if let Some(wrong) = lengths.iter().find(|values| values.len() != channels) {
        return Err(Error::ChannelCount {
            axis: 0,
            shape: weight.shape().to_vec(),
            params: wrong.len(),
        });
    }
    let factors = norm.factors();
    let folded = map_channels(weight, &factors, |&f, w| w * f);
    let bias = (0..channels)
        .map(|c| norm.beta[c] + (bias.map_or(0.0, |b| b[c]) - norm.mean[c]) * factors[c])
        .collect();
    Ok((folded, bias))
}

/// `f(channels[c], value)` of each value of each output channel `c`, row-major.
///
/// # Panics
/// Unless there is one of `channels` for each output channel.
fn map_channels<T: Element + Pod, C: Sync, U: Element + Pod>(
    weight: &Tensor<T>,
    channels: &[C],
    f: impl Fn(&C, T) -> U + Sync + Send,
) -> Tensor<U> {
    let (weight, level) = (weight.contiguous(), Level::current());
    let values = weight.as_slice().expect("contiguous");
    let inner = (values.len() / channels.len().max(1)).max(1);
    assert!(values.is_empty() || inner * channels.len() == values.len(), "one a channel");
    let many = parallel::CHUNK.div_ceil(inner);
    let mut mapped = Tensor::recycled(weight.shape());
    parallel::for_each_chunk(mapped.data_mut(), many * inner, |i, mapped| {
        let values = values[i * many * inner..].chunks(inner);
        let rows = mapped.chunks_mut(inner).zip(values).zip(&channels[i * many..]);
        level.vectorize(
            #[inline(always)]
            || {
                for ((mapped, values), channel) in rows {
                    for (mapped, &value) in mapped.iter_mut().zip(values) {
                        *mapped = f(channel, value);
                    }
                }
            },
        );
    });
    mapped
}

/// Refuses weights of which one is NaN or infinite: rounding would give it a code all the same.
fn check_finite(weight: &Tensor<f32>) -> Result<()> {
    let most = largest(weight.contiguous().as_slice().expect("contiguous"));
    if most.is_finite() { Ok(()) } else { Err(Error::BadRange { min: -most, max: most }) }
}

/// The largest magnitude; infinite or NaN if one of the values is.
fn largest(values: &[f32]) -> f32 {
    const LANES: usize = 32;
    let (mut most, mut poison) = ([0.0f32; LANES], [0.0f32; LANES]);
    Level::current().vectorize(
        #[inline(always)]
        || {
            for values in values.chunks(LANES) {
                for ((most, poison), w) in most.iter_mut().zip(&mut poison).zip(values) {
                    let w = w.abs();
                    *most = if w > *most { w } else { *most };
                    // A NaN is no larger than anything.
                    *poison += 0.0 * w;
                }
            }
        },
    );
    let most = most.into_iter().fold(0.0, f32::max);
    if most.is_infinite() { most } else { most + poison.iter().sum::<f32>() }
}

/// The four vectors of a BatchNorm, one value a channel.
#[derive(Clone, Copy, Debug)]
pub struct BatchNormStats<'a> {
    /// Weight.
    pub gamma: &'a [f32],
    /// Bias.
    pub beta: &'a [f32],
    /// Running mean.
    pub mean: &'a [f32],
    /// Running variance.
    pub var: &'a [f32],
    /// Added to the variance.
    pub eps: f32,
}

impl BatchNormStats<'_> {
    /// `γ / √(var + eps)`.
    pub fn factors(&self) -> Vec<f32> {
        self.gamma.iter().zip(self.var).map(|(g, v)| g / (v + self.eps).sqrt()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_weight_of_a_channel_gets_the_largest_code() {
        let weight = Tensor::new(&[3, 2], [1.1, -2.0, 0.5, 0.25, 0.0, 0.0]).unwrap();
        let layer = quantize_layer(&weight, &[0.0; 3], 0.1, WeightSpec::default()).unwrap();
        assert_eq!(layer.codes.to_vec(), [70, -127, 127, 64, 0, 0]);
        let whole = WeightSpec { per_channel: false, bits: 4, ..Default::default() };
        let layer = quantize_layer(&weight, &[0.0; 3], 0.1, whole).unwrap();
        assert_eq!(layer.codes.to_vec(), [4, -7, 2, 1, 0, 0]);
        assert_eq!(layer.scales[0], layer.scales[2]);
    }

    #[test]
    fn a_bias_too_large_for_i32_widens_its_channels_scale() {
        let weight = Tensor::new(&[2, 1], [1e-7, 1.0]).unwrap();
        let layer = quantize_layer(&weight, &[1e6, 1.0], 1e-3, WeightSpec::default()).unwrap();
        let value = f64::from(layer.bias[0]) * f64::from(layer.scales[0]) * 1e-3;
        assert!((value / 1e6 - 1.0).abs() < 1e-5, "{value}");
        assert_eq!(layer.scales[1], 1.0 / 127.0);
    }

    /// The widened channel keeps its meaning: `scale · code` is the weight to half of the wider step, and
    /// scales that are powers of two stay so.
    #[test]
    fn a_widened_channel_rounds_its_weights_anew() {
        let weight = Tensor::new(&[1, 2], [1e-3, -4e-4]).unwrap();
        for power_of_two in [false, true] {
            let spec = WeightSpec { power_of_two, ..Default::default() };
            let layer = quantize_layer(&weight, &[3e4], 1e-3, spec).unwrap();
            let step = layer.scales[0];
            assert!(step > 1e-3 / 127.0 * 2.0, "{step} is not wider");
            assert_eq!(step.log2().fract() == 0.0, power_of_two);
            assert!(layer.bias[0].unsigned_abs() <= i32::MAX as u32 / 2);
            for (w, rounded) in weight.iter().zip(layer.dequantize().iter()) {
                assert!((w - rounded).abs() <= step / 2.0, "{w} became {rounded}, step {step}");
            }
        }
    }

    #[test]
    fn lsq_starts_from_the_mean_magnitude() {
        let weight = Tensor::new(&[1, 4], [1.0, -2.0, 3.0, -0.0]).unwrap();
        let spec = WeightSpec { bits: 3, range: WeightRange::MeanMagnitude, ..Default::default() };
        assert_eq!(spec.grids(&weight).unwrap()[0].scale(), 2.0 * 1.5 / 3f32.sqrt());
    }

    /// Folding commutes with rounding for every range: a channel times f has |f| times the scale.
    #[test]
    fn a_scaled_channel_has_the_same_codes() {
        let values: Vec<f32> =
            (0..60).map(|i| ((i * 37 % 61) as f32 / 30.0 - 1.0).powi(3)).collect();
        for range in [WeightRange::Largest, WeightRange::LeastError, WeightRange::MeanMagnitude] {
            for f in [-0.25, 4.0] {
                let spec = WeightSpec { bits: 4, range, ..Default::default() };
                let codes = |f: f32| {
                    let values: Vec<f32> = values.iter().map(|w| w * f).collect();
                    let weight = Tensor::new(&[2, 30], values).unwrap();
                    let layer = quantize_layer(&weight, &[0.0; 2], 0.1, spec).unwrap();
                    layer.codes.to_vec()
                };
                let sign = if f < 0.0 { -1 } else { 1 };
                let plain: Vec<i8> = codes(1.0).iter().map(|q| q * sign).collect();
                assert_eq!(codes(f), plain, "{range:?} times {f}");
            }
        }
    }

    #[test]
    fn a_nan_weight_is_refused() {
        let weight = Tensor::new(&[1, 2], [f32::NAN, 1.0]).unwrap();
        let error = quantize_layer(&weight, &[0.0], 1.0, WeightSpec::default()).unwrap_err();
        assert!(matches!(error, Error::BadRange { .. }));
    }

    /// On grids of its own too, whose scales say nothing of the weights; and so is such a scale.
    #[test]
    fn nothing_that_is_not_finite_becomes_a_code() {
        let spec = WeightSpec::default();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let weight = Tensor::new(&[1, 2], [bad, 1.0]).unwrap();
            let grids = vec![spec.grid_of_scale(0.5).unwrap()];
            let error = spec.fake_quantize(&weight, &grids).unwrap_err();
            assert!(matches!(error, Error::BadRange { .. }), "{error}");
            let error = quantize_layer_on(grids, &weight, &[0.0], 1.0, spec).unwrap_err();
            assert!(matches!(error, Error::BadRange { .. }), "{error}");
        }
        for power_of_two in [false, true] {
            for bad in [f32::NAN, f32::INFINITY] {
                let error = WeightSpec { power_of_two, ..spec }.grid_of_scale(bad).unwrap_err();
                assert!(matches!(error, Error::BadScale { .. }), "{error}");
            }
        }
    }

    #[test]
    fn folding_keeps_a_channel_of_gamma_zero_finite() {
        let weight = Tensor::new(&[2, 1], [2.0, 3.0]).unwrap();
        let norm = BatchNormStats {
            gamma: &[0.0, -1.0],
            beta: &[0.5, 0.25],
            mean: &[1.0, 2.0],
            var: &[4.0, 0.25],
            eps: 0.0,
        };
        let (folded, bias) = fold_batch_norm(&weight, None, &norm).unwrap();
        assert_eq!(folded.to_vec(), [0.0, -6.0]);
        assert_eq!(bias, [0.5, 4.25]);
    }
}
