use std::ops::RangeInclusive;

use crate::{Error, QParams, Result};

/// Which levels the weights of a layer may take.
///
/// Up to the widths below, the levels are whole multiples of the scale that fit `i8`, so that every set
/// runs on the same integer kernels:
///
/// | levels | positive codes at 4 bits | widths in integers | in float |
/// | --- | --- | --- | --- |
/// | uniform | 1 2 3 4 5 6 7 | 2–8 | |
/// | power of two | 1 2 4 8 16 32 64 | 2–4 | 5–8 |
/// | additive power of two | 1 2 3 4 6 8 10 | 2–5 | |
///
/// Powers of two of 5 bits and more have no `i8` code for the smallest level beside the largest (it is
/// 2⁻¹⁴ of it at 5 bits): such a layer computes in float, with rounded weights. Its scale is the
/// largest level.
///
/// # Source
/// Powers of two: Miyashita et al. 2016 (arXiv:1603.01025). Additive powers of two: Li et al. 2020 (APoT,
/// arXiv:1909.13144).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Levels {
    /// Every whole number.
    #[default]
    Uniform,
    /// 0 and ±2ʲ, the nearest by value: least squared error.
    PowerOfTwo,
    /// 0 and ±2ʲ, the nearest in log2, as the paper rounds: a weight between two levels goes up from `√2`
    /// times the lower one, and from `1/√2` of the smallest level.
    PowerOfTwoLog2,
    /// 0 and ± sums of two powers of two, the nearest by value.
    AdditivePowerOfTwo,
}

/// The levels of APoT's two-term set, times their common denominator 48.
const APOT_5: &[i32] = &[0, 1, 2, 3, 4, 6, 8, 9, 12, 16, 18, 24, 32, 33, 36, 48];
/// The three-bit set, in tenths.
const APOT_4: &[i32] = &[0, 1, 2, 3, 4, 6, 8, 10];
/// Powers of two down to 2⁻⁶.
const POWERS: &[i32] = &[0, 1, 2, 4, 8, 16, 32, 64];

/// How the levels of a set are told apart.
enum Set {
    /// Every code.
    Uniform,
    /// These codes and their opposites.
    Codes(&'static [i32]),
    /// `2⁻ʲ` of the scale for `j` up to this.
    Powers(i32),
}

impl Levels {
    fn set(self, bits: u8) -> Result<Set> {
        Ok(match (self, bits) {
            (Self::Uniform, 2..=8) => Set::Uniform,
            (Self::PowerOfTwo | Self::PowerOfTwoLog2 | Self::AdditivePowerOfTwo, 2) => {
                Set::Codes(&POWERS[..2])
            }
            (Self::PowerOfTwo | Self::PowerOfTwoLog2 | Self::AdditivePowerOfTwo, 3) => {
                Set::Codes(&POWERS[..4])
            }
            (Self::PowerOfTwo | Self::PowerOfTwoLog2, 4) => Set::Codes(POWERS),
            (Self::PowerOfTwo | Self::PowerOfTwoLog2, 5..=8) => Set::Powers((1 << (bits - 1)) - 2),
            (Self::AdditivePowerOfTwo, 4) => Set::Codes(APOT_4),
            (Self::AdditivePowerOfTwo, 5) => Set::Codes(APOT_5),
            _ => return Err(Error::Levels { levels: self, bits }),
        })
    }

    /// Whether weights of `bits` bits have integer codes; a layer of others computes in float.
    pub fn has_codes(self, bits: u8) -> bool {
        matches!(self.set(bits), Ok(Set::Uniform | Set::Codes(_)))
    }

    /// The range of codes of symmetric weights of `bits` bits. Uniform:
    /// `−(2^(bits−1) − 1) ..= 2^(bits−1) − 1`. Leaving out the most negative code makes negation exact
    /// and keeps pair sums in range on every CPU. Levels without codes: `−1..=1`, in units of the largest.
    ///
    /// # Errors
    /// [`Error::Levels`] if there is no set of that width.
    ///
    /// ```
    /// use ottava_quant::Levels;
    ///
    /// assert_eq!(Levels::Uniform.codes(4)?, -7..=7);
    /// assert_eq!(Levels::AdditivePowerOfTwo.codes(4)?, -10..=10);
    /// assert!(Levels::PowerOfTwo.codes(9).is_err());
    /// # Ok::<(), ottava_quant::Error>(())
    /// ```
    pub fn codes(self, bits: u8) -> Result<RangeInclusive<i32>> {
        let top = match self.set(bits)? {
            Set::Uniform => (1 << (bits - 1)) - 1,
            Set::Codes(levels) => levels[levels.len() - 1],
            Set::Powers(_) => 1,
        };
        Ok(-top..=top)
    }

    /// The code of `weight` on a grid of these levels, of two equally near ones the even code (uniform)
    /// or the smaller.
    pub(crate) fn code(self, bits: u8, grid: &QParams, weight: f32) -> i8 {
        let code = match self.set(bits) {
            Ok(Set::Codes(levels)) => {
                let x = weight * grid.scale().recip();
                let above = |pair: &[i32]| x.abs() > self.boundary(pair[0] as f32, pair[1] as f32);
                let level = levels[levels.windows(2).take_while(|pair| above(pair)).count()];
                if x < 0.0 { -level } else { level }
            }
            _ => grid.quantize(weight),
        };
        code as i8
    }

    /// The value of the level that `weight` is rounded to.
    pub(crate) fn round(self, bits: u8, grid: &QParams, weight: f32) -> f32 {
        let Ok(Set::Powers(last)) = self.set(bits) else {
            return grid.dequantize(self.code(bits, grid, weight).into());
        };
        let x = (weight * grid.scale().recip()).abs();
        let level = |j: i32| if j > last { 0.0 } else { 2f32.powi(-j) };
        // The first level, from the largest down, whose lower boundary x exceeds; below all, zero.
        let from = (-x.log2()).floor().clamp(0.0, last as f32) as i32;
        let above = |&j: &i32| x > self.boundary(level(j + 1), level(j));
        let rounded = (from..=last).find(above).map_or(0.0, level);
        (grid.scale() * rounded).copysign(weight)
    }

    /// Whether `weight` lies within the levels: [`QParams::covers`], half a code beyond the largest
    /// included. Levels without codes end at the largest.
    pub(crate) fn covers(self, bits: u8, grid: &QParams, weight: f32) -> bool {
        match self.set(bits) {
            Ok(Set::Powers(_)) => weight.abs() <= grid.scale(),
            _ => grid.covers(weight),
        }
    }

    /// Where rounding turns from the level `below` to the level `above`.
    fn boundary(self, below: f32, above: f32) -> f32 {
        match self {
            Self::Uniform | Self::PowerOfTwo | Self::AdditivePowerOfTwo => (below + above) / 2.0,
            Self::PowerOfTwoLog2 => above * std::f32::consts::FRAC_1_SQRT_2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Beyond the largest level everything is clipped; a code has half a step there.
    #[test]
    fn weights_beyond_the_levels_are_clipped() {
        for (levels, bits, most) in [
            (Levels::Uniform, 4, 7.5),
            (Levels::PowerOfTwo, 4, 64.5),
            (Levels::PowerOfTwo, 5, 1.0),
            (Levels::PowerOfTwoLog2, 8, 1.0),
        ] {
            let grid = QParams::new(0.25, 0, levels.codes(bits).unwrap()).unwrap();
            for sign in [-0.25, 0.25] {
                let covers = |w: f32| levels.covers(bits, &grid, w * sign);
                assert!(covers(most * 0.999) && !covers(most * 1.001), "{levels:?}");
            }
        }
    }

    /// The published level sets, in parts of the largest.
    #[test]
    fn the_levels_are_the_papers() {
        let parts = |levels: Levels, bits| {
            let Ok(Set::Codes(levels)) = levels.set(bits) else { panic!("no codes") };
            let top = f64::from(levels[levels.len() - 1]);
            levels.iter().map(|&l| f64::from(l) / top).collect::<Vec<f64>>()
        };
        let sums = |terms: [&[f64]; 2]| {
            let mut all: Vec<f64> =
                terms[0].iter().flat_map(|a| terms[1].iter().map(move |b| a + b)).collect();
            all.sort_by(f64::total_cmp);
            let top = all[all.len() - 1];
            all.iter().map(|x| x / top).collect::<Vec<f64>>()
        };
        let near = |a: Vec<f64>, b: Vec<f64>| {
            a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-12)
        };
        let p = |e: i32| 2f64.powi(e);
        let apot = Levels::AdditivePowerOfTwo;
        assert!(near(parts(apot, 3), sums([&[0.0, p(-1), p(-2), p(-3)], &[0.0; 1]])));
        assert!(near(parts(apot, 4), sums([&[0.0, p(-1), p(-2), p(-4)], &[0.0, p(-3)]])));
        let terms: [&[f64]; 2] = [&[0.0, p(-1), p(-3), p(-5)], &[0.0, p(-2), p(-4), p(-6)]];
        assert!(near(parts(apot, 5), sums(terms)));
        let powers = (0..7).rev().map(|j| p(-j));
        assert!(near(parts(Levels::PowerOfTwo, 4), [0.0].into_iter().chain(powers).collect()));
    }

    #[test]
    fn weights_go_to_the_nearest_level() {
        let grid = QParams::new(0.1, 0, -10..=10).unwrap();
        let code = |w| Levels::AdditivePowerOfTwo.code(4, &grid, w);
        assert_eq!(
            [0.0, 0.04, 0.06, -0.49, -0.51, 0.89, 0.91, 7.0].map(code),
            [0, 0, 1, -4, -6, 8, 10, 10]
        );
    }

    /// The two meanings of nearest: the boundary between 1 and 2 is 1.5, or √2; between 0 and 1 it is
    /// 0.5, or 1/√2.
    #[test]
    fn nearest_by_value_is_not_nearest_in_log2() {
        let grid = QParams::new(1.0, 0, -64..=64).unwrap();
        let codes =
            |levels: Levels| [1.41, 1.43, -1.51, 0.6, 0.72, 90.0].map(|w| levels.code(4, &grid, w));
        assert_eq!(codes(Levels::PowerOfTwo), [1, 1, -2, 1, 1, 64]);
        assert_eq!(codes(Levels::PowerOfTwoLog2), [1, 2, -2, 0, 1, 64]);
    }

    /// Every weight goes to a level, and to none that is farther away than another.
    #[test]
    fn wide_powers_of_two_round_in_float() {
        for bits in 5..=8 {
            let levels = Levels::PowerOfTwo;
            assert!(!levels.has_codes(bits) && levels.has_codes(4));
            let grid = QParams::new(0.75, 0, levels.codes(bits).unwrap()).unwrap();
            let last = (1 << (bits - 1)) - 2;
            let all: Vec<f32> = (0..=last).map(|j| 0.75 * 2f32.powi(-j)).chain([0.0]).collect();
            for i in 0..4000 {
                let w = (i as f32 / 2000.0 - 1.0).powi(7);
                let rounded = levels.round(bits, &grid, w);
                assert!(all.contains(&rounded.abs()), "{bits} bits: {w} became {rounded}");
                let least = all.iter().map(|l| (w.abs() - l).abs()).fold(f32::INFINITY, f32::min);
                assert!((rounded - w).abs() <= least * 1.000_01, "{bits} bits: {w} → {rounded}");
                assert!(rounded * w >= 0.0);
            }
            let log2 = |w| Levels::PowerOfTwoLog2.round(bits, &grid, w);
            assert_eq!([1.45, 1.40].map(|x| log2(0.1875 * x)), [0.375, 0.1875]);
        }
    }
}
