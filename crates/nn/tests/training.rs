//! The training loop: it learns, it stops and goes on exactly, it says what went wrong.

use std::convert::Infallible;
use std::ops::ControlFlow;

use ottava_autograd::{Mode, Result as TapeResult, Var};
use ottava_nn::layers::{BatchNorm2d, Conv2d, Linear};
use ottava_nn::optim::{self, Optimizer, OptimizerConfig, OptimizerKind};
use ottava_nn::{
    Batch, Checkpoint, Error, Event, Metrics, Module, Network, Outcome, Position, Schedule,
    ScheduleKind, TrainConfig, Trainer, evaluate, init, module, predict, trace,
};
use ottava_tensor::Tensor;
use ottava_tensor::conv::ConvAttrs;

/// Convolution, BatchNorm and a linear layer.
struct Tiny {
    conv: Conv2d,
    bn: BatchNorm2d,
    fc: Linear,
}

module!(Tiny { conv, bn, fc });

impl Tiny {
    fn new(seed: u64) -> Self {
        let rng = &mut init::rng(seed);
        Self {
            conv: Conv2d::new([1, 8], 3, ConvAttrs::new(1, 1), rng),
            bn: BatchNorm2d::new(8),
            fc: Linear::new(8 * 16, 3, rng),
        }
    }
}

impl Module for Tiny {
    fn forward<'t>(&self, x: Var<'t>) -> TapeResult<Var<'t>> {
        self.fc.forward(self.bn.forward(self.conv.forward(x)?)?.relu()?.flatten()?)
    }
}

/// Four batches of six 4×4 images of noise, three classes: nothing to understand, all to remember.
/// The order depends on the epoch.
fn batches(epoch: usize) -> Vec<Result<Batch, Infallible>> {
    (0..4)
        .map(|i| {
            let batch = (i + epoch) % 4;
            let images = init::normal(&[6, 1, 4, 4], 1.0, &mut init::rng(100 + batch as u64));
            Ok((images, (0..6).map(|i| (i * 7 + batch) % 3).collect()))
        })
        .collect()
}

fn optimizer(network: &impl Network, kind: OptimizerKind) -> Box<dyn Optimizer> {
    OptimizerConfig::new(kind, 1e-3).build(network.parameters(), optim::matrices).unwrap()
}

fn trainer<N: Network>(network: &N, epochs: usize) -> Trainer<'_, N> {
    let schedule = Schedule::new(ScheduleKind::Cosine, 0.05, 2, epochs * 4);
    let config = TrainConfig { clip_norm: Some(2.0), ..TrainConfig::new(epochs) };
    Trainer::new(network, optimizer(network, OptimizerKind::Sgd), schedule, config)
}

fn go_on<N: ?Sized>(_: &Trainer<'_, N>, _: &Event) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn a_small_network_remembers_a_small_set() {
    for kind in OptimizerKind::ALL {
        let tiny = Tiny::new(0);
        let schedule = Schedule::new(ScheduleKind::Constant, 0.02, 0, 0);
        let mut losses = Vec::new();
        Trainer::new(&tiny, optimizer(&tiny, kind), schedule, TrainConfig::new(30))
            .with_evaluation(|tiny, epoch| evaluate(tiny, Mode::EVAL, batches(epoch)))
            .run(batches, |_, event| {
                if let Event::EpochEnd { evaluation, .. } = event {
                    losses.push(evaluation.unwrap().loss());
                }
                ControlFlow::Continue(())
            })
            .unwrap();
        let after = evaluate(&tiny, Mode::EVAL, batches(0)).unwrap();
        assert_eq!((after.correct1, after.images), (24, 24), "{kind}: {losses:?}");
        assert_eq!((losses.len(), *losses.last().unwrap()), (30, after.loss()));
        assert!(after.loss() < 0.1 * losses[0], "{kind}: {losses:?}");
    }
}

#[test]
fn a_module_and_its_graph_train_alike() {
    let (module, copy) = (Tiny::new(5), Tiny::new(5));
    let graph = trace(&copy, &Tensor::zeros(&[2, 1, 4, 4])).unwrap();
    trainer(&module, 2).run(batches, go_on).unwrap();
    trainer(&graph, 2).run(batches, go_on).unwrap();
    assert_eq!(module.state_dict(), copy.state_dict());
    assert_eq!(module.state_dict(), graph.state_dict());
}

/// Trains until `stop` says so, then goes on with everything new but the checkpoint.
fn interrupted(stop: impl Fn(&Event) -> bool) -> (Position, Checkpoint) {
    let tiny = Tiny::new(1);
    let mut first = trainer(&tiny, 3);
    let outcome = first.run(batches, |_, event| {
        if stop(event) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!(outcome.unwrap(), Outcome::Interrupted);
    let checkpoint = first.checkpoint();
    let stopped = checkpoint.position;

    let fresh = Tiny::new(2);
    let mut second = trainer(&fresh, 3);
    second.resume(checkpoint).unwrap();
    assert_eq!(second.run(batches, go_on).unwrap(), Outcome::Finished);
    (stopped, second.checkpoint())
}

#[test]
fn a_resumed_run_ends_in_the_same_bits() {
    let tiny = Tiny::new(1);
    let mut whole = trainer(&tiny, 3);
    assert_eq!(whole.run(batches, go_on).unwrap(), Outcome::Finished);
    let expected = whole.checkpoint();
    assert_eq!(expected.position, Position { epoch: 3, step: 0, total_steps: 12 });

    let at = |epoch, step, total_steps| Position { epoch, step, total_steps };
    let step = |wanted| move |event: &Event| matches!(event, Event::Step { total_step, .. } if *total_step == wanted);
    let (stopped, end) = interrupted(step(5));
    assert_eq!((stopped, end), (at(1, 2, 6), expected.clone()), "within an epoch");
    let (stopped, end) = interrupted(step(7));
    assert_eq!((stopped, end), (at(1, 4, 8), expected.clone()), "after the last step of an epoch");
    let (stopped, end) = interrupted(|event| matches!(event, Event::EpochEnd { epoch: 1, .. }));
    assert_eq!((stopped, end), (at(2, 0, 8), expected.clone()), "after an epoch");
    let (stopped, end) = interrupted(|event| matches!(event, Event::EpochBegin { epoch: 0, .. }));
    assert_eq!((stopped, end), (at(0, 0, 0), expected), "before the first step");
}

/// What an epoch reports does not depend on where in it the run stopped; and batches that are not there
/// any more are no epoch that ended.
#[test]
fn an_interrupted_epoch_is_reported_whole() {
    let report = |stop: Option<usize>| {
        let tiny = Tiny::new(1);
        let mut run = trainer(&tiny, 1);
        if let Some(stop) = stop {
            let at = |event: &Event| matches!(event, Event::Step { step, .. } if *step == stop);
            run.run(batches, |_, event| match at(event) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            })
            .unwrap();
            let checkpoint = run.checkpoint();
            run = trainer(&tiny, 1);
            run.resume(checkpoint.clone()).unwrap();
            let mut fewer = trainer(&tiny, 1);
            fewer.resume(checkpoint).unwrap();
            let error = fewer.run(|epoch| batches(epoch).into_iter().take(stop), go_on);
            let error = error.unwrap_err().to_string();
            assert!(error.contains("epoch 0") && error.contains("batch size"), "{error}");
        }
        let mut reported = None;
        run.run(batches, |_, event| {
            if let Event::EpochEnd { train, .. } = event {
                reported = Some(*train);
            }
            ControlFlow::Continue(())
        })
        .unwrap();
        reported.unwrap()
    };
    let whole = report(None);
    assert_eq!(whole.images, 24);
    for stop in [0, 2, 3] {
        assert_eq!(report(Some(stop)), whole, "stopped after step {stop}");
    }
}

#[test]
fn the_mode_hook_freezes_what_it_says() {
    let tiny = Tiny::new(3);
    let mode = |epoch| Mode { batch_stats: epoch == 0, ..Mode::TRAIN };
    let mut statistics = Vec::new();
    trainer(&tiny, 3)
        .with_mode(mode)
        .run(batches, |trainer, event| {
            if let Event::EpochEnd { .. } = event {
                statistics.push(trainer.network().bn.running_mean.get());
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(statistics[0].iter().any(|mean| mean != 0.0));
    assert!(statistics[1..].iter().all(|later| *later == statistics[0]));
}

#[test]
fn a_loss_that_is_not_finite_names_its_step_and_moves_nothing() {
    let tiny = Tiny::new(4);
    let mut states = Vec::new();
    let error = trainer(&tiny, 2)
        .run(
            |epoch| {
                let mut batches = batches(epoch);
                if epoch == 1 {
                    batches[2] = Ok((Tensor::full(&[6, 1, 4, 4], f32::NAN), vec![0; 6]));
                }
                batches
            },
            |trainer, _| {
                states.push(trainer.network().state_dict());
                ControlFlow::Continue(())
            },
        )
        .unwrap_err();
    assert!(matches!(error, Error::NonFinite { what: "loss", epoch: 1, step: 2, .. }), "{error:?}");
    assert!(error.to_string().starts_with("the loss is NaN at step 2 of epoch 1"), "{error}");
    assert_eq!(states.last(), Some(&tiny.state_dict()), "parameters and statistics");
}

#[test]
fn a_learning_rate_that_is_none_is_refused() {
    for lr in [f32::NAN, f32::INFINITY, -1.0] {
        let tiny = Tiny::new(4);
        let optimizer = OptimizerConfig::new(OptimizerKind::Sgd, 0.0);
        let optimizer = optimizer.build(tiny.parameters(), optim::all).unwrap();
        let schedule = Schedule::new(ScheduleKind::Constant, lr, 0, 0);
        let error = Trainer::new(&tiny, optimizer, schedule, TrainConfig::new(1))
            .run(batches, |_, _| ControlFlow::Continue(()))
            .unwrap_err();
        assert!(error.to_string().contains(&format!("learning rate of {lr}")), "{error}");
        assert_eq!(tiny.state_dict(), Tiny::new(4).state_dict());
    }
}

#[test]
fn clipping_bounds_the_step() {
    let [free, clipped] = [None, Some(1e-3)].map(|clip_norm| {
        let tiny = Tiny::new(6);
        let config =
            OptimizerConfig { momentum: 0.0, ..OptimizerConfig::new(OptimizerKind::Sgd, 0.0) };
        let optimizer = config.build(tiny.parameters(), optim::all).unwrap();
        let before = tiny.parameters();
        let before: Vec<_> = before.iter().map(|(_, leaf)| leaf.get()).collect();
        let schedule = Schedule::new(ScheduleKind::Constant, 1.0, 0, 0);
        Trainer::new(&tiny, optimizer, schedule, TrainConfig { clip_norm, ..TrainConfig::new(1) })
            .run(|_| batches(0).into_iter().take(1), go_on)
            .unwrap();
        let moved = tiny.parameters().into_iter().zip(before).map(|((_, leaf), before)| {
            let difference = leaf.get().zip_map("test", &before, |a, b| (a - b) * (a - b)).unwrap();
            f64::from(difference.sum())
        });
        moved.sum::<f64>().sqrt()
    });
    assert!(free > 0.1, "{free}");
    assert!((clipped - 1e-3).abs() < 1e-5, "{clipped}");
}

#[test]
fn what_cannot_be_trained_on_is_said() {
    let tiny = Tiny::new(7);
    let none = |_| Vec::<Result<Batch, Infallible>>::new();
    let error = trainer(&tiny, 1).run(none, go_on).unwrap_err();
    assert!(error.to_string().contains("epoch 0 has no batches"), "{error}");

    let broken = |_| [Err::<Batch, _>("cat.jpg is truncated")];
    let error = trainer(&tiny, 1).run(broken, go_on).unwrap_err();
    assert_eq!(error.to_string(), "batch 0 could not be loaded: cat.jpg is truncated");

    let stranger = |_| [Ok::<Batch, Infallible>((Tensor::zeros(&[2, 1, 4, 4]), vec![0, 3]))];
    let error = trainer(&tiny, 1).run(stranger, go_on).unwrap_err();
    assert!(error.to_string().contains("class 3"), "{error}");

    for limit in [0.0, -1.0, f32::NAN] {
        let config = TrainConfig { clip_norm: Some(limit), ..TrainConfig::new(1) };
        let optimizer = optimizer(&tiny, OptimizerKind::Sgd);
        let schedule = Schedule::new(ScheduleKind::Constant, 0.1, 0, 4);
        let error = Trainer::new(&tiny, optimizer, schedule, config).run(batches, go_on);
        assert!(error.unwrap_err().to_string().contains("above zero"));
    }
    for weight_decay in [-1.0, f32::INFINITY, f32::NAN] {
        let config = OptimizerConfig::new(OptimizerKind::Sgd, weight_decay);
        let error = config.build(tiny.parameters(), optim::all).err().unwrap().to_string();
        assert!(error.contains("weight decay"), "{error}");
    }

    let other = ottava_nn::models::build("resnet8", &Default::default()).unwrap();
    let checkpoint = Checkpoint {
        position: Position::default(),
        network: other.state_dict(),
        optimizer: vec![],
        train: Metrics::default(),
    };
    assert!(matches!(trainer(&tiny, 1).resume(checkpoint), Err(Error::State { .. })));
}

#[test]
fn evaluation_weighs_batches_by_their_images() {
    let tiny = Tiny::new(8);
    let whole: Vec<Batch> = batches(0).into_iter().map(Result::unwrap).collect();
    let (images, targets) = &whole[0];
    let parts = [(0..5, &targets[..5]), (5..6, &targets[5..])].map(|(range, targets)| {
        Ok::<_, Infallible>((images.slice(0, range, 1).unwrap(), targets.to_vec()))
    });
    let split = evaluate(&tiny, Mode::EVAL, parts).unwrap();
    let joined = evaluate(&tiny, Mode::EVAL, [Ok::<_, Infallible>(whole[0].clone())]).unwrap();
    assert_eq!(split.correct1, joined.correct1);
    assert!((split.loss() - joined.loss()).abs() < 1e-6);

    let mut by_hand = Metrics::default();
    by_hand.add(&predict(&tiny, Mode::EVAL, images.clone()).unwrap(), targets, 0.0).unwrap();
    assert_eq!(by_hand.correct1, joined.correct1);
}
