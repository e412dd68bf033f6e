use std::ops::RangeInclusive;

use ottava_tensor::{Tensor, conv};

use crate::{Error, Result};

/// A grid of representable values: a scale, a zero-point, and the range of codes.
///
/// `quantize(x) = clamp(round(x · (1/scale)) + zero_point, qmin, qmax)`, ties to even;
/// `dequantize(q) = scale · (q − zero_point)`. Every quantization of the project goes through these
/// two functions. The reciprocal is taken once, in `f32`: dividing gives other codes near ties.
///
/// # Source
/// Jacob et al. 2018, eq. 1 (arXiv:1712.05877); PyTorch `torch.quantize_per_tensor`.
///
/// ```
/// use ottava_quant::QParams;
///
/// let grid = QParams::new(0.5, 3, 0..=15)?;
/// assert_eq!(grid.quantize(1.3), 6);
/// assert_eq!(grid.dequantize(6), 1.5);
/// assert_eq!([f32::INFINITY, f32::NEG_INFINITY, f32::NAN].map(|x| grid.quantize(x)), [15, 0, 3]);
/// # Ok::<(), ottava_quant::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QParams {
    scale: f32,
    reciprocal: f32,
    zero_point: i32,
    qmin: i32,
    qmax: i32,
}

impl QParams {
    /// A grid.
    ///
    /// # Errors
    /// [`Error::BadScale`], [`Error::BadZeroPoint`], [`Error::BadCodes`].
    pub fn new(scale: f32, zero_point: i32, codes: RangeInclusive<i32>) -> Result<Self> {
        // Files keep codes as floats, which hold integers up to here.
        const LARGEST: i32 = 1 << 24;
        let (qmin, qmax) = codes.into_inner();
        let held = -LARGEST <= qmin && qmax <= LARGEST;
        if qmin >= qmax || !held || qmax - qmin > 0xFFFF {
            return Err(Error::BadCodes { qmin, qmax });
        }
        // A subnormal scale has no finite reciprocal.
        if !(scale.is_finite() && scale > 0.0 && (1.0 / scale).is_finite()) {
            return Err(Error::BadScale { channel: 0, scale });
        }
        if !(qmin..=qmax).contains(&zero_point) {
            return Err(Error::BadZeroPoint { zero_point, qmin, qmax });
        }
        Ok(Self { scale, reciprocal: 1.0 / scale, zero_point, qmin, qmax })
    }

    /// The distance between neighbouring values.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// The code of zero.
    pub fn zero_point(&self) -> i32 {
        self.zero_point
    }

    /// The smallest code.
    pub fn qmin(&self) -> i32 {
        self.qmin
    }

    /// The largest code.
    pub fn qmax(&self) -> i32 {
        self.qmax
    }

    /// The smallest and the largest representable value.
    pub fn range(&self) -> (f32, f32) {
        (self.dequantize(self.qmin), self.dequantize(self.qmax))
    }

    /// The code of `x`. Infinities clamp; NaN becomes the zero-point.
    #[inline(always)]
    pub fn quantize(&self, x: f32) -> i32 {
        round_clamped(x * self.reciprocal, self.low(), self.high()) + self.zero_point
    }

    /// The value of a code.
    #[inline(always)]
    pub fn dequantize(&self, code: i32) -> f32 {
        conv::f32::dequantize(code, self.zero_point, self.scale)
    }

    /// `x` rounded to the grid: `dequantize(quantize(x))`, in one step.
    #[inline(always)]
    pub fn fake_quantize(&self, x: f32) -> f32 {
        self.scale * round_clamped(x * self.reciprocal, self.low(), self.high()) as f32
    }

    /// Whether the code of `x` lies in the range before clamping: the straight-through estimator lets
    /// the gradient pass there, half a step beyond the outermost values included. NaN does not pass.
    #[inline(always)]
    pub fn covers(&self, x: f32) -> bool {
        let steps = x * self.reciprocal;
        let (low, high) = (self.low(), self.high());
        let rounded = round_clamped(steps, low - 1.0, high + 1.0) as f32;
        (low <= rounded) & (rounded <= high) & !steps.is_nan()
    }

    /// Whether its codes are unsigned bytes.
    pub fn is_unsigned_byte(&self) -> bool {
        self.qmin >= 0 && self.qmax <= i32::from(u8::MAX)
    }

    /// The same grid with codes stored from zero up, as all activations are: codes, zero-point and
    /// range move by `−qmin` of the signed type (−128), which changes no value.
    pub fn to_unsigned(self) -> Self {
        let shift = if self.qmin < 0 { 128 } else { 0 };
        Self {
            zero_point: self.zero_point + shift,
            qmin: self.qmin + shift,
            qmax: self.qmax + shift,
            ..self
        }
    }

    /// The same grid with fewer codes.
    pub(crate) fn between(self, qmin: i32, qmax: i32) -> Self {
        Self { qmin, qmax, ..self }
    }

    #[inline(always)]
    fn low(&self) -> f32 {
        (self.qmin - self.zero_point) as f32
    }

    #[inline(always)]
    fn high(&self) -> f32 {
        (self.qmax - self.zero_point) as f32
    }
}

/// `clamp(round(x), low, high)` for integral bounds below 2²²; ties to even; 0 for NaN.
///
/// Clamping first changes nothing, since the bounds are integers, and lets one addition do the
/// rounding: in `[2²³, 2²⁴)` a float's last place is 1, so adding 1.5 · 2²³ rounds to an integer,
/// by the default rounding mode ties to even, and leaves it in the low bits.
#[inline(always)]
fn round_clamped(x: f32, low: f32, high: f32) -> i32 {
    const SHIFT: f32 = 12_582_912.0;
    // By comparison: of `max` and `min`, what NaN would be is worked out again.
    let x = if x.is_nan() { 0.0 } else { x };
    let x = if x > low { x } else { low };
    let x = if x < high { x } else { high };
    ((x + SHIFT).to_bits() as i32).wrapping_sub(SHIFT.to_bits() as i32)
}

/// Quantizes a tensor of activations to unsigned codes. Parameters with signed codes are moved to
/// unsigned ones first ([`QParams::to_unsigned`]).
///
/// # Panics
/// If the codes are more than a byte holds: a grid may have up to 16 bits.
pub fn quantize(x: &Tensor<f32>, params: QParams) -> Tensor<u8> {
    let params = params.to_unsigned();
    assert!(params.is_unsigned_byte(), "codes of a byte");
    x.map(move |x| params.quantize(x) as u8)
}

/// The values of unsigned codes: `scale · (code − zero_point)`.
pub fn dequantize(codes: &Tensor<u8>, params: QParams) -> Tensor<f32> {
    let params = params.to_unsigned();
    codes.map(move |code| params.dequantize(i32::from(code)))
}

/// Quantizes `x` with one scale and zero-point for each index of `axis`.
///
/// # Shapes
/// `x`: any, its `axis` of length `C`; `params`: `C`, or one for all; result: as `x`.
///
/// # Errors
/// [`Error::ChannelCount`] if `x` has no such axis of that length.
///
/// # Source
/// ONNX `QuantizeLinear` with `axis`; PyTorch `torch.quantize_per_channel`.
///
/// ```
/// # use ottava_quant::{quantize_per_channel, QParams};
/// # use ottava_tensor::Tensor;
/// let weight = Tensor::new(&[2, 2], [0.5, -1.0, 8.0, -4.0])?;
/// let params = [QParams::new(0.5, 0, -127..=127)?, QParams::new(4.0, 0, -127..=127)?];
/// assert_eq!(quantize_per_channel(&weight, &params, 0)?.to_vec(), [1, -2, 2, -1]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn quantize_per_channel(
    x: &Tensor<f32>,
    params: &[QParams],
    axis: usize,
) -> Result<Tensor<i32>> {
    map_per_channel(x, params, axis, QParams::quantize)
}

/// [`QParams::fake_quantize`] with one scale and zero-point for each index of `axis`.
///
/// # Errors
/// As [`quantize_per_channel`].
pub fn fake_quantize_per_channel(
    x: &Tensor<f32>,
    params: &[QParams],
    axis: usize,
) -> Result<Tensor<f32>> {
    map_per_channel(x, params, axis, QParams::fake_quantize)
}

/// [`QParams::covers`] with one scale and zero-point for each index of `axis`.
///
/// # Errors
/// As [`quantize_per_channel`].
pub fn covers_per_channel(
    x: &Tensor<f32>,
    params: &[QParams],
    axis: usize,
) -> Result<Tensor<bool>> {
    map_per_channel(x, params, axis, QParams::covers)
}

fn map_per_channel<T: ottava_tensor::Element>(
    x: &Tensor<f32>,
    params: &[QParams],
    axis: usize,
    f: impl Fn(&QParams, f32) -> T,
) -> Result<Tensor<T>> {
    let shape = x.shape();
    if params.len() == 1 && axis < shape.len().max(1) {
        let values: Vec<T> = x.iter().map(|x| f(&params[0], x)).collect();
        return Ok(Tensor::new(shape, values)?);
    }
    if shape.get(axis) != Some(&params.len()) {
        return Err(Error::ChannelCount { axis, shape: shape.to_vec(), params: params.len() });
    }
    let inner: usize = shape[axis + 1..].iter().product();
    let values: Vec<T> = x
        .to_vec()
        .chunks(inner.max(1))
        .enumerate()
        .flat_map(|(row, values)| {
            let params = &params[row % params.len()];
            values.iter().map(|&x| f(params, x)).collect::<Vec<_>>()
        })
        .collect();
    Ok(Tensor::new(shape, values)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn grids() -> impl Strategy<Value = QParams> {
        let codes =
            prop_oneof![Just((0, 255)), Just((-128, 127)), Just((-127, 127)), Just((-7, 7))];
        (codes, -16.0f32..10.0, 0.0f32..1.0).prop_map(|((qmin, qmax), exponent, at)| {
            let zero_point = qmin + ((qmax - qmin) as f32 * at) as i32;
            QParams::new(exponent.exp2(), zero_point, qmin..=qmax).unwrap()
        })
    }

    proptest! {
        #[test]
        fn codes_survive_the_round_trip(grid in grids(), code in -128..=255) {
            prop_assume!((grid.qmin()..=grid.qmax()).contains(&code));
            prop_assert_eq!(grid.quantize(grid.dequantize(code)), code);
        }

        #[test]
        fn fake_quantization_is_idempotent_and_in_range(grid in grids(), x in any::<f32>()) {
            let once = grid.fake_quantize(x);
            prop_assert_eq!(once.to_bits(), grid.fake_quantize(once).to_bits());
            prop_assert_eq!(once, grid.dequantize(grid.quantize(x)));
            prop_assert!((grid.qmin()..=grid.qmax()).contains(&grid.quantize(x)));
        }

        #[test]
        fn the_error_is_at_most_half_a_step_inside_the_range(grid in grids(), at in 0.0f32..=1.0) {
            let (low, high) = grid.range();
            let x = low + (high - low) * at;
            let (error, step) = ((grid.fake_quantize(x) - x).abs(), grid.scale());
            // One last place of x and of the quotient x / scale, as a multiple of the step.
            let slack = 2.0 * f32::EPSILON * x.abs().max(step);
            prop_assert!(error <= step / 2.0 + slack, "{error} > {step} / 2 at {x}");
        }

        #[test]
        fn quantization_is_monotone(grid in grids(), a in any::<f32>(), b in any::<f32>()) {
            prop_assume!(a <= b);
            prop_assert!(grid.quantize(a) <= grid.quantize(b));
        }

        #[test]
        fn rounding_equals_the_standard_library(x in -70000.0f32..70000.0, low in -40000i32..0, high in 0i32..40000) {
            let expected = x.round_ties_even().clamp(low as f32, high as f32) as i32;
            prop_assert_eq!(round_clamped(x, low as f32, high as f32), expected);
        }

        #[test]
        fn a_channel_is_quantized_as_a_tensor_would_be(
            grids in prop::collection::vec(grids(), 3),
            x in prop::collection::vec(-300.0f32..300.0, 24),
            axis in 0usize..3,
        ) {
            let shape = [[3, 2, 4], [2, 3, 4], [2, 4, 3]][axis];
            let x = Tensor::new(&shape, x).unwrap();
            let whole = quantize_per_channel(&x, &grids, axis).unwrap();
            for (c, grid) in grids.iter().enumerate() {
                let slice = |t: &Tensor<f32>| t.slice(axis, c..c + 1, 1).unwrap();
                let alone = quantize_per_channel(&slice(&x), &[*grid], axis).unwrap();
                prop_assert_eq!(whole.slice(axis, c..c + 1, 1).unwrap(), alone);
            }
        }
    }

    #[test]
    fn ties_round_to_even_before_the_zero_point_is_added() {
        let x = [0.25, 0.75, 1.25, -0.25, -0.75];
        let plain = QParams::new(0.5, 0, -128..=127).unwrap();
        assert_eq!(x.map(|x| plain.quantize(x)), [0, 2, 2, 0, -2]);
        let shifted = QParams::new(0.5, 1, -128..=127).unwrap();
        assert_eq!(x.map(|x| shifted.quantize(x)), [1, 3, 3, 1, -1]);
    }

    #[test]
    fn the_reciprocal_is_multiplied() {
        let grid = QParams::new(0.002_148_548_6, 0, 0..=255).unwrap();
        assert_eq!(grid.quantize(0.273_939_94), 128);
    }

    #[test]
    fn the_gradient_passes_half_a_step_beyond_the_ends() {
        let grid = QParams::new(0.5, 3, 0..=15).unwrap();
        let passes = [6.25, 6.26, -1.5, -1.75, f32::NAN, f32::INFINITY];
        assert_eq!(passes.map(|x| grid.covers(x)), [true, false, true, false, false, false]);
    }

    #[test]
    fn impossible_grids_are_refused() {
        assert!(QParams::new(0.0, 0, 0..=255).is_err());
        assert!(QParams::new(f32::NAN, 0, 0..=255).is_err());
        assert!(QParams::new(1e-42, 0, 0..=255).is_err());
        assert!(QParams::new(1.0, 256, 0..=255).is_err());
        #[allow(clippy::reversed_empty_ranges)]
        let empty = QParams::new(1.0, 0, 1..=0);
        assert_eq!(empty, Err(Error::BadCodes { qmin: 1, qmax: 0 }));
        // What a file keeps as floats.
        let largest = 1 << 24;
        assert!(QParams::new(1.0, largest, largest - 9..=largest).is_ok());
        assert!(QParams::new(1.0, largest + 1, largest - 9..=largest + 1).is_err());
        assert!(QParams::new(1.0, i32::MIN, i32::MIN..=i32::MAX).is_err());
    }
}
