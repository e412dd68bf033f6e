use std::f64::consts::PI;
use std::str::FromStr;

use crate::{Error, Result};

/// The learning rate as a function of the step: a linear warm-up to `base`, then a decay.
///
/// It is a pure function, so that a resumed run sees the same rates.
///
/// ```
/// use ottava_nn::{Schedule, ScheduleKind};
///
/// let schedule = Schedule::new("cosine".parse::<ScheduleKind>()?, 0.1, 2, 6);
/// let rates: Vec<f32> = (0..6).map(|step| schedule.lr(step)).collect();
/// assert_eq!(rates, [0.05, 0.1, 0.1, 0.08535534, 0.05, 0.014644661]);
/// # Ok::<(), ottava_nn::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// The rate after the warm-up.
    pub base: f32,
    /// Steps of warm-up: step `i` has `base · (i + 1) / warmup`.
    pub warmup: usize,
    /// Steps of the whole run; later ones keep the last rate.
    pub total: usize,
    /// What follows the warm-up.
    pub decay: Decay,
}

/// How a learning rate falls.
#[derive(Clone, Debug, PartialEq)]
pub enum Decay {
    /// Not at all.
    Constant,
    /// Times `factor` at each of these steps (PyTorch `MultiStepLR`).
    Step {
        /// The steps, counted from the start of the run.
        milestones: Vec<usize>,
        /// What each multiplies by.
        factor: f64,
    },
    /// `floor + (base − floor) · (1 + cos(π t)) / 2`, `t` going from 0 to 1 (Loshchilov and Hutter
    /// 2016, arXiv:1608.03983; PyTorch `CosineAnnealingLR`).
    Cosine {
        /// The rate at the end.
        floor: f32,
    },
}

/// The kinds of [`Decay`], by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScheduleKind {
    /// `constant`.
    Constant,
    /// `step`.
    Step,
    /// `cosine`.
    Cosine,
}

impl ScheduleKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Constant, Self::Step, Self::Cosine];

    /// The name, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Constant => "constant",
            Self::Step => "step",
            Self::Cosine => "cosine",
        }
    }
}

impl FromStr for ScheduleKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| Error::Unknown {
            what: "schedule",
            name: name.into(),
            known: Self::ALL.map(Self::name).to_vec(),
        })
    }
}

impl Schedule {
    /// A schedule with the usual numbers: `step` divides by ten after one half and three quarters of
    /// the run (He et al. 2015, section 4.2), `cosine` ends at zero.
    pub fn new(kind: ScheduleKind, base: f32, warmup: usize, total: usize) -> Self {
        let decay = match kind {
            ScheduleKind::Constant => Decay::Constant,
            ScheduleKind::Step => {
                Decay::Step { milestones: vec![total.div_ceil(2), total - total / 4], factor: 0.1 }
            }
            ScheduleKind::Cosine => Decay::Cosine { floor: 0.0 },
        };
        Self { base, warmup, total, decay }
    }

    /// The rate of step `step`, from 0.
    pub fn lr(&self, step: usize) -> f32 {
        let base = f64::from(self.base);
        if step < self.warmup {
            return (base * (step + 1) as f64 / self.warmup as f64) as f32;
        }
        let rate = match &self.decay {
            Decay::Constant => base,
            Decay::Step { milestones, factor } => {
                let passed = milestones.iter().filter(|&&milestone| milestone <= step).count();
                base * factor.powi(passed as i32)
            }
            Decay::Cosine { floor } => {
                let (after, length) = (step - self.warmup, self.total.saturating_sub(self.warmup));
                let t = after.min(length) as f64 / length.max(1) as f64;
                let floor = f64::from(*floor);
                floor + (base - floor) * 0.5 * (1.0 + (PI * t).cos())
            }
        };
        rate as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_comes_after_half_of_the_run() {
        let rates = |total: usize| {
            let schedule = Schedule::new(ScheduleKind::Step, 1.0, 0, total);
            (0..total).map(|step| schedule.lr(step)).collect::<Vec<_>>()
        };
        assert_eq!(rates(1), [1.0]);
        assert_eq!(rates(4), [1.0, 1.0, 0.1, 0.01]);
        assert_eq!(rates(5), [1.0, 1.0, 1.0, 0.1, 0.01]);
    }

    #[test]
    fn warm_up_is_linear_and_ends_at_the_base() {
        for kind in ScheduleKind::ALL {
            let schedule = Schedule::new(kind, 0.4, 4, 100);
            let rates: Vec<f32> = (0..5).map(|step| schedule.lr(step)).collect();
            assert_eq!(rates[..4], [0.1, 0.2, 0.3, 0.4], "{kind:?}");
            assert_eq!(rates[4], 0.4, "{kind:?}");
        }
    }

    #[test]
    fn steps_divide_by_ten_at_half_and_three_quarters() {
        let schedule = Schedule::new(ScheduleKind::Step, 1.0, 0, 8);
        let rates: Vec<f32> = (0..9).map(|step| schedule.lr(step)).collect();
        assert_eq!(rates, [1.0, 1.0, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01, 0.01]);
    }

    #[test]
    fn cosine_falls_from_base_to_floor_and_stays() {
        let decay = Decay::Cosine { floor: 0.1 };
        let schedule = Schedule { base: 0.5, warmup: 0, total: 10, decay };
        let rates: Vec<f32> = (0..12).map(|step| schedule.lr(step)).collect();
        assert!(rates[..11].windows(2).all(|pair| pair[1] < pair[0]), "{rates:?}");
        assert_eq!((rates[0], rates[10], rates[11]), (0.5, 0.1, 0.1));
    }

    #[test]
    fn a_run_of_no_steps_has_a_rate() {
        for kind in ScheduleKind::ALL {
            assert!(Schedule::new(kind, 0.1, 0, 0).lr(0).is_finite());
            assert!(Schedule::new(kind, 0.1, 5, 2).lr(7).is_finite());
        }
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let error = "linear".parse::<ScheduleKind>().unwrap_err().to_string();
        assert_eq!(error, "there is no schedule \"linear\"; choose one of constant, step, cosine");
    }
}
