//! Networks of Ottava: modules whose parameters have torchvision's names, the models built of them, and
//! the loop that trains them.
//!
//! Start at [`models::build`] for a network, at [`Trainer`] for training, at [`qat`] for integers, at [`Module`] and
//! [`module!`] to write a network of your own. Not here: operators and their gradients
//! (`ottava-autograd`), data sets (`ottava-data`), files (`ottava-interop`).
#![forbid(unsafe_code)]

mod error;
pub mod init;
pub mod layers;
mod metrics;
mod mismatch;
pub mod models;
mod module;
mod network;
pub mod optim;
mod profile;
pub mod qat;
mod schedule;
mod state_dict;
mod train;

pub use error::{Error, Result};
pub use metrics::Metrics;
pub use mismatch::{Misshapen, Missing, StateMismatch, Unexpected};
pub use module::{Module, State};
pub use network::{Network, trace};
pub use profile::{Entry, Profile, Total};
pub use schedule::{Decay, Schedule, ScheduleKind};
pub use train::{
    Batch, Checkpoint, Event, Outcome, Position, TrainConfig, Trainer, evaluate, predict,
};

/// What [`module!`] expands to.
#[doc(hidden)]
pub mod __private {
    pub use crate::module::join;
    pub use ottava_autograd::Leaf;
}
