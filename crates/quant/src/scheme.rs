use std::ops::RangeInclusive;

use crate::{Error, QParams, Result};

/// How a range of values becomes a scale and a zero-point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// The range, stretched to include zero, fills the codes; the zero-point is anywhere.
    Affine,
    /// The scale covers the larger of the two sides; the zero-point is in the middle of the codes.
    Symmetric,
}

/// The smallest scale there is: PyTorch's `eps`, the distance of 1 to the next `f32`.
pub const MIN_SCALE: f32 = f32::EPSILON;

/// The scale and zero-point for values in `min..=max`.
///
/// With `lo = min(min, 0)` and `hi = max(max, 0)`, so that zero is exact:
/// affine `scale = (hi − lo) / (qmax − qmin)`, `zero_point = qmin − round(lo / scale)`, clamped;
/// symmetric `scale = max(−lo, hi) / ((qmax − qmin) / 2)`, zero-point 0 for signed codes and the
/// middle for unsigned ones (128 of `0..=255`, rounded down of any others). The scale is at least [`MIN_SCALE`]: a channel of
/// zeros gets that. An observer that saw nothing (`min > max`) gives scale 1, zero-point 0 (or the
/// middle), as in PyTorch.
///
/// # Errors
/// [`Error::BadRange`] if a bound is NaN, or infinite though something was observed.
///
/// # Source
/// PyTorch `UniformQuantizationObserverBase._calculate_qparams`.
///
/// ```
/// use ottava_quant::{choose_qparams, Scheme};
///
/// let grid = choose_qparams(-1.0, 2.0, Scheme::Affine, 0..=127)?;
/// assert_eq!((grid.scale(), grid.zero_point()), (0.023622047, 42));
/// let grid = choose_qparams(-1.0, 2.0, Scheme::Symmetric, -127..=127)?;
/// assert_eq!((grid.scale(), grid.zero_point()), (0.015748031, 0));
/// # Ok::<(), ottava_quant::Error>(())
/// ```
pub fn choose_qparams(
    min: f32,
    max: f32,
    scheme: Scheme,
    codes: RangeInclusive<i32>,
) -> Result<QParams> {
    choose(min, max, scheme, codes, |scale| scale)
}

/// [`choose_qparams`] with the least power of two that is not below its scale: `2^⌈log2 scale⌉`. The
/// range stays covered, up to twice over, and every multiplier of a network of such scales is a shift.
///
/// # Errors
/// As [`choose_qparams`].
///
/// # Source
/// Jain et al. 2020 (TQT, arXiv:1903.08066), section 3.2.
///
/// ```
/// use ottava_quant::{choose_power_of_two, Scheme};
///
/// let grid = choose_power_of_two(-1.0, 2.0, Scheme::Affine, 0..=127)?; // 3/127 = 2^-5.4
/// assert_eq!((grid.scale(), grid.zero_point()), (1.0 / 32.0, 32));
/// # Ok::<(), ottava_quant::Error>(())
/// ```
pub fn choose_power_of_two(
    min: f32,
    max: f32,
    scheme: Scheme,
    codes: RangeInclusive<i32>,
) -> Result<QParams> {
    choose(min, max, scheme, codes, power_of_two_above)
}

/// The least power of two that is not below a normal `scale`; infinite if there is none.
pub(crate) fn power_of_two_above(scale: f32) -> f32 {
    const MANTISSA: u32 = (1 << 23) - 1;
    let bits = scale.to_bits();
    f32::from_bits(if bits & MANTISSA == 0 { bits } else { (bits & !MANTISSA) + (1 << 23) })
}

fn choose(
    min: f32,
    max: f32,
    scheme: Scheme,
    codes: RangeInclusive<i32>,
    widen: impl Fn(f32) -> f32,
) -> Result<QParams> {
    let (qmin, qmax) = (*codes.start(), *codes.end());
    if qmin >= qmax || qmax.checked_sub(qmin).is_none() {
        return Err(Error::BadCodes { qmin, qmax });
    }
    let middle = match (qmin, qmax) {
        (..0, _) => 0,
        (0, 255) => 128,
        _ => qmin + (qmax - qmin) / 2,
    };
    if min.is_nan() || max.is_nan() {
        return Err(Error::BadRange { min, max });
    }
    if min > max {
        let zero_point = if scheme == Scheme::Affine { 0.clamp(qmin, qmax) } else { middle };
        return QParams::new(1.0, zero_point, codes);
    }
    let (lo, hi) = (min.min(0.0), max.max(0.0));
    if !(lo.is_finite() && hi.is_finite()) {
        return Err(Error::BadRange { min, max });
    }
    let steps = (qmax - qmin) as f32;
    let (scale, zero_point) = match scheme {
        Scheme::Affine => {
            // A range beyond f32's is two finite halves: its scale is finite all the same.
            let whole = hi - lo;
            let scale = if whole.is_finite() { whole / steps } else { hi / steps - lo / steps };
            let scale = widen(scale.max(MIN_SCALE));
            (scale, qmin.saturating_sub((lo / scale).round_ties_even() as i32).clamp(qmin, qmax))
        }
        Scheme::Symmetric => (widen((hi.max(-lo) / (steps / 2.0)).max(MIN_SCALE)), middle),
    };
    QParams::new(scale, zero_point, codes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A byte's middle is 128; of codes that were chosen it is what floor division gives.
    #[test]
    fn the_middle_of_unsigned_codes_is_pytorchs() {
        let of = |codes| choose_qparams(-1.0, 2.0, Scheme::Symmetric, codes).unwrap().zero_point();
        assert_eq!([of(0..=255), of(0..=127), of(0..=15), of(-8..=7)], [128, 63, 7, 0]);
    }

    #[test]
    fn codes_that_cannot_be_counted_are_refused() {
        for codes in [i32::MIN..=i32::MAX, 5..=5, 2_000_000_000..=i32::MAX] {
            for scheme in [Scheme::Affine, Scheme::Symmetric] {
                let error = choose_qparams(-1.0, 2.0, scheme, codes.clone()).unwrap_err();
                assert!(matches!(error, Error::BadCodes { .. }), "{error}");
            }
        }
    }

    #[test]
    fn pytorchs_values() {
        let of = |scheme, codes| {
            let grid = choose_qparams(-1.0, 2.0, scheme, codes).unwrap();
            (grid.scale(), grid.zero_point())
        };
        assert_eq!(of(Scheme::Symmetric, -128..=127), (0.015_686_275, 0));
        assert_eq!(of(Scheme::Symmetric, 0..=255), (0.015_686_275, 128));
        assert_eq!(of(Scheme::Affine, 0..=15), (0.2, 5));
    }

    #[test]
    fn powers_of_two_cover_the_range_and_no_more_than_twice() {
        for (scale, power) in [(1.0, 1.0), (1.0001, 2.0), (0.3, 0.5), (MIN_SCALE, MIN_SCALE)] {
            assert_eq!(power_of_two_above(scale), power);
        }
        for scheme in [Scheme::Affine, Scheme::Symmetric] {
            for (min, max) in [(-1.0, 2.0), (0.0, 0.7), (-3.0, -1.0), (0.0, 0.0)] {
                let grid = choose_power_of_two(min, max, scheme, -128..=127).unwrap();
                let tight = choose_qparams(min, max, scheme, -128..=127).unwrap();
                assert_eq!(grid.scale().log2().fract(), 0.0);
                assert!((1.0..2.0).contains(&(grid.scale() / tight.scale())));
                let (lo, hi) = grid.range();
                let step = grid.scale();
                assert!(lo <= min + step && max - step <= hi, "{min}..{max} in {lo}..{hi}");
            }
        }
    }

    #[test]
    fn degenerate_ranges_have_an_answer() {
        let of = |min, max| choose_qparams(min, max, Scheme::Affine, 0..=255);
        assert_eq!(of(0.0, 0.0).unwrap().scale(), MIN_SCALE);
        assert_eq!(of(3.0, 3.0).unwrap(), QParams::new(3.0 / 255.0, 0, 0..=255).unwrap());
        assert_eq!(of(f32::INFINITY, f32::NEG_INFINITY).unwrap().scale(), 1.0);
        assert!(of(f32::NAN, 1.0).is_err() && of(0.0, f32::INFINITY).is_err());
        assert!(of(f32::MIN, f32::MAX).unwrap().scale().is_finite());
    }
}
