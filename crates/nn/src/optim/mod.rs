//! Optimizers: PyTorch's rules, updated in place, bit for bit the same at any number of threads.

mod adam;
mod sgd;
mod slots;

use std::fmt;
use std::str::FromStr;

use ottava_autograd::{Gradients, Leaf};
use ottava_tensor::Tensor;

pub use adam::Adam;
pub use sgd::Sgd;

use crate::{Error, Result};

/// Moves parameters along their gradients.
pub trait Optimizer: Send {
    /// One step with learning rate `lr`. A parameter without a gradient stays as it is, weight decay
    /// included.
    ///
    /// # Errors
    /// [`Error::Config`] if a parameter has got another shape since its gradient was taken.
    fn step(&mut self, gradients: &Gradients, lr: f32) -> Result<()>;

    /// What the optimizer remembers, named `<parameter>.<kind>`: with it, and the parameters, a run
    /// goes on exactly as if it had not stopped.
    fn state(&self) -> Vec<(String, Tensor<f32>)>;

    /// Remembers what [`state`](Self::state) returned.
    ///
    /// # Errors
    /// [`Error::State`]; then nothing has changed.
    fn load_state(&mut self, state: Vec<(String, Tensor<f32>)>) -> Result<()>;
}

/// The optimizers there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OptimizerKind {
    /// [`Sgd`].
    Sgd,
    /// [`Adam`], weight decay added to the gradient.
    Adam,
    /// [`Adam`], weight decay applied to the weights (Loshchilov and Hutter 2017, arXiv:1711.05101).
    AdamW,
}

impl OptimizerKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Sgd, Self::Adam, Self::AdamW];

    /// The name, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sgd => "sgd",
            Self::Adam => "adam",
            Self::AdamW => "adamw",
        }
    }
}

impl fmt::Display for OptimizerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for OptimizerKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| Error::Unknown {
            what: "optimizer",
            name: name.into(),
            known: Self::ALL.map(Self::name).to_vec(),
        })
    }
}

/// An optimizer and its numbers; those of the other kinds are ignored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptimizerConfig {
    /// Which one.
    pub kind: OptimizerKind,
    /// SGD: how much of the last step is taken again.
    pub momentum: f32,
    /// SGD: looks ahead by the momentum.
    pub nesterov: bool,
    /// Adam: how slowly the means of the gradient and of its square forget.
    pub betas: [f64; 2],
    /// Adam: added to the denominator.
    pub eps: f64,
    /// How strongly weights are pulled to zero.
    pub weight_decay: f32,
}

impl OptimizerConfig {
    /// An optimizer with the usual numbers: SGD with momentum 0.9, Adam with betas 0.9 and 0.999 and
    /// `eps` 1e-8.
    pub fn new(kind: OptimizerKind, weight_decay: f32) -> Self {
        let (betas, eps) = ([0.9, 0.999], 1e-8);
        Self { kind, momentum: 0.9, nesterov: false, betas, eps, weight_decay }
    }

    /// The optimizer of these parameters; `decays` says which of them weight decay applies to
    /// ([`all`], [`matrices`]).
    ///
    /// # Errors
    /// [`Error::Config`] for a number outside its range.
    pub fn build(
        &self,
        parameters: Vec<(String, Leaf)>,
        decays: impl Fn(&str, &Leaf) -> bool,
    ) -> Result<Box<dyn Optimizer>> {
        self.check()?;
        Ok(match self.kind {
            OptimizerKind::Sgd => Box::new(Sgd::new(self, parameters, decays)),
            OptimizerKind::Adam | OptimizerKind::AdamW => {
                Box::new(Adam::new(self, parameters, decays))
            }
        })
    }

    fn check(&self) -> Result<()> {
        let unit = 0.0..1.0;
        let [beta1, beta2] = self.betas;
        let numbers = [
            ("momentum", f64::from(self.momentum), unit.contains(&f64::from(self.momentum))),
            ("beta1", beta1, unit.contains(&beta1)),
            ("beta2", beta2, unit.contains(&beta2)),
            ("eps", self.eps, self.eps >= 0.0 && self.eps.is_finite()),
            (
                "weight decay",
                f64::from(self.weight_decay),
                self.weight_decay >= 0.0 && self.weight_decay.is_finite(),
            ),
            ("momentum, which Nesterov's needs,", 0.0, !self.nesterov || self.momentum > 0.0),
        ];
        match numbers.iter().find(|(.., fits)| !fits) {
            None => Ok(()),
            Some((name, value, _)) => Err(Error::Config {
                reason: format!(
                    "optimizer: {name} is {value}; betas and momentum lie in 0..1, eps and weight decay are finite and not negative"
                ),
            }),
        }
    }
}

/// Weight decay for every parameter, as PyTorch does by default.
pub fn all(_: &str, _: &Leaf) -> bool {
    true
}

/// Weight decay for matrices and convolution windows; none for biases and BatchNorm's scales.
pub fn matrices(_: &str, leaf: &Leaf) -> bool {
    leaf.get().rank() > 1
}
