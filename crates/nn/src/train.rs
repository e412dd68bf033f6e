use std::fmt;
use std::ops::ControlFlow;
use std::time::Instant;

use ottava_autograd::{Gradients, Mode, Saving, Tape};
use ottava_tensor::Tensor;

use crate::optim::Optimizer;
use crate::{Error, Metrics, Network, Profile, Result, Schedule};

/// Images `[n, c, h, w]` and the class of each.
pub type Batch = (Tensor<f32>, Vec<usize>);

/// The numbers of a training run, besides those of its optimizer and its schedule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainConfig {
    /// Passes over the data.
    pub epochs: usize,
    /// How much of each target is spread over all classes, from 0 to 1.
    pub label_smoothing: f32,
    /// The length that gradients are shortened to if they are longer, above zero.
    pub clip_norm: Option<f32>,
    /// How memory is kept small.
    pub saving: Saving,
}

impl TrainConfig {
    /// So many epochs, nothing smoothed, nothing clipped, everything kept for the way back.
    pub fn new(epochs: usize) -> Self {
        Self { epochs, label_smoothing: 0.0, clip_norm: None, saving: Saving::default() }
    }
}

/// Where a run is: what it does next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The epoch, from 0.
    pub epoch: usize,
    /// The step of that epoch, from 0.
    pub step: usize,
    /// Steps of the whole run before.
    pub total_steps: usize,
}

/// All that a run needs to go on as if it had not stopped.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Where it was.
    pub position: Position,
    /// Parameters and buffers.
    pub network: Vec<(String, Tensor<f32>)>,
    /// What the optimizer remembered.
    pub optimizer: Vec<(String, Tensor<f32>)>,
    /// How the network did in the steps of the epoch so far.
    pub train: Metrics,
}

/// What happened, for progress bars, logs and checkpoints.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event {
    /// An epoch begins, or goes on after a resume.
    EpochBegin {
        /// The epoch, from 0.
        epoch: usize,
        /// How operators behave in it.
        mode: Mode,
    },
    /// The optimizer has stepped.
    Step {
        /// The epoch, from 0.
        epoch: usize,
        /// The step of the epoch, from 0.
        step: usize,
        /// The step of the run, from 0.
        total_step: usize,
        /// The batch's mean loss, before the step.
        loss: f32,
        /// The learning rate.
        lr: f32,
        /// The length of the gradient before clipping, if it is to be clipped.
        grad_norm: Option<f32>,
        /// Images in the batch.
        images: usize,
    },
    /// An epoch has ended and been evaluated.
    EpochEnd {
        /// The epoch, from 0.
        epoch: usize,
        /// How the network did on the training images as it learned.
        train: Metrics,
        /// What the evaluation said, if there is one.
        evaluation: Option<Metrics>,
    },
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All epochs are done.
    Finished,
    /// The callback asked to stop; [`Trainer::checkpoint`] says where.
    Interrupted,
}

/// What judges a network after an epoch.
type Evaluation<'a, N> = Box<dyn FnMut(&N, usize) -> Result<Metrics> + 'a>;

/// Trains a [`Network`]: float, or prepared for quantization.
///
/// ```
/// use std::convert::Infallible;
/// use std::ops::ControlFlow;
///
/// use ottava_autograd::Mode;
/// use ottava_nn::optim::{self, OptimizerConfig, OptimizerKind};
/// use ottava_nn::{Event, Network as _, Schedule, ScheduleKind, TrainConfig, Trainer, evaluate, models};
/// use ottava_tensor::Tensor;
///
/// let model = models::build("resnet8", &models::ModelConfig { classes: 2, ..Default::default() })?;
/// let batch = (Tensor::full(&[2, 3, 8, 8], 0.5), vec![0, 1]);
///
/// let optimizer = OptimizerConfig::new(OptimizerKind::Sgd, 1e-4);
/// let optimizer = optimizer.build(model.parameters(), optim::all)?;
/// let schedule = Schedule::new(ScheduleKind::Cosine, 0.01, 0, 2);
/// let mut trainer = Trainer::new(&*model, optimizer, schedule, TrainConfig::new(2))
///     .with_evaluation(|model, _| evaluate(model, Mode::EVAL, [Ok::<_, Infallible>(batch.clone())]));
///
/// let mut epochs = 0;
/// trainer.run(
///     |_epoch| [Ok::<_, Infallible>(batch.clone())],
///     |_trainer, event| {
///         epochs += usize::from(matches!(event, Event::EpochEnd { .. }));
///         ControlFlow::Continue(())
///     },
/// )?;
/// assert_eq!(epochs, 2);
/// # Ok::<(), ottava_nn::Error>(())
/// ```
pub struct Trainer<'a, N: ?Sized> {
    network: &'a N,
    optimizer: Box<dyn Optimizer>,
    schedule: Schedule,
    config: TrainConfig,
    position: Position,
    train: Metrics,
    mode: Box<dyn FnMut(usize) -> Mode + 'a>,
    evaluation: Option<Evaluation<'a, N>>,
    profile: Option<Profile>,
}

impl<'a, N: Network + ?Sized> Trainer<'a, N> {
    /// A run from the beginning, in [`Mode::TRAIN`], without evaluation.
    pub fn new(
        network: &'a N,
        optimizer: Box<dyn Optimizer>,
        schedule: Schedule,
        config: TrainConfig,
    ) -> Self {
        Self {
            network,
            optimizer,
            schedule,
            config,
            position: Position::default(),
            train: Metrics::default(),
            mode: Box::new(|_| Mode::TRAIN),
            evaluation: None,
            profile: None,
        }
    }

    /// Asks `mode` how operators behave in each epoch: the milestones of quantization-aware training.
    pub fn with_mode(mut self, mode: impl FnMut(usize) -> Mode + 'a) -> Self {
        self.mode = Box::new(mode);
        self
    }

    /// Calls `evaluation` with the network and the epoch after each epoch; see [`evaluate`].
    pub fn with_evaluation(
        mut self,
        evaluation: impl FnMut(&N, usize) -> Result<Metrics> + 'a,
    ) -> Self {
        self.evaluation = Some(Box::new(evaluation));
        self
    }

    /// Keeps the time of every operator in the next steps, as many as `profile` takes in.
    pub fn with_profile(mut self, profile: Profile) -> Self {
        self.profile = Some(profile);
        self
    }

    /// Where the time of those steps went.
    pub fn profile(&self) -> Option<&Profile> {
        self.profile.as_ref()
    }

    /// The network.
    pub fn network(&self) -> &'a N {
        self.network
    }

    /// What the run does next.
    pub fn position(&self) -> Position {
        self.position
    }

    /// All that is needed to go on from here. Shares memory with the network until it is trained on.
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            position: self.position,
            network: self.network.state_dict(),
            optimizer: self.optimizer.state(),
            train: self.train,
        }
    }

    /// Goes back to a checkpoint: [`run`](Self::run) continues from there, bit for bit as the
    /// interrupted run would have, if the batches of an epoch depend on nothing but its number.
    ///
    /// # Errors
    /// [`Error::State`] if it is another network's or another optimizer's.
    pub fn resume(&mut self, checkpoint: Checkpoint) -> Result<()> {
        let before = self.network.state_dict();
        self.network.load_state_dict(checkpoint.network)?;
        if let Err(error) = self.optimizer.load_state(checkpoint.optimizer) {
            self.network.load_state_dict(before)?;
            return Err(error);
        }
        (self.position, self.train) = (checkpoint.position, checkpoint.train);
        Ok(())
    }

    /// Trains until the last epoch, or until `on_event` breaks.
    ///
    /// `batches` gives the batches of an epoch, all of them, in an order that depends on nothing but
    /// the epoch; a resumed run skips those it had already. `on_event` sees the trainer as it is
    /// after the event: [`checkpoint`](Self::checkpoint) then goes on with what comes next.
    ///
    /// # Errors
    /// [`Error::NonFinite`], naming epoch and step, if the loss or a clipped gradient is NaN or
    /// infinite (the network is then as it was before that step); [`Error::Data`];
    /// [`Error::Config`] for an impossible learning rate or length to clip at, for an epoch without batches, or with fewer than were had before a resume; what
    /// operators or the evaluation refuse.
    pub fn run<I, E>(
        &mut self,
        mut batches: impl FnMut(usize) -> I,
        mut on_event: impl FnMut(&Self, &Event) -> ControlFlow<()>,
    ) -> Result<Outcome>
    where
        I: IntoIterator<Item = Result<Batch, E>>,
        E: fmt::Display,
    {
        if let Some(limit) = self.config.clip_norm.filter(|&limit| limit.is_nan() || limit <= 0.0) {
            let reason = format!("gradients clipped to length {limit}; it must be above zero");
            return Err(Error::Config { reason });
        }
        while self.position.epoch < self.config.epochs {
            let epoch = self.position.epoch;
            let mode = (self.mode)(epoch);
            if on_event(self, &Event::EpochBegin { epoch, mode }).is_break() {
                return Ok(Outcome::Interrupted);
            }
            let mut batches = batches(epoch).into_iter();
            if let Some(last) = self.position.step.checked_sub(1)
                && batches.nth(last).is_none()
            {
                let reason = format!(
                    "epoch {epoch} has fewer than the {} batches of it that were trained on: the data set or the batch size is another",
                    last + 1
                );
                return Err(Error::Config { reason });
            }
            loop {
                let waiting = Instant::now();
                let Some(batch) = batches.next() else { break };
                self.measured("data", waiting);
                let (images, targets) = batch.map_err(|error| Error::Data {
                    batch: self.position.step,
                    reason: error.to_string(),
                })?;
                let event = self.step(mode, images, &targets)?;
                if on_event(self, &event).is_break() {
                    return Ok(Outcome::Interrupted);
                }
            }
            if self.position.step == 0 {
                let reason =
                    format!("epoch {epoch} has no batches: is the data set smaller than one?");
                return Err(Error::Config { reason });
            }
            let evaluation = match &mut self.evaluation {
                None => None,
                Some(evaluation) => Some(evaluation(self.network, epoch)?),
            };
            self.position = Position { epoch: epoch + 1, step: 0, ..self.position };
            let train = std::mem::take(&mut self.train);
            if on_event(self, &Event::EpochEnd { epoch, train, evaluation }).is_break() {
                return Ok(Outcome::Interrupted);
            }
        }
        Ok(Outcome::Finished)
    }

    /// Keeps the time of what began at `start` and is no operator, while the profile takes in steps.
    fn measured(&mut self, name: &'static str, start: Instant) {
        if let Some(profile) = self.profile.as_mut().filter(|profile| profile.open()) {
            profile.add(name, "step", start);
        }
    }

    /// One batch forward, back, and along the gradient.
    fn step(&mut self, mode: Mode, images: Tensor<f32>, targets: &[usize]) -> Result<Event> {
        let Position { epoch, step, total_steps } = self.position;
        let finite = |what, value: f32| {
            if value.is_finite() {
                Ok(value)
            } else {
                Err(Error::NonFinite { what, value, epoch, step })
            }
        };
        let lr = self.schedule.lr(total_steps);
        if !(lr.is_finite() && lr >= 0.0) {
            let reason = format!("a learning rate of {lr} in step {total_steps}");
            return Err(Error::Config { reason });
        }
        let mut train = self.train;
        // What the forward pass moves, batch statistics and ranges, comes back if the step fails. Like the tape,
        // this goes before the optimizer steps: it shares the parameters' memory.
        let before = self.network.leaves().into_iter().map(|(_, leaf)| (leaf.get(), leaf));
        let before = Vec::from_iter(before);
        let undo = |_: &Error| before.iter().for_each(|(value, leaf)| leaf.set(value.clone()));
        let run = || -> Result<(f32, Gradients)> {
            let tape = Tape::new(mode).with_saving(self.config.saving);
            let open = self.profile.as_ref().is_some_and(Profile::open);
            let tape = if open { tape.with_spans() } else { tape };
            let logits = self.network.run(tape.input(images))?;
            let loss = logits.cross_entropy(targets, self.config.label_smoothing)?;
            let value = finite("loss", loss.tensor().item()?)?;
            train.add(&logits.tensor(), targets, value)?;
            let gradients = loss.backward()?;
            if let Some(profile) = self.profile.as_mut().filter(|_| open) {
                profile.extend(tape.take_spans());
            }
            Ok((value, gradients))
        };
        let (loss, mut gradients) = run().inspect_err(undo)?;
        let grad_norm = match self.config.clip_norm {
            None => None,
            Some(limit) => {
                let norm = finite("gradient's length", gradients.norm()).inspect_err(undo)?;
                if norm > limit {
                    gradients.scale(limit / norm);
                }
                Some(norm)
            }
        };
        drop(before);
        let stepping = Instant::now();
        self.optimizer.step(&gradients, lr)?;
        self.measured("optimizer", stepping);
        if let Some(profile) = self.profile.as_mut().filter(|profile| profile.open()) {
            profile.end_step();
        }
        self.position = Position { epoch, step: step + 1, total_steps: total_steps + 1 };
        self.train = train;
        let images = targets.len();
        Ok(Event::Step { epoch, step, total_step: total_steps, loss, lr, grad_norm, images })
    }
}

/// How a network does on batches it does not learn from.
///
/// # Errors
/// [`Error::Data`], or what operators refuse.
pub fn evaluate<N, E>(
    network: &N,
    mode: Mode,
    batches: impl IntoIterator<Item = Result<Batch, E>>,
) -> Result<Metrics>
where
    N: Network + ?Sized,
    E: fmt::Display,
{
    let mut metrics = Metrics::default();
    for (index, batch) in batches.into_iter().enumerate() {
        let (images, targets) =
            batch.map_err(|error| Error::Data { batch: index, reason: error.to_string() })?;
        let tape = Tape::no_grad(mode);
        let logits = network.run(tape.input(images))?;
        let loss = logits.cross_entropy(&targets, 0.0)?.tensor().item()?;
        metrics.add(&logits.tensor(), &targets, loss)?;
    }
    Ok(metrics)
}

/// The logits `[n, classes]` of images.
///
/// # Errors
/// What operators refuse.
pub fn predict<N: Network + ?Sized>(
    network: &N,
    mode: Mode,
    images: Tensor<f32>,
) -> Result<Tensor<f32>> {
    let tape = Tape::no_grad(mode);
    Ok(network.run(tape.input(images))?.tensor())
}
