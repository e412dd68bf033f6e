//! What most programs need: `use ottava::prelude::*;`.
//!
//! Names that two crates share stay out: `Result` and `Error` (each crate has its own), `Batch`,
//! `Value`.

pub use ottava_autograd::{Graph, Leaf, Mode, Tape, Var};
#[cfg(feature = "data")]
pub use ottava_data::{Augment, DataSpec, Dataset, Loader, LoaderOptions, Preprocess, Split};
#[cfg(feature = "interop")]
pub use ottava_interop::{StateDict, read_state_dict};
pub use ottava_nn::models::{self, Architecture, ModelConfig};
pub use ottava_nn::optim::{self, OptimizerConfig, OptimizerKind};
pub use ottava_nn::qat::{self, Milestones, QConfig, QConfigMap};
pub use ottava_nn::{
    Event, Metrics, Module, Network, Schedule, ScheduleKind, TrainConfig, Trainer, evaluate,
    module, predict, trace,
};
pub use ottava_quant::{Engine, Program, QParams, Workspace};
pub use ottava_tensor::{Level, Tensor};
