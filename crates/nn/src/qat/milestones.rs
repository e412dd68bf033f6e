use ottava_autograd::Mode;

/// When each part of quantization-aware training begins and ends, in epochs from 0.
///
/// Observers on → rounding on → observers frozen → BatchNorm statistics frozen. The default is the
/// published recipe's: rounding from the start (after calibration), BatchNorm frozen after three
/// epochs, observers after four.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Milestones {
    /// The first epoch that rounds.
    pub quantize_from: usize,
    /// The first epoch in which observers no longer move.
    pub freeze_observers: usize,
    /// The first epoch in which BatchNorm uses its running statistics, folded.
    pub freeze_batch_norm: usize,
}

impl Default for Milestones {
    fn default() -> Self {
        Self { quantize_from: 0, freeze_observers: 4, freeze_batch_norm: 3 }
    }
}

impl Milestones {
    /// The default's proportions for a run of `epochs`: the last part always trains exactly what will
    /// be deployed. A single epoch does so from the start, with the ranges of the calibration before
    /// it.
    pub fn for_epochs(epochs: usize) -> Self {
        Self { quantize_from: 0, freeze_observers: epochs * 2 / 3, freeze_batch_norm: epochs / 2 }
    }

    /// What is odd about them in a run of `epochs`, and what to do; `None` if nothing is.
    pub fn warning(&self, epochs: usize) -> Option<String> {
        let Self { quantize_from, freeze_observers, freeze_batch_norm } = *self;
        if quantize_from >= epochs {
            Some(format!(
                "no epoch of {epochs} rounds, since rounding begins with epoch {quantize_from}: this is calibration; begin earlier"
            ))
        } else if freeze_observers <= quantize_from && quantize_from > 0 {
            Some(format!(
                "ranges stop moving in epoch {freeze_observers}, before rounding begins in epoch {quantize_from}: they are those of a network that does not round; freeze them later"
            ))
        } else if freeze_batch_norm >= epochs || freeze_observers >= epochs {
            Some(
                "ranges or BatchNorm statistics move to the last step, so that no step trains exactly what is deployed; freeze both before the last epoch"
                    .into(),
            )
        } else {
            None
        }
    }

    /// How operators behave while training in `epoch`.
    pub fn mode(&self, epoch: usize) -> Mode {
        Mode {
            batch_stats: epoch < self.freeze_batch_norm,
            observe: epoch < self.freeze_observers,
            quantize: epoch >= self.quantize_from,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_begins_and_ends_once() {
        let milestones = Milestones { quantize_from: 1, freeze_observers: 3, freeze_batch_norm: 2 };
        let modes = [0, 1, 2, 3].map(|epoch| milestones.mode(epoch));
        assert_eq!(modes.map(|m| m.quantize), [false, true, true, true]);
        assert_eq!(modes.map(|m| m.batch_stats), [true, true, false, false]);
        assert_eq!(modes.map(|m| m.observe), [true, true, true, false]);
    }

    #[test]
    fn odd_milestones_are_told() {
        let of = |quantize_from, freeze_observers, freeze_batch_norm| {
            Milestones { quantize_from, freeze_observers, freeze_batch_norm }.warning(6)
        };
        assert_eq!(of(0, 4, 3), None);
        assert_eq!(Milestones::for_epochs(6).warning(6), None);
        assert!(of(6, 9, 9).unwrap().contains("begin earlier"));
        assert!(of(2, 1, 3).unwrap().contains("freeze them later"));
        assert!(of(0, 6, 3).unwrap().contains("before the last epoch"));
        assert!(of(0, 4, 6).unwrap().contains("before the last epoch"));
    }
}
