//! How far an observer is, and ranges that deserve a second look.

use std::fmt;

use ottava_tensor::Tensor;

use super::Observer;
use crate::Mode;

/// How far an observer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// It has seen nothing: there is no grid, and rounding is an error that names the layer.
    Never,
    /// It has a range, and the next batch moves it.
    Observing,
    /// It has a range that stays: a given one, or any in a mode that observes no more.
    Frozen,
}

/// A range that has a grid, but most likely not the one that was wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Degenerate {
    /// Nothing but zero. The grid has the least scale there is, 2⁻²³: zero is exact, and whatever else is
    /// rounded to it later saturates.
    Zeros,
    /// One value, or a single sample. The range is stretched to zero, so that both are exact.
    Constant {
        /// The value.
        value: f32,
    },
    /// All values on one side of zero, away from it. The range is stretched to zero, and the codes in
    /// between are lost to it.
    OneSided {
        /// The smallest value.
        min: f32,
        /// The largest value.
        max: f32,
    },
}

impl Observer {
    /// How far an observer with this state is, in a mode.
    ///
    /// ```
    /// use ottava_autograd::{Mode, Observer, Stage};
    /// use ottava_tensor::Tensor;
    ///
    /// let observer = Observer::MinMax;
    /// let state = observer.initial();
    /// assert_eq!(observer.stage(&state, Mode::TRAIN), Stage::Never);
    /// let state = observer.observe(&state, &Tensor::new(&[2], [0.0, 1.0])?)?;
    /// assert_eq!(observer.stage(&state, Mode::TRAIN), Stage::Observing);
    /// assert_eq!(observer.stage(&state, Mode::EVAL), Stage::Frozen);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn stage(&self, state: &Tensor<f32>, mode: Mode) -> Stage {
        match self {
            Self::Fixed { .. } => Stage::Frozen,
            _ if self.ranges(state).is_none() => Stage::Never,
            _ if mode.observe => Stage::Observing,
            _ => Stage::Frozen,
        }
    }
}

impl Degenerate {
    /// What is odd about a range, if anything is.
    pub fn of(min: f32, max: f32) -> Option<Self> {
        if min == 0.0 && max == 0.0 {
            Some(Self::Zeros)
        } else if min == max {
            Some(Self::Constant { value: min })
        } else if min > 0.0 || max < 0.0 {
            Some(Self::OneSided { min, max })
        } else {
            None
        }
    }
}

impl fmt::Display for Degenerate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Zeros => f.write_str(
                "has only seen zeros; its grid has the least scale there is and will clip: is the layer \
                 dead, or were the images blank?",
            ),
            Self::Constant { value } => write!(
                f,
                "has only seen the value {value}; its grid covers zero to there: calibrate on more images"
            ),
            Self::OneSided { min, max } => {
                let (near, far) = (min.abs().min(max.abs()), min.abs().max(max.abs()));
                write!(
                    f,
                    "has only seen {min}..{max}; zero has to have a code, which leaves {:.0} % of the codes \
                     unused: subtract a mean before it",
                    near / far * 100.0
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_ranges_are_told_apart() {
        assert_eq!(Degenerate::of(0.0, 0.0), Some(Degenerate::Zeros));
        assert_eq!(Degenerate::of(-2.0, -2.0), Some(Degenerate::Constant { value: -2.0 }));
        assert_eq!(Degenerate::of(3.0, 4.0), Some(Degenerate::OneSided { min: 3.0, max: 4.0 }));
        assert_eq!(Degenerate::of(0.0, 4.0), None);
        assert_eq!(Degenerate::of(-1.0, 4.0), None);
        let words = Degenerate::of(3.0, 4.0).unwrap().to_string();
        assert!(words.contains("75 %"), "{words}");
    }

    #[test]
    fn a_given_range_is_frozen_from_the_start() {
        let fixed = Observer::Fixed { min: -1.0, max: 1.0 };
        assert_eq!(fixed.stage(&fixed.initial(), Mode::CALIBRATE), Stage::Frozen);
    }
}
