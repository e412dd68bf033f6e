//! `ottava train`, and the loop that `qat` and `demo` share with it.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use ottava::autograd::{Mode, Saving};
use ottava::data::Loader;
use ottava::nn::models::ModelConfig;
use ottava::nn::optim::{self, OptimizerConfig, OptimizerKind};
use ottava::nn::{
    Event, Network, Outcome, Profile, Schedule, ScheduleKind, TrainConfig, Trainer, evaluate,
};
use serde_json::json;

use crate::args::{self, Global};
use crate::classifier::{Evaluating, judge};
use crate::memory::peak_rss;
use crate::model::{FloatModel, Model, load};
use crate::output::{bar, bytes, note, result, round};
use crate::profile;
use crate::qat::adopt;
use crate::run_dir::{self, RunDir, elsewhere};
use crate::setup::{Exit, catch_interrupts, interrupted, parsed, usage};
use crate::task::{Task, batches, input_shape, name_skipped};

/// What the flags leave open.
#[derive(Clone, Copy)]
pub struct Defaults {
    pub epochs: usize,
    pub batch: usize,
    pub lr: f32,
    pub optimizer: OptimizerKind,
    pub schedule: ScheduleKind,
    pub warmup: f32,
    pub weight_decay: f32,
}

/// Training from scratch: SGD with momentum, a cosine, one epoch of warm-up.
pub const FLOAT: Defaults = Defaults {
    epochs: 30,
    batch: 128,
    lr: 0.1,
    optimizer: OptimizerKind::Sgd,
    schedule: ScheduleKind::Cosine,
    warmup: 1.0,
    weight_decay: 5e-4,
};

/// The numbers of one training.
pub struct Recipe {
    pub defaults: Defaults,
    pub label_smoothing: f32,
}

impl Recipe {
    /// The flags over the defaults.
    pub fn new(args: &args::Training, defaults: Defaults) -> Result<Self> {
        let optimizer = match &args.optimizer {
            Some(name) => parsed(name)?,
            None => defaults.optimizer,
        };
        // A rate that suits SGD makes Adam diverge.
        let lr = match optimizer {
            OptimizerKind::Sgd => defaults.lr,
            OptimizerKind::Adam | OptimizerKind::AdamW => defaults.lr.min(1e-3),
        };
        let defaults = Defaults {
            epochs: args.epochs.unwrap_or(defaults.epochs),
            batch: args.batch.unwrap_or(defaults.batch),
            lr: args.lr.unwrap_or(lr),
            optimizer,
            schedule: args.schedule.as_deref().map_or(Ok(defaults.schedule), parsed)?,
            warmup: args.warmup.unwrap_or(defaults.warmup),
            weight_decay: args.weight_decay.unwrap_or(defaults.weight_decay),
        };
        if !(defaults.lr.is_finite() && defaults.lr > 0.0) {
            usage!("--lr {}: the learning rate must be above zero", defaults.lr);
        }
        if !(defaults.warmup.is_finite() && defaults.warmup >= 0.0) {
            usage!("--warmup {}: epochs are a number, not below zero", defaults.warmup);
        }
        if !(defaults.weight_decay.is_finite() && defaults.weight_decay >= 0.0) {
            usage!("--weight-decay {}: must be a number, not below zero", defaults.weight_decay);
        }
        if !(0.0..=1.0).contains(&args.label_smoothing) {
            usage!("--label-smoothing {}: must lie in 0..=1", args.label_smoothing);
        }
        Ok(Self { defaults, label_smoothing: args.label_smoothing })
    }
}

/// A training: what is trained, on what, and where it is written.
pub struct Job<'a, N: ?Sized> {
    pub what: &'a str,
    pub network: &'a N,
    pub recipe: &'a Recipe,
    pub train: &'a Loader,
    pub test: &'a Loader,
    pub run: &'a mut RunDir,
    pub options: Options,
    pub global: &'a Global,
}

/// What a training does besides learning.
#[derive(Clone, Copy, Default)]
pub struct Options {
    /// Whether the command has a `--resume`, and whether it was given.
    resumable: bool,
    resume: bool,
    profile: bool,
    saving: Saving,
    /// Steps between checkpoints; one a minute without.
    checkpoint_steps: Option<u64>,
}

impl From<&args::Training> for Options {
    fn from(args: &args::Training) -> Self {
        let args::Training { resume, profile, checkpoint_steps, recompute, .. } = *args;
        let saving = Saving { recompute, half: args.bf16_activations };
        Self { resumable: true, resume, profile, saving, checkpoint_steps }
    }
}

/// The longest that a kill may cost where nobody said how many steps.
const CHECKPOINT_TIME: Duration = Duration::from_secs(60);

impl<N: Network + ?Sized> Job<'_, N> {
    /// Trains; `mode` says how operators behave in each epoch, `best` writes the network whenever an
    /// epoch was the best so far.
    pub fn run(self, mode: impl Fn(usize) -> Mode, best: impl Fn() -> Result<()>) -> Result<()> {
        let Self { what, network, recipe, train, test, run, options, global } = self;
        let Defaults { epochs, lr, optimizer, schedule, warmup, weight_decay, .. } =
            recipe.defaults;
        let steps = train.batches();
        let warmup = (warmup.max(0.0) * steps as f32) as usize;
        let schedule = Schedule::new(schedule, lr, warmup.min(steps * epochs / 2), steps * epochs);
        let optimizer = OptimizerConfig::new(optimizer, weight_decay)
            .build(network.parameters(), optim::matrices)?;
        let config = TrainConfig {
            label_smoothing: recipe.label_smoothing,
            saving: options.saving,
            ..TrainConfig::new(epochs)
        };
        let mut trainer = Trainer::new(network, optimizer, schedule, config)
            .with_mode(mode)
            .with_evaluation(|network, epoch| evaluate(network, Mode::EVAL, batches(test, epoch)));
        if options.profile {
            trainer = trainer.with_profile(Profile::new(profile::STEPS));
        }
        let mut top = None;
        if options.resume {
            let (checkpoint, best) = RunDir::load_checkpoint(&run.path)?;
            let position = checkpoint.position;
            trainer.resume(checkpoint)?;
            run.go_on(position, position.epoch < epochs, global)?;
            top = best;
            note(global, format!("going on with epoch {}", trainer.position().epoch + 1));
        }

        let progress = bar(global, what, steps * epochs);
        let mut failure = None;
        // A checkpoint that nothing can be made of any more must not replace one that can be gone on with: one
        // with parameters whose squares are infinite, or that are no numbers.
        let check = || -> Result<()> {
            let usable = |x: f32| (x * x).is_finite();
            let parameters = network.parameters();
            let lost = parameters.iter().find(|(_, leaf)| !leaf.get().iter().all(usable));
            if let Some((name, _)) = lost {
                bail!(
                    "{name} has grown beyond all bounds: the training has diverged and needs a lower learning rate than --lr {}{}",
                    recipe.defaults.lr,
                    if options.resumable { "; a checkpoint from before is kept" } else { "" }
                );
            }
            Ok(())
        };
        let saved = Cell::new(Instant::now());
        let due = |steps: usize| match options.checkpoint_steps {
            Some(every) => (steps as u64).is_multiple_of(every),
            None => saved.get().elapsed() >= CHECKPOINT_TIME,
        };
        let outcome = trainer.run(
            |epoch| batches(train, epoch),
            |trainer, event| {
                let mut on_event = || -> Result<()> {
                    match *event {
                        Event::EpochBegin { .. } => {}
                        Event::Step { epoch, step, total_step, loss, lr, .. } => {
                            progress.set_position(total_step as u64 + 1);
                            progress.set_message(format!("epoch {} loss {loss:.3}", epoch + 1));
                            run.log(&json!({"step": total_step, "epoch": epoch, "loss": loss, "lr": lr}))?;
                            // The epoch's end writes one of its own.
                            if step + 1 < steps && due(total_step + 1) {
                                check()?;
                                run.save_checkpoint(&trainer.checkpoint(), top)?;
                                saved.set(Instant::now());
                            }
                        }
                        Event::EpochEnd { epoch, train, evaluation } => {
                            let test = evaluation.unwrap_or_default();
                            if !test.loss().is_finite() {
                                bail!(
                                    "the loss on test images is {} after epoch {}: no picture is left, or the training has diverged and needs a lower learning rate than --lr {}",
                                    test.loss(), epoch + 1, recipe.defaults.lr
                                );
                            }
                            run.log(&json!({
                                "epoch": epoch,
                                "train": {"top1": round(100.0 * train.top1(), 4), "loss": round(train.loss(), 6)},
                                "test": {"top1": round(100.0 * test.top1(), 4), "loss": round(test.loss(), 6)},
                                "peak_rss_bytes": peak_rss(),
                            }))?;
                            let line = format!(
                                "{what} epoch {:>3}/{epochs}: train loss {:.4} top-1 {:.2} %, test top-1 {:.2} %",
                                epoch + 1, train.loss(), 100.0 * train.top1(), 100.0 * test.top1()
                            );
                            progress.suspend(|| note(global, line));
                            check()?;
                            if top.is_none_or(|top| test.top1() > top) {
                                top = Some(test.top1());
                                best()?;
                            }
                            run.save_checkpoint(&trainer.checkpoint(), top)?;
                            saved.set(Instant::now());
                        }
                    }
                    Ok(())
                };
                if let Err(error) = on_event() {
                    failure = Some(error);
                    return ControlFlow::Break(());
                }
                if interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            },
        )?;
        progress.finish_and_clear();
        if let Some(error) = failure {
            return Err(error);
        }
        if let Some(profile) = trainer.profile() {
            let file = run.file("trace.json");
            profile::write_trace(profile, &file)?;
            run.log(&json!({"profile": profile::json(profile)}))?;
            note(global, format!("{}the trace is {}", profile::text(profile), file.display()));
        }
        if outcome == Outcome::Interrupted {
            check()?;
            run.save_checkpoint(&trainer.checkpoint(), top)?;
            let path = run.file("checkpoint.ottava");
            return Err(Exit::Interrupted(match options.resumable {
                true => format!("interrupted; {} lets --resume go on from here", path.display()),
                false => "interrupted".to_owned(),
            })
            .into());
        }
        Ok(())
    }
}

/// `ottava train`.
pub fn run(args: &args::Train) -> Result<()> {
    catch_interrupts()?;
    let recipe = Recipe::new(&args.training, FLOAT)?;
    let task = Task::new(&args.data, None)?;
    let Defaults { batch, .. } = recipe.defaults;
    let train = task.training(batch, &args.training)?;
    let test = task.test(batch)?;
    let input = input_shape(&train)?;
    let classes = train.data().classes().to_vec();
    let model = if args.model.ends_with(".onnx") {
        if args.weights.is_some() {
            usage!("--weights: {} has its own; name one of the two", args.model);
        }
        let mut model = crate::model::load_float(Path::new(&args.model), None)?;
        adopt(&mut model, &train)?;
        model
    } else {
        let config = ModelConfig {
            classes: classes.len(),
            in_channels: input[0],
            seed: args.training.seed,
            ..ModelConfig::default()
        };
        FloatModel::new(parsed(&args.model)?, config, input, &classes, train.preprocess())?
    };
    let out = args.training.out.clone().unwrap_or_else(|| Path::new("runs/train").to_owned());
    if let Some(path) = &args.weights {
        elsewhere(&out, path)?;
        // A checkpoint has all of them.
        if !args.training.resume {
            start_from(&model, path, &args.model, &args.global)?;
        }
    }
    // The graph forgets each value once nobody reads it any more; a module cannot know.
    let graph = model.trace(input)?;
    if args.training.resume {
        run_dir::checkpoint(&out)?;
    }
    let mut run = RunDir::create(&out, args, args.training.resume, &args.global)?;
    let best = run.file("best.ottava");
    let job = Job {
        what: "train",
        network: &graph,
        recipe: &recipe,
        train: &train,
        test: &test,
        run: &mut run,
        options: Options::from(&args.training),
        global: &args.global,
    };
    job.run(|_| Mode::TRAIN, || model.save(&best))?;
    if !best.exists() {
        model.save(&best)?;
    }
    let Model::Float(best) = load(&best, None)? else { bail!("best.ottava is no float network") };
    let judged = judge(&mut Evaluating(&best.trace(input)?), &test, "evaluate", &args.global)?;
    let mut json = judged.json();
    let peak = peak_rss();
    if let Some(peak) = peak {
        json["peak_rss_bytes"] = json!(peak);
    }
    let text = format!(
        "top-1 {:.2} %, loss {:.4}{}; the network is {}",
        judged.top1(),
        judged.metrics.loss(),
        peak.map_or_else(String::new, |peak| format!(", at most {} of memory", bytes(peak))),
        out.join("best.ottava").display()
    );
    name_skipped(&[&train, &test], &mut json, &args.global);
    result(&args.global, json, &text)
}

/// Takes over the weights that fit; a classifier for other classes starts anew.
fn start_from(model: &FloatModel, path: &Path, name: &str, global: &Global) -> Result<()> {
    let named = crate::model::is_state_dict(path).then_some(name);
    let weights = crate::model::load_float(path, named)?;
    let (ours, theirs) = (model.network.leaves().len(), weights.network.state_dict());
    let mismatch = model.network.load_matching(theirs);
    if mismatch.missing.len() + mismatch.misshapen.len() == ours {
        bail!("{}: nothing of it fits {name}: {mismatch}", path.display());
    }
    if !mismatch.is_empty() {
        note(global, format!("not taken over from {}: {mismatch}", path.display()));
    }
    Ok(())
}
