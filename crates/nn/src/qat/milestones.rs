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
    /// be deployed.
    pub fn for_epochs(epochs: usize) -> Self {
        Self {
            quantize_from: 0,
            freeze_observers: (epochs * 2 / 3).max(1),
            freeze_batch_norm: (epochs / 2).max(1),
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
}
