//! Observers of ranges.

mod counts;
mod search;
mod stage;

use ottava_tensor::Tensor;

use self::counts::{BINS, Counts};
pub use self::stage::{Degenerate, Stage};
use crate::{Error, Result};

/// Watches the range of a tensor, batch by batch.
///
/// Its state is a tensor, so that it is saved and restored like any buffer: `[min, max]`, `[2, channels]`
/// per channel, and with counts behind it for [`Histogram`](Self::Histogram). `[+inf, −inf]` says that
/// nothing has been observed yet ([`stage`](Self::stage)). Empty tensors are skipped; a NaN or an infinity
/// is an error, not a range. A range of zeros, of one value or on one side of zero is a range, with a
/// grid and a word of warning: see [`Degenerate`].
///
/// ```
/// use ottava_autograd::Observer;
/// use ottava_tensor::Tensor;
///
/// let observer = Observer::MovingAverageMinMax { averaging_constant: 0.01 };
/// let mut state = observer.initial();
/// for max in [1.0, 11.0] {
///     state = observer.observe(&state, &Tensor::new(&[2], [0.0, max])?)?;
/// }
/// assert_eq!(observer.ranges(&state), Some(vec![(0.0, 1.1)]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Observer {
    /// The extremes of all batches (PyTorch `MinMaxObserver`).
    MinMax,
    /// The extremes of the first batch, then `m += c · (m_batch − m)` (PyTorch
    /// `MovingAverageMinMaxObserver`, which has `c = 0.01`).
    MovingAverageMinMax {
        /// `c`.
        averaging_constant: f32,
    },
    /// [`MinMax`](Self::MinMax) for each index of an axis (PyTorch `PerChannelMinMaxObserver`).
    PerChannelMinMax {
        /// The axis.
        axis: usize,
    },
    /// [`MovingAverageMinMax`](Self::MovingAverageMinMax) for each index of an axis (PyTorch
    /// `MovingAveragePerChannelMinMaxObserver`).
    MovingAveragePerChannelMinMax {
        /// The axis.
        axis: usize,
        /// `c`.
        averaging_constant: f32,
    },
    /// Counts of all batches in 2048 bins, and the range that PyTorch's search finds in them (PyTorch
    /// `HistogramObserver`).
    Histogram {
        /// Codes of the grid: 256 for 8 bits.
        levels: usize,
    },
    /// The range of each batch that is rounded with the least squared error, of 100 shares of the whole
    /// one; averaged as [`MovingAverageMinMax`](Self::MovingAverageMinMax) is. The choice below 8 bits.
    LeastError {
        /// Codes of the grid.
        levels: usize,
        /// `c`.
        averaging_constant: f32,
    },
    /// The range between two quantiles of each batch, averaged.
    Percentile {
        /// The upper quantile, such as 0.9999; the lower one is as far from 0.
        share: f32,
        /// `c`.
        averaging_constant: f32,
    },
    /// The magnitude of each batch up to which the grid keeps the distribution best, by
    /// Kullback–Leibler divergence; averaged (TensorRT's calibration, Migacz 2017).
    Entropy {
        /// Codes of the grid.
        levels: usize,
        /// `c`.
        averaging_constant: f32,
    },
    /// The range for a step of twice the mean magnitude over `√qmax`, averaged: where LSQ begins to learn
    /// (Esser et al. 2020, arXiv:1902.08153, section 2.1). Made for 2 to 4 bits.
    MeanMagnitude {
        /// Codes of the grid; those above zero are half of them if a batch has negative values.
        levels: usize,
        /// `c`.
        averaging_constant: f32,
    },
    /// A given range; nothing is observed.
    Fixed {
        /// The smallest value.
        min: f32,
        /// The largest value.
        max: f32,
    },
}

impl Default for Observer {
    fn default() -> Self {
        Self::MovingAverageMinMax { averaging_constant: 0.01 }
    }
}

impl Observer {
    /// The state before anything was observed. Of a whole tensor it has the shape of all later ones.
    pub fn initial(&self) -> Tensor<f32> {
        match *self {
            Self::Fixed { min, max } => state(&[(min, max)], false),
            Self::Histogram { .. } => {
                to_state(&Counts::new(f32::INFINITY, f32::NEG_INFINITY, BINS))
            }
            _ => state(&[(f32::INFINITY, f32::NEG_INFINITY)], false),
        }
    }

    /// The state after `x`.
    ///
    /// # Errors
    /// [`ottava_quant::Error::BadRange`] if `x` holds a NaN or an infinity; [`Error::Op`] if `x` has
    /// no such axis, or another number of channels than before.
    pub fn observe(&self, before: &Tensor<f32>, x: &Tensor<f32>) -> Result<Tensor<f32>> {
        if x.is_empty() || matches!(self, Self::Fixed { .. }) {
            return Ok(before.clone());
        }
        let mut seen = self.extremes(x)?;
        if let Some(&(min, max)) = seen.iter().find(|(l, h)| !(l.is_finite() && h.is_finite())) {
            return Err(Error::Quant(ottava_quant::Error::BadRange { min, max }));
        }
        if matches!(self, Self::Histogram { .. }) {
            return Ok(to_state(&count(before, x, seen[0])));
        }
        if let Some(best) = self.search(x, seen[0]) {
            seen = vec![best];
        }
        let ranges = match self.ranges(before) {
            None => seen,
            Some(known) if known.len() == seen.len() => {
                known.into_iter().zip(seen).map(|(known, seen)| self.merge(known, seen)).collect()
            }
            Some(known) => {
                let reason = format!("saw {} channels, and now {}", known.len(), seen.len());
                return Err(Error::Op { op: "observer", reason });
            }
        };
        Ok(state(&ranges, self.axis().is_some()))
    }

    /// Whether the extremes of a batch are all that the observer takes from it.
    pub(crate) fn extremes_suffice(&self) -> bool {
        match self {
            Self::MinMax | Self::MovingAverageMinMax { .. } | Self::Fixed { .. } => true,
            Self::PerChannelMinMax { .. }
            | Self::MovingAveragePerChannelMinMax { .. }
            | Self::Histogram { .. }
            | Self::LeastError { .. }
            | Self::Percentile { .. }
            | Self::Entropy { .. }
            | Self::MeanMagnitude { .. } => false,
        }
    }

    /// The state after a batch with these extremes, where they [suffice](Self::extremes_suffice).
    pub(crate) fn observe_extremes(
        &self,
        before: &Tensor<f32>,
        (min, max): (f32, f32),
    ) -> Result<Tensor<f32>> {
        // A tensor of its extremes has the same extremes.
        self.observe(before, &Tensor::new(&[2], [min, max])?)
    }

    /// The range a state stands for, channel by channel (one for a whole tensor); `None` if nothing
    /// was observed.
    pub fn ranges(&self, state: &Tensor<f32>) -> Option<Vec<(f32, f32)>> {
        let values = state.to_vec();
        if let Self::Histogram { levels } = *self {
            return from_state(&values).map(|counts| vec![search::pytorch(&counts, levels.max(2))]);
        }
        let (mins, maxes) = values.split_at(values.len() / 2);
        let ranges: Vec<_> = mins.iter().copied().zip(maxes.iter().copied()).collect();
        ranges.iter().all(|(min, max)| min <= max).then_some(ranges).filter(|r| !r.is_empty())
    }

    /// The axis whose indices have a range each.
    pub fn axis(&self) -> Option<usize> {
        match *self {
            Self::MinMax
            | Self::MovingAverageMinMax { .. }
            | Self::Histogram { .. }
            | Self::LeastError { .. }
            | Self::Percentile { .. }
            | Self::Entropy { .. }
            | Self::MeanMagnitude { .. }
            | Self::Fixed { .. } => None,
            Self::PerChannelMinMax { axis } | Self::MovingAveragePerChannelMinMax { axis, .. } => {
                Some(axis)
            }
        }
    }

    fn merge(&self, (min, max): (f32, f32), (low, high): (f32, f32)) -> (f32, f32) {
        match *self {
            Self::MinMax
            | Self::PerChannelMinMax { .. }
            | Self::Histogram { .. }
            | Self::Fixed { .. } => (min.min(low), max.max(high)),
            Self::MovingAverageMinMax { averaging_constant: c }
            | Self::LeastError { averaging_constant: c, .. }
            | Self::Percentile { averaging_constant: c, .. }
            | Self::Entropy { averaging_constant: c, .. }
            | Self::MeanMagnitude { averaging_constant: c, .. }
            | Self::MovingAveragePerChannelMinMax { averaging_constant: c, .. } => {
                (min + c * (low - min), max + c * (high - max))
            }
        }
    }

    /// The best range of a batch by the observer's measure; `None` if that is all of it.
    fn search(&self, x: &Tensor<f32>, (min, max): (f32, f32)) -> Option<(f32, f32)> {
        let counts = || {
            let mut counts = Counts::new(min, max, BINS);
            counts.add(x.iter());
            counts
        };
        match *self {
            Self::LeastError { levels, .. } => Some(search::least_error(&counts(), levels.max(2))),
            Self::Percentile { share, .. } => Some(search::quantiles(&counts(), share)),
            Self::Entropy { levels, .. } => {
                let mut magnitudes = Counts::new(0.0, max.max(-min), BINS);
                magnitudes.add(x.iter().map(f32::abs));
                // Codes on both sides of zero share the levels.
                let levels = if min < 0.0 { levels / 2 } else { levels };
                let top = search::least_divergence(&magnitudes, levels);
                Some((min.max(-top), max.min(top)))
            }
            Self::MeanMagnitude { levels, .. } => {
                let sum: f64 = x.iter().map(|x| f64::from(x.abs())).sum();
                let below = if min < 0.0 { levels.max(4) / 2 } else { 0 };
                let above = (levels.max(4) - 1 - below) as f32;
                let step = 2.0 * (sum / x.len() as f64) as f32 / above.sqrt();
                Some((-step * below as f32, step * above))
            }
            Self::MinMax
            | Self::MovingAverageMinMax { .. }
            | Self::PerChannelMinMax { .. }
            | Self::MovingAveragePerChannelMinMax { .. }
            | Self::Histogram { .. }
            | Self::Fixed { .. } => None,
        }
    }

    /// The extremes of a batch that is not empty.
    fn extremes(&self, x: &Tensor<f32>) -> Result<Vec<(f32, f32)>> {
        let whole = |x: &Tensor<f32>| x.min_max().unwrap_or((f32::NAN, f32::NAN));
        let Some(axis) = self.axis() else { return Ok(vec![whole(x)]) };
        let Some(&channels) = x.shape().get(axis) else {
            let reason = format!("a tensor of shape {:?} has no axis {axis}", x.shape());
            return Err(Error::Op { op: "observer", reason });
        };
        (0..channels).map(|c| Ok(whole(&x.slice(axis, c..c + 1, 1)?))).collect()
    }
}

/// All minima, then all maxima.
fn state(ranges: &[(f32, f32)], per_channel: bool) -> Tensor<f32> {
    let values: Vec<f32> = ranges.iter().map(|r| r.0).chain(ranges.iter().map(|r| r.1)).collect();
    let shape = if per_channel { vec![2, ranges.len()] } else { vec![2] };
    Tensor::new(&shape, values).expect("two values a range")
}

/// The counts of all batches, after another one with the given extremes.
fn count(before: &Tensor<f32>, x: &Tensor<f32>, (min, max): (f32, f32)) -> Counts {
    let mut counts = match from_state(&before.to_vec()) {
        None => Counts::new(min, max, BINS),
        Some(known) if known.min <= min && max <= known.max => known,
        Some(known) => known.widened(known.min.min(min), known.max.max(max)),
    };
    counts.add(x.iter());
    counts
}

/// `[min, max, counts…]`.
fn to_state(counts: &Counts) -> Tensor<f32> {
    let values: Vec<f32> =
        [counts.min, counts.max].into_iter().chain(counts.bins.iter().copied()).collect();
    Tensor::new(&[values.len()], values).expect("a vector")
}

/// The counts of a state; `None` if nothing was observed.
fn from_state(values: &[f32]) -> Option<Counts> {
    match values {
        [min, max, bins @ ..] if min <= max && !bins.is_empty() => {
            Some(Counts { min: *min, max: *max, bins: bins.to_vec() })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(observer: Observer, x: &[f32]) -> Result<Vec<(f32, f32)>> {
        let x = Tensor::new(&[x.len()], x).unwrap();
        observer.observe(&observer.initial(), &x).map(|state| observer.ranges(&state).unwrap())
    }

    const ALL: [Observer; 7] = [
        Observer::MinMax,
        Observer::MovingAverageMinMax { averaging_constant: 0.01 },
        Observer::Histogram { levels: 256 },
        Observer::LeastError { levels: 256, averaging_constant: 0.1 },
        Observer::Percentile { share: 0.9999, averaging_constant: 0.1 },
        Observer::Entropy { levels: 256, averaging_constant: 0.1 },
        Observer::MeanMagnitude { levels: 16, averaging_constant: 0.1 },
    ];

    /// All zeros, a constant of either sign, one side of zero, a single sample: a finite range in order,
    /// and so a grid. NaN and infinity: an error.
    #[test]
    fn degenerate_batches_have_an_answer() {
        for observer in ALL {
            for x in [&[0.0; 4][..], &[0.7; 4], &[-0.7; 4], &[5.0, 6.0], &[-6.0, -5.0], &[3.0]] {
                let (min, max) = seen(observer, x).unwrap()[0];
                assert!(min <= max && min.is_finite() && max.is_finite(), "{observer:?} of {x:?}");
                let scheme = ottava_quant::Scheme::Affine;
                let grid = ottava_quant::choose_qparams(min, max, scheme, 0..=255).unwrap();
                assert!(grid.scale() > 0.0);
            }
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                assert!(seen(observer, &[1.0, bad]).is_err(), "{observer:?} took {bad}");
            }
        }
    }

    /// A file of a state can be read into a graph that has observed nothing yet.
    #[test]
    fn a_state_keeps_its_shape() {
        let x = Tensor::new(&[3], [-1.0, 0.5, 2.0]).unwrap();
        for observer in ALL {
            let initial = observer.initial();
            assert_eq!(observer.ranges(&initial), None, "{observer:?}");
            assert_eq!(observer.observe(&initial, &x).unwrap().shape(), initial.shape());
        }
    }

    #[test]
    fn lsq_starts_from_the_mean_magnitude() {
        let observer = Observer::MeanMagnitude { levels: 16, averaging_constant: 1.0 };
        let step = 2.0 * 2.0 / 15f32.sqrt();
        assert_eq!(seen(observer, &[1.0, 3.0]).unwrap(), [(0.0, step * 15.0)]);
        let step = 2.0 * 2.0 / 7f32.sqrt();
        assert_eq!(seen(observer, &[-1.0, 3.0]).unwrap(), [(step * -8.0, step * 7.0)]);
    }
}
