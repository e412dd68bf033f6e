//! The integer rule: the quantization-aware graph in evaluation mode and the converted program agree
//! on every element of every layer, for whole networks on real images.

use ottava::autograd::ops::{ActivationQuant, Learning};
use ottava::autograd::{Graph, Mode, Tape};
use ottava::data::{Loader, LoaderOptions, Preprocess, Split, fashion_mini};
use ottava::nn::models::{ModelConfig, build};
use ottava::nn::optim::{self, OptimizerConfig, OptimizerKind};
use ottava::nn::qat::{QConfig, QConfigMap, convert, prepare, verify};
use ottava::nn::{self, Network as _, Schedule, ScheduleKind, TrainConfig, Trainer};
use ottava::quant::{Levels, Program, Scheme, WeightRange, WeightSpec};
use ottava::tensor::Tensor;
use proptest::prelude::*;
use std::convert::Infallible;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Real photos, one channel of 28×28, and their classes.
fn photos(count: usize) -> (Tensor<f32>, Vec<usize>) {
    let data = Arc::new(fashion_mini(Split::Train).unwrap());
    let options = LoaderOptions { batch: count, ..LoaderOptions::default() };
    let loader = Loader::new(data, Preprocess::fashion(), options).unwrap();
    let batch = loader.epoch(0).next().unwrap().unwrap();
    (batch.images, batch.labels)
}

/// A network with weights of a seed, prepared, its observers shown some images.
fn calibrated(model: &str, seed: u64, config: &QConfigMap, images: &Tensor<f32>) -> Graph {
    let settings = ModelConfig { classes: 10, in_channels: 1, seed, ..ModelConfig::default() };
    let model = build(model, &settings).unwrap();
    let graph = nn::trace(&*model, &images.slice(0, 0..1, 1).unwrap()).unwrap();
    // BatchNorm statistics of these images, so that activations are what a trained network's are.
    let warm = Mode { batch_stats: true, observe: false, quantize: false };
    for _ in 0..8 {
        graph.run(Tape::no_grad(warm).input(images.clone())).unwrap();
    }
    let prepared = prepare(&graph, config).unwrap();
    assert!(prepared.float.is_empty(), "{:?}", prepared.float);
    prepared.graph.run(Tape::no_grad(Mode::CALIBRATE).input(images.clone())).unwrap();
    prepared.graph
}

fn assert_equal(graph: &Graph, program: &Program, images: &Tensor<f32>) {
    let nodes = verify(graph, program, images).unwrap();
    assert!(nodes.len() > 5, "only {} nodes were compared", nodes.len());
    for node in &nodes {
        assert!(node.elements > 0);
        assert_eq!(node.differing, 0, "{node:?}");
    }
    // And the logits, through the fused program.
    let simulated = nn::predict(graph, Mode::EVAL, images.clone()).unwrap();
    let engine = ottava::quant::Engine::new(program).unwrap();
    assert_eq!(engine.run(images, &mut Default::default()).unwrap(), simulated);
}

#[test]
fn every_element_of_every_layer_is_the_integer_networks() {
    let (images, _) = photos(6);
    for model in ["resnet20", "resnet18", "resnet8"] {
        let graph = calibrated(model, 1, &QConfigMap::default(), &images);
        assert_equal(&graph, &convert(&graph).unwrap(), &images);
    }
}

/// Training moves weights, statistics and observers; the rule holds at every stage of it.
#[test]
fn the_rule_holds_after_training() {
    let (images, labels) = photos(32);
    let graph = calibrated("resnet8", 2, &QConfigMap::default(), &images);
    let modes = [
        Mode::TRAIN,
        Mode { batch_stats: false, ..Mode::TRAIN },
        Mode { batch_stats: false, observe: false, ..Mode::TRAIN },
    ];
    let optimizer = OptimizerConfig::new(OptimizerKind::Sgd, 1e-4)
        .build(nn::Network::parameters(&graph), optim::all)
        .unwrap();
    let schedule = Schedule::new(ScheduleKind::Constant, 0.01, 0, 9);
    let mut losses = Vec::new();
    let mut trainer = Trainer::new(&graph, optimizer, schedule, TrainConfig::new(9))
        .with_mode(|epoch| modes[epoch / 3]);
    trainer
        .run(
            |_| [Ok::<_, Infallible>((images.clone(), labels.clone()))],
            |_, event| {
                if let nn::Event::Step { loss, .. } = event {
                    losses.push(*loss);
                }
                ControlFlow::Continue(())
            },
        )
        .unwrap();
    assert!(losses[8] < losses[0], "training does not learn: {losses:?}");
    assert_equal(&graph, &convert(&graph).unwrap(), &images);
}

/// One step of gradient descent, ranges and scales included.
fn descend(graph: &Graph, images: &Tensor<f32>) {
    let before = graph.state_dict();
    let classes = vec![0; images.shape()[0]];
    let optimizer = OptimizerConfig::new(OptimizerKind::Sgd, 0.0);
    let optimizer = optimizer.build(graph.parameters(), optim::all).unwrap();
    let schedule = Schedule::new(ScheduleKind::Constant, 0.01, 0, 1);
    let mut trainer = Trainer::new(graph, optimizer, schedule, TrainConfig::new(1));
    let batch = |_| [Ok::<_, Infallible>((images.clone(), classes.clone()))];
    trainer.run(batch, |_, _| ControlFlow::Continue(())).unwrap();
    let moved = |name: &str| {
        graph
            .state_dict()
            .iter()
            .zip(&before)
            .any(|(now, old)| now.0.ends_with(name) && now.1.to_vec() != old.1.to_vec())
    };
    assert!(moved("output_range"), "no range has learned");
}

/// Converting twice, and a round trip through the file, give the same program.
#[test]
fn conversion_is_a_function() {
    let (images, _) = photos(4);
    let graph = calibrated("resnet8", 3, &QConfigMap::default(), &images);
    let program = convert(&graph).unwrap();
    let bytes = program.to_container().unwrap().to_bytes();
    assert_eq!(convert(&graph).unwrap().to_container().unwrap().to_bytes(), bytes);
    let again = Program::from_container(&ottava::quant::Container::read(bytes).unwrap()).unwrap();
    assert_eq!(again, program);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn the_rule_holds_for_every_configuration(
        symmetric: bool, per_channel: bool, bits in 2u8..=8, activation_bits in 2u32..=8,
        levels in prop::sample::select(vec![Levels::Uniform, Levels::PowerOfTwo, Levels::AdditivePowerOfTwo]),
        least_error: bool, learn: bool, clip: bool, ends: bool,
        seed in 0u64..1000, model in prop::sample::select(vec!["resnet8", "resnet20"]),
    ) {
        let (images, _) = photos(3);
        let activation = if symmetric {
            let top = 1 << (activation_bits - 1);
            ActivationQuant { scheme: Scheme::Symmetric, qmin: -top, qmax: top - 1, ..Default::default() }
        } else {
            ActivationQuant { qmax: (1 << activation_bits) - 1, ..Default::default() }
        };
        let bits = if levels == Levels::Uniform { bits } else { bits.min(4) };
        let range = if least_error { WeightRange::LeastError } else { WeightRange::Largest };
        let weight = WeightSpec { bits, per_channel, levels, range };
        let learning = if clip { Learning::Clip } else { Learning::StepSize };
        let activation = ActivationQuant { learn: learn.then_some(learning), ..activation };
        let config = QConfig { weight, learn_scales: learn && per_channel, activation };
        let mut map = QConfigMap::new(config);
        if ends {
            map = map.first_last(QConfig::default());
        }
        let graph = calibrated(model, seed, &map, &images);
        if learn {
            descend(&graph, &images);
        }
        assert_equal(&graph, &convert(&graph).unwrap(), &images);
    }
}
