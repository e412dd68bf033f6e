use std::fmt;

use crate::StateMismatch;

/// What networks and their training can refuse.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// What the tape or the graph refused.
    Autograd(ottava_autograd::Error),
    /// Named tensors that are not those of what they were to be loaded into.
    State {
        /// What they were to be loaded into.
        of: &'static str,
        /// What does not fit.
        mismatch: StateMismatch,
    },
    /// A name that is none of those known.
    Unknown {
        /// What was to be named.
        what: &'static str,
        /// The name asked for.
        name: String,
        /// The names there are.
        known: Vec<&'static str>,
    },
    /// A number outside what makes sense.
    Config {
        /// What is wrong, with the numbers.
        reason: String,
    },
    /// A batch that could not be loaded.
    Data {
        /// Which one, from 0.
        batch: usize,
        /// What the source of batches said.
        reason: String,
    },
    /// Training left the finite numbers.
    NonFinite {
        /// What is not finite.
        what: &'static str,
        /// Its value.
        value: f32,
        /// The epoch, from 0.
        epoch: usize,
        /// The step of the epoch, from 0.
        step: usize,
    },
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Autograd(error) => error.fmt(f),
            Self::State { of, mismatch } => {
                write!(f, "the tensors do not fit this {of}: {mismatch}")
            }
            Self::Unknown { what, name, known } => {
                write!(f, "there is no {what} {name:?}; choose one of {}", known.join(", "))
            }
            Self::Config { reason } => f.write_str(reason),
            Self::Data { batch, reason } => {
                write!(f, "batch {batch} could not be loaded: {reason}")
            }
            Self::NonFinite { what, value, epoch, step } => write!(
                f,
                "the {what} is {value} at step {step} of epoch {epoch}; lower the learning rate, \
                 warm up longer, or look for NaNs in the input data"
            ),
        }
    }
}

// No `source`: each message already ends with what the crates below said.
impl std::error::Error for Error {}

impl From<ottava_autograd::Error> for Error {
    fn from(error: ottava_autograd::Error) -> Self {
        Self::Autograd(error)
    }
}

impl From<ottava_tensor::Error> for Error {
    fn from(error: ottava_tensor::Error) -> Self {
        Self::Autograd(error.into())
    }
}
