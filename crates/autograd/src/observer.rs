use ottava_tensor::Tensor;

use crate::{Error, Result};

/// Watches the range of a tensor, batch by batch.
///
/// Its state is a tensor `[min, max]`, so that it is saved and restored like any buffer;
/// `[+inf, −inf]` says that nothing has been observed yet. Empty tensors are skipped; a NaN or an
/// infinity is an error, not a range.
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
/// assert_eq!(observer.range(&state), Some((0.0, 1.1)));
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
}

impl Default for Observer {
    fn default() -> Self {
        Self::MovingAverageMinMax { averaging_constant: 0.01 }
    }
}

impl Observer {
    /// The state before anything was observed.
    pub fn initial(&self) -> Tensor<f32> {
        state(f32::INFINITY, f32::NEG_INFINITY)
    }

    /// The state after `x`.
    ///
    /// # Errors
    /// [`ottava_quant::Error::BadRange`] if `x` holds a NaN or an infinity.
    pub fn observe(&self, before: &Tensor<f32>, x: &Tensor<f32>) -> Result<Tensor<f32>> {
        let Some((low, high)) = x.min_max() else { return Ok(before.clone()) };
        if !(low.is_finite() && high.is_finite()) {
            return Err(Error::Quant(ottava_quant::Error::BadRange { min: low, max: high }));
        }
        Ok(match (self, self.range(before)) {
            (_, None) => state(low, high),
            (Self::MinMax, Some((min, max))) => state(min.min(low), max.max(high)),
            (Self::MovingAverageMinMax { averaging_constant: c }, Some((min, max))) => {
                state(min + c * (low - min), max + c * (high - max))
            }
        })
    }

    /// The range a state stands for; `None` if nothing was observed.
    pub fn range(&self, state: &Tensor<f32>) -> Option<(f32, f32)> {
        match state.to_vec()[..] {
            [min, max] if min <= max => Some((min, max)),
            _ => None,
        }
    }
}

fn state(min: f32, max: f32) -> Tensor<f32> {
    Tensor::new(&[2], [min, max]).expect("two elements")
}
