use std::ops::RangeInclusive;

use crate::{Error, QParams, Result};

/// Which codes the weights of a layer may take. All of them are whole multiples of the scale and fit
/// `i8`, so that every set runs on the same integer kernels.
///
/// | levels | positive codes at 4 bits | widths |
/// | --- | --- | --- |
/// | uniform | 1 2 3 4 5 6 7 | 2–8 |
/// | power of two | 1 2 4 8 16 32 64 | 2–4 |
/// | additive power of two | 1 2 3 4 6 8 10 | 2–5 |
///
/// A wider logarithmic set has no `i8` code for its smallest level beside its largest one
/// (2⁻¹⁴ at 5 bits of powers of two) and is refused.
///
/// # Source
/// Powers of two: Miyashita et al. 2016 (arXiv:1603.01025), rounded to the nearest value. Additive
/// powers of two: Li et al. 2020 (APoT, arXiv:1909.13144).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Levels {
    /// Every whole number.
    #[default]
    Uniform,
    /// 0 and ±2ʲ.
    PowerOfTwo,
    /// 0 and ± sums of two powers of two.
    AdditivePowerOfTwo,
}

/// The levels of APoT's two-term set, times their common denominator 48.
const APOT_5: &[i32] = &[0, 1, 2, 3, 4, 6, 8, 9, 12, 16, 18, 24, 32, 33, 36, 48];
/// The three-bit set, in tenths.
const APOT_4: &[i32] = &[0, 1, 2, 3, 4, 6, 8, 10];
/// Powers of two down to 2⁻⁶.
const POWERS: &[i32] = &[0, 1, 2, 4, 8, 16, 32, 64];

impl Levels {
    /// The levels that are not negative, ascending; `None` for uniform ones, which need no list.
    ///
    /// # Errors
    /// [`Error::Levels`] if there is no set of that width.
    fn positive(self, bits: u8) -> Result<Option<&'static [i32]>> {
        let levels = match (self, bits) {
            (Self::Uniform, 2..=8) => return Ok(None),
            (Self::PowerOfTwo | Self::AdditivePowerOfTwo, 2) => &POWERS[..2],
            (Self::PowerOfTwo | Self::AdditivePowerOfTwo, 3) => &POWERS[..4],
            (Self::PowerOfTwo, 4) => POWERS,
            (Self::AdditivePowerOfTwo, 4) => APOT_4,
            (Self::AdditivePowerOfTwo, 5) => APOT_5,
            _ => return Err(Error::Levels { levels: self, bits }),
        };
        Ok(Some(levels))
    }

    /// The range of codes of symmetric weights of `bits` bits. Uniform:
    /// `−(2^(bits−1) − 1) ..= 2^(bits−1) − 1`. Leaving out the most negative code makes negation exact
    /// and keeps pair sums in range on every CPU.
    ///
    /// # Errors
    /// [`Error::Levels`] if there is no set of that width.
    ///
    /// ```
    /// use ottava_quant::Levels;
    ///
    /// assert_eq!(Levels::Uniform.codes(4)?, -7..=7);
    /// assert_eq!(Levels::AdditivePowerOfTwo.codes(4)?, -10..=10);
    /// assert!(Levels::PowerOfTwo.codes(8).is_err());
    /// # Ok::<(), ottava_quant::Error>(())
    /// ```
    pub fn codes(self, bits: u8) -> Result<RangeInclusive<i32>> {
        let top = match self.positive(bits)? {
            None => (1 << (bits - 1)) - 1,
            Some(levels) => levels[levels.len() - 1],
        };
        Ok(-top..=top)
    }

    /// The code of `weight` on a grid of these levels: the nearest by value, of two equally near ones
    /// the even code (uniform) or the smaller.
    pub(crate) fn round(self, bits: u8, grid: &QParams, weight: f32) -> i8 {
        let code = match self.positive(bits) {
            Ok(Some(levels)) => {
                let x = weight * grid.scale().recip();
                let above = |pair: &[i32]| x.abs() > (pair[0] + pair[1]) as f32 / 2.0;
                let level = levels[levels.windows(2).take_while(|pair| above(pair)).count()];
                if x < 0.0 { -level } else { level }
            }
            _ => grid.quantize(weight),
        };
        code as i8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published level sets, in parts of the largest.
    #[test]
    fn the_levels_are_the_papers() {
        let parts = |levels: Levels, bits| {
            let levels = levels.positive(bits).unwrap().unwrap();
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
        let code = |w| Levels::AdditivePowerOfTwo.round(4, &grid, w);
        assert_eq!(
            [0.0, 0.04, 0.06, -0.49, -0.51, 0.89, 0.91, 7.0].map(code),
            [0, 0, 1, -4, -6, 8, 10, 10]
        );
    }
}
