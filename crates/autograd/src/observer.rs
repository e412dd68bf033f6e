use ottava_tensor::Tensor;

use crate::{Error, Result};

/// Watches the range of a tensor, batch by batch.
///
/// Its state is a tensor `[min, max]`, or `[2, channels]` per channel, so that it is saved and restored
/// like any buffer; `[+inf, −inf]` says that nothing has been observed yet. Empty tensors are skipped;
/// a NaN or an infinity is an error, not a range.
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
}

impl Default for Observer {
    fn default() -> Self {
        Self::MovingAverageMinMax { averaging_constant: 0.01 }
    }
}

impl Observer {
    /// The state before anything was observed.
    pub fn initial(&self) -> Tensor<f32> {
        state(&[(f32::INFINITY, f32::NEG_INFINITY)], false)
    }

    /// The state after `x`.
    ///
    /// # Errors
    /// [`ottava_quant::Error::BadRange`] if `x` holds a NaN or an infinity; [`Error::Op`] if `x` has
    /// no such axis, or another number of channels than before.
    pub fn observe(&self, before: &Tensor<f32>, x: &Tensor<f32>) -> Result<Tensor<f32>> {
        if x.is_empty() {
            return Ok(before.clone());
        }
        let seen = self.extremes(x)?;
        if let Some(&(min, max)) = seen.iter().find(|(l, h)| !(l.is_finite() && h.is_finite())) {
            return Err(Error::Quant(ottava_quant::Error::BadRange { min, max }));
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

    /// The range a state stands for, channel by channel (one for a whole tensor); `None` if nothing
    /// was observed.
    pub fn ranges(&self, state: &Tensor<f32>) -> Option<Vec<(f32, f32)>> {
        let values = state.to_vec();
        let (mins, maxes) = values.split_at(values.len() / 2);
        let ranges: Vec<_> = mins.iter().copied().zip(maxes.iter().copied()).collect();
        ranges.iter().all(|(min, max)| min <= max).then_some(ranges).filter(|r| !r.is_empty())
    }

    /// The axis whose indices have a range each.
    pub fn axis(&self) -> Option<usize> {
        match *self {
            Self::MinMax | Self::MovingAverageMinMax { .. } => None,
            Self::PerChannelMinMax { axis } | Self::MovingAveragePerChannelMinMax { axis, .. } => {
                Some(axis)
            }
        }
    }

    fn merge(&self, (min, max): (f32, f32), (low, high): (f32, f32)) -> (f32, f32) {
        match *self {
            Self::MinMax | Self::PerChannelMinMax { .. } => (min.min(low), max.max(high)),
            Self::MovingAverageMinMax { averaging_constant: c }
            | Self::MovingAveragePerChannelMinMax { averaging_constant: c, .. } => {
                (min + c * (low - min), max + c * (high - max))
            }
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
