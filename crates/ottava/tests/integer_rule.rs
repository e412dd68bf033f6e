//! The integer rule: the quantization-aware graph in evaluation mode and the converted program agree
//! on every element of every layer, for whole networks on real images.
#![cfg(feature = "fashion-mini")]

use ottava::autograd::ops::{ActivationQuant, Folding, Learning};
use ottava::autograd::{Graph, Mode, Tape};
use ottava::data::{Loader, LoaderOptions, Preprocess, Split, fashion_mini};
use ottava::nn::models::{ModelConfig, build};
use ottava::nn::optim::{self, OptimizerConfig, OptimizerKind};
use ottava::nn::qat::{
    Finding, Problem, QConfig, QConfigMap, convert, diagnose, prepare, reestimate_batch_norm,
    verify,
};
use ottava::nn::{self, Network as _, Schedule, ScheduleKind, TrainConfig, Trainer};
use ottava::quant::{Instr, Levels, Program, Scheme, WeightRange, WeightSpec};
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

/// A float network with weights of a seed and BatchNorm statistics of these images, so that activations
/// are what a trained network's are.
fn float(model: &str, seed: u64, images: &Tensor<f32>) -> Graph {
    let settings = ModelConfig { classes: 10, in_channels: 1, seed, ..ModelConfig::default() };
    let model = build(model, &settings).unwrap();
    let graph = nn::trace(&*model, &images.slice(0, 0..1, 1).unwrap()).unwrap();
    let warm = Mode { batch_stats: true, observe: false, quantize: false };
    for _ in 0..8 {
        graph.run(Tape::no_grad(warm).input(images.clone())).unwrap();
    }
    graph
}

/// The network prepared, its observers shown some images.
fn quantized(graph: &Graph, config: &QConfigMap, images: &Tensor<f32>) -> Graph {
    let prepared = prepare(&graph.detach(), config).unwrap();
    prepared.graph.run(Tape::no_grad(Mode::CALIBRATE).input(images.clone())).unwrap();
    prepared.graph
}

fn calibrated(model: &str, seed: u64, config: &QConfigMap, images: &Tensor<f32>) -> Graph {
    quantized(&float(model, seed, images), config, images)
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

/// Affine and symmetric activations, a scale for each channel and one a tensor, ReLU fused and not, W8A8
/// and W4A8: every combination, on both networks, on photos.
#[test]
fn every_element_of_every_layer_is_the_integer_networks() {
    let (images, _) = photos(2);
    for model in ["resnet20", "resnet18"] {
        let float = float(model, 1, &images);
        for case in 0..16u8 {
            let [symmetric, per_channel, fused, narrow] = [0, 1, 2, 3].map(|i| case >> i & 1 == 1);
            let scheme = if symmetric { Scheme::Symmetric } else { Scheme::Affine };
            let bits = if narrow { 4 } else { 8 };
            let mut map = QConfigMap::new(QConfig {
                weight: WeightSpec { bits, per_channel, ..Default::default() },
                activation: ActivationQuant::of_bits(scheme, 8),
                ..Default::default()
            });
            if !fused {
                map = map.without_relu_fusion();
            }
            let graph = quantized(&float, &map, &images);
            let program = convert(&graph).unwrap();
            let relus = program.nodes().iter().filter(|node| node.instr.op() == "relu").count();
            assert_eq!(relus == 0, fused, "{relus} of {model} are not fused");
            let most = match bits {
                4 => 7,
                _ => 127,
            };
            assert_eq!(largest_code(&program), most);
            assert_equal(&graph, &program, &images);
        }
    }
}

/// The largest weight of a program.
fn largest_code(program: &Program) -> u8 {
    let layers = program.nodes().iter().filter_map(|node| match &node.instr {
        Instr::Conv { layer, .. } | Instr::Linear { layer, .. } => Some(layer),
        _ => None,
    });
    layers.flat_map(|layer| layer.codes.iter().map(i8::unsigned_abs)).max().unwrap()
}

/// A layer whose biases are beyond 32 bits of its own steps: scales are raised, and graph and program do
/// the same.
#[test]
fn the_rule_holds_where_a_bias_widens_scales() {
    let (images, _) = photos(4);
    let float = float("resnet8", 4, &images);
    for (name, leaf) in float.leaves() {
        match name.as_str() {
            "fc.weight" => leaf.update(|w| w.data_mut().iter_mut().for_each(|w| *w *= 1e-7)),
            "fc.bias" => leaf.update(|b| b.data_mut().iter_mut().for_each(|b| *b = 1e3)),
            _ => {}
        }
    }
    let graph = quantized(&float, &QConfigMap::default(), &images);
    let findings = diagnose(&graph).unwrap();
    let widened = Problem::WidenedChannels { count: 10, of: 10 };
    assert!(findings.contains(&Finding { layer: "fc".into(), problem: widened }), "{findings:?}");
    assert_equal(&graph, &convert(&graph).unwrap(), &images);
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

/// Layers left in float compute in float, between integers, and as the graph does.
#[test]
fn what_stays_in_float_is_the_graphs_own_too() {
    let (images, _) = photos(4);
    let operators = QConfigMap::default().with_operator("add", None);
    let maps = [
        (QConfigMap::default().skip("conv1"), 2),
        (QConfigMap::default().skip("fc").skip("layer2.*"), 5),
        (operators.with_operator("global_avg_pool", None), 4),
        (QConfigMap::default().skip("*"), 20),
    ];
    for (map, least) in maps {
        let graph = calibrated("resnet8", 4, &map, &images);
        let program = convert(&graph).unwrap();
        assert_equal(&graph, &program, &images);
        let float = program.nodes().iter().filter(|node| !node.why.is_empty()).count();
        assert!(float >= least, "{float} nodes in float");
        let file = program.to_container().unwrap().to_bytes();
        let file = ottava::quant::Container::read(file).unwrap();
        assert_eq!(Program::from_container(&file).unwrap(), program);
        let engine = ottava::quant::Engine::new(&program).unwrap();
        let expected = engine.run(&images, &mut Default::default()).unwrap();
        let small = ottava::quant::Options::small();
        let engine = ottava::quant::Engine::with_options(&program, small).unwrap();
        assert_eq!(engine.run(&images, &mut Default::default()).unwrap(), expected);
    }
}

/// Depthwise convolutions, linear bottlenecks and ReLU6: all of it in integers.
#[test]
fn mobilenet_is_integers() {
    let (images, _) = photos(4);
    let graph = calibrated("mobilenet_v2", 1, &QConfigMap::default(), &images);
    let program = convert(&graph).unwrap();
    assert!(program.nodes().iter().all(|node| node.why.is_empty()));
    assert_equal(&graph, &program, &images);
}

/// Branches that are concatenated, ReLU6 fused and on its own: no operator in float.
#[test]
fn branches_and_clips_are_integers() {
    use ottava::autograd::ops::{Clip, MaxPool2d};
    use ottava::autograd::{Leaf, trace};
    use ottava::tensor::conv::ConvAttrs;

    let (images, _) = photos(4);
    let random = |shape: &[usize], seed: usize| {
        let len: usize = shape.iter().product();
        let value = |i: usize| ((i * 61 + seed * 17) % 97) as f32 / 97.0 - 0.45;
        Tensor::new(shape, (0..len).map(value).collect::<Vec<_>>()).unwrap()
    };
    let leaves: Vec<(String, Leaf)> = [&[8, 1, 3, 3][..], &[6, 1, 1, 1], &[10, 15]]
        .iter()
        .zip(["a.weight", "b.weight", "fc.weight"])
        .enumerate()
        .map(|(i, (shape, name))| (name.into(), Leaf::param(random(shape, i))))
        .collect();
    let [a, b, fc] = [0, 1, 2].map(|i| &leaves[i].1);
    let graph = trace(&leaves, &images, |x| {
        let tape = x.tape();
        let wide = x.conv2d(tape.leaf(a), None, ConvAttrs::new(1, 1))?.relu()?;
        let point = x.conv2d(tape.leaf(b), None, ConvAttrs::default())?.clip(Clip::RELU6)?;
        let pool = MaxPool2d { kernel: [3, 3], stride: [1, 1], padding: [1; 4] };
        let whole = wide.concat(&[point, x.max_pool2d(pool)?], 1)?;
        let whole = whole.clip(Clip { min: -0.5, max: 1.0 })?;
        whole.global_avg_pool()?.flatten()?.linear(tape.leaf(fc), None)
    });
    let prepared = prepare(&graph.unwrap(), &QConfigMap::default()).unwrap();
    assert!(prepared.float.iter().all(|node| node.op == "max_pool2d"), "{prepared:?}");
    let graph = prepared.graph;
    graph.run(Tape::no_grad(Mode::CALIBRATE).input(images.clone())).unwrap();
    let program = convert(&graph).unwrap();
    let ops: Vec<&str> = program.nodes().iter().map(|node| node.instr.op()).collect();
    assert!(ops.contains(&"concat") && ops.contains(&"clip"), "{ops:?}");
    assert_equal(&graph, &program, &images);
    // One step of training, all gradients kept.
    let tape = Tape::new(Mode::TRAIN);
    let loss = graph.run(tape.input(images)).unwrap().cross_entropy(&[0, 1, 2, 3], 0.0).unwrap();
    let gradients = loss.backward().unwrap();
    for (name, leaf) in &leaves {
        assert!(gradients.get(leaf).unwrap().iter().any(|g| g != 0.0), "{name}");
    }
}

/// A whole network in float with dynamic linear layers: near the float network, and smaller.
#[test]
fn linear_layers_are_quantized_at_run_time() {
    let (images, _) = photos(4);
    let settings = ModelConfig { classes: 10, in_channels: 1, ..ModelConfig::default() };
    let model = build("resnet8", &settings).unwrap();
    let graph = nn::trace(&*model, &images).unwrap();
    let run = |program: &Program| {
        let engine = ottava::quant::Engine::new(program).unwrap();
        engine.run(&images, &mut Default::default()).unwrap().to_vec()
    };
    let float = convert(&graph).unwrap();
    let logits = nn::predict(&graph, Mode::EVAL, images.clone()).unwrap().to_vec();
    assert_eq!(run(&float), logits);
    let dynamic = nn::qat::convert_dynamic(&graph, WeightSpec::default()).unwrap();
    let most = logits.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let near = run(&dynamic).iter().zip(&logits).all(|(a, b)| (a - b).abs() < 0.03 * most);
    assert!(near && run(&dynamic) != logits);
    assert!(dynamic.summary().bytes < float.summary().bytes);
}

/// One step of gradient descent, ranges and scales included; whether any range has moved.
fn descend(graph: &Graph, images: &Tensor<f32>) -> bool {
    let before = graph.state_dict();
    let classes = vec![0; images.shape()[0]];
    let optimizer = OptimizerConfig::new(OptimizerKind::Sgd, 0.0);
    let optimizer = optimizer.build(graph.parameters(), optim::all).unwrap();
    let schedule = Schedule::new(ScheduleKind::Constant, 0.01, 0, 1);
    let mut trainer = Trainer::new(graph, optimizer, schedule, TrainConfig::new(1));
    let batch = |_| [Ok::<_, Infallible>((images.clone(), classes.clone()))];
    trainer.run(batch, |_, _| ControlFlow::Continue(())).unwrap();
    graph
        .state_dict()
        .iter()
        .zip(&before)
        .any(|(now, old)| now.0.ends_with("output_range") && now.1.to_vec() != old.1.to_vec())
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
        symmetric: bool, narrow: bool, per_channel: bool, bits in 2u8..=8, activation_bits in 2u8..=8,
        levels in prop::sample::select(vec![
            Levels::Uniform, Levels::PowerOfTwo, Levels::PowerOfTwoLog2, Levels::AdditivePowerOfTwo,
        ]),
        range in prop::sample::select(vec![
            WeightRange::Largest, WeightRange::LeastError, WeightRange::MeanMagnitude,
        ]),
        power_of_two: bool, approximate: bool, fused: bool,
        learning in prop::sample::select(vec![None, Some(Learning::StepSize), Some(Learning::Clip)]),
        trained: bool, ends: bool, seed in 0u64..1000,
        model in prop::sample::select(vec!["resnet8", "resnet20"]),
    ) {
        let (images, _) = photos(3);
        let scheme = if symmetric { Scheme::Symmetric } else { Scheme::Affine };
        let activation = ActivationQuant::of_bits(scheme, activation_bits);
        let activation = if narrow { activation.narrow() } else { activation };
        let activation = ActivationQuant { power_of_two, learn: learning, ..activation };
        let bits = if levels.has_codes(bits) { bits } else { bits.min(4) };
        let weight = WeightSpec { bits, per_channel, levels, range, power_of_two };
        let learn_scales = learning.is_some() && per_channel && !power_of_two;
        let folding = if approximate { Folding::Approximate } else { Folding::Exact };
        let mut map = QConfigMap::new(QConfig { weight, learn_scales, folding, activation });
        if ends {
            map = map.first_last(QConfig { folding, ..QConfig::default() });
        }
        if !fused {
            map = map.without_relu_fusion();
        }
        let graph = calibrated(model, seed, &map, &images);
        if trained {
            // Where scales were rounded up to a power of two nothing may exceed a clip, and with a few
            // codes an average may round to zero: no gradient comes behind it.
            let silent = || {
                let logits = nn::predict(&graph, Mode::EVAL, images.clone()).unwrap();
                logits.iter().all(|y| y == 0.0)
            };
            let rests = power_of_two && (learning == Some(Learning::Clip) || silent());
            prop_assert!(descend(&graph, &images) || rests, "no range has learned");
            let batches = [Ok::<_, ottava::autograd::Error>(images.clone())];
            prop_assert_eq!(reestimate_batch_norm(&graph, batches).unwrap(), 1);
        }
        assert_equal(&graph, &convert(&graph).unwrap(), &images);
    }
}
