//! Preparing, diagnosing and re-estimating: what is refused, what is said, and of which layer.

use ottava_autograd::ops::{ActivationQuant, BatchNorm2d, Learning};
use ottava_autograd::{Degenerate, Graph, Leaf, Mode, NodeKind, Observer, Op, Tape};
use ottava_nn::models::{ModelConfig, build};
use ottava_nn::qat::{
    Finding, Problem, QConfig, QConfigMap, convert, diagnose, prepare, reestimate_batch_norm,
    verify,
};
use ottava_nn::{Network as _, trace};
use ottava_quant::{Levels, Scheme, WeightSpec};
use ottava_tensor::Tensor;
use ottava_tensor::conv::ConvAttrs;

fn images(count: usize, seed: usize) -> Tensor<f32> {
    let value = |i: usize| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0;
    let values: Vec<f32> = (0..count * 3 * 16 * 16).map(value).collect();
    Tensor::new(&[count, 3, 16, 16], values).unwrap()
}

fn network() -> Graph {
    let model = build("resnet8", &ModelConfig { classes: 4, ..ModelConfig::default() }).unwrap();
    trace(&*model, &images(1, 0)).unwrap()
}

fn calibrated(map: &QConfigMap) -> Graph {
    let graph = prepare(&network(), map).unwrap().graph;
    graph.run(Tape::no_grad(Mode::CALIBRATE).input(images(4, 1))).unwrap();
    graph
}

fn of_activation(activation: ActivationQuant) -> QConfig {
    QConfig { activation, ..QConfig::default() }
}

/// Each error names the layer, says why, and what to do.
#[test]
fn what_cannot_be_quantized_is_refused_by_name() {
    let eight = ActivationQuant::default();
    let watched = |observer| of_activation(ActivationQuant { observer, ..eight });
    let weight = |weight| QConfig { weight, ..QConfig::default() };
    let spec = WeightSpec::default();
    let learned = |mut config: QConfig| {
        config.learn_scales = true;
        config
    };
    let bad = [
        (weight(WeightSpec { bits: 9, ..spec }), "2 to 8 bits"),
        (weight(WeightSpec { bits: 6, levels: Levels::AdditivePowerOfTwo, ..spec }), "2 to 5"),
        (learned(weight(WeightSpec { per_channel: false, ..spec })), "without per-tensor"),
        (learned(weight(WeightSpec { power_of_two: true, ..spec })), "without learning"),
        (of_activation(ActivationQuant { qmax: 256, ..eight }), "0..=255"),
        (of_activation(ActivationQuant { qmin: 5, qmax: 5, ..eight }), "5..=5"),
        (
            of_activation(ActivationQuant {
                scheme: Scheme::Symmetric,
                qmin: -128,
                qmax: -1,
                ..eight
            }),
            "no grid",
        ),
        (watched(Observer::PerChannelMinMax { axis: 1 }), "whole tensor"),
        (watched(Observer::Fixed { min: 1.0, max: f32::NAN }), "finite"),
        (watched(Observer::Percentile { share: 0.1, averaging_constant: 0.1 }), "0.9999"),
        (watched(Observer::MovingAverageMinMax { averaging_constant: 0.0 }), "0.01"),
        (
            of_activation(ActivationQuant {
                observer: Observer::Histogram { levels: 256 },
                learn: Some(Learning::Clip),
                ..eight
            }),
            "another observer",
        ),
    ];
    let graph = network();
    let layer = graph.nodes().iter().map(|n| n.name.as_str()).find(|n| n.ends_with("conv2"));
    let layer = layer.unwrap();
    for (config, mend) in bad {
        let map = QConfigMap::default().with(layer, config);
        let error = prepare(&graph, &map).unwrap_err().to_string();
        assert!(error.contains(&format!("`{layer}`")) && error.contains(mend), "{error}");
        let map = QConfigMap::default().first_last(config);
        let error = prepare(&graph, &map).unwrap_err().to_string();
        assert!(error.contains("layer `conv1`") && error.contains(mend), "{error}");
    }
}

#[test]
fn a_rule_that_can_match_nothing_is_refused() {
    let graph = network();
    let error = |map: QConfigMap| prepare(&graph, &map).unwrap_err().to_string();
    assert!(error(QConfigMap::default().skip("layer9.*")).contains("no layer matches `layer9.*`"));
    let misspelt = error(QConfigMap::default().with_operator("conv", None));
    assert!(misspelt.contains("`conv`") && misspelt.contains("conv2d"), "{misspelt}");
    for operator in QConfigMap::OPERATORS {
        assert!(prepare(&graph, &QConfigMap::default().with_operator(operator, None)).is_ok());
    }
}

/// The first and the last layer's activations: of what the last one reads, wherever its codes are made.
#[test]
fn the_last_layer_reads_what_the_ends_say() {
    let graph = network();
    let bits = |bits| QConfig {
        activation: ActivationQuant::of_bits(Scheme::Affine, bits),
        ..QConfig::default()
    };
    let (low, ends) = (bits(4), bits(8));
    let codes = |map: &QConfigMap| -> Vec<(String, i32)> {
        let graph = prepare(&graph, map).unwrap().graph;
        let rounded = graph.nodes().iter().filter_map(|node| match &node.kind {
            NodeKind::Op(Op::Quantize(op), _) => Some((node.name.clone(), op.output.qmax)),
            NodeKind::Op(Op::QuantLayer(op), _) => Some((node.name.clone(), op.output?.qmax)),
            NodeKind::Op(Op::QuantAdd(op), _) => Some((node.name.clone(), op.output.qmax)),
            NodeKind::Op(Op::QuantAvgPool(op), _) => Some((node.name.clone(), op.output.qmax)),
            _ => None,
        });
        rounded.collect()
    };
    let eight = |rounded: Vec<(String, i32)>| -> Vec<String> {
        rounded.into_iter().filter(|(_, qmax)| *qmax == 255).map(|(name, _)| name).collect()
    };
    let map = QConfigMap::new(low).first_last(ends);
    let plain = eight(codes(&map));
    assert!(plain.len() == 3 && plain[0].ends_with(".quantize") && plain[2] == "fc", "{plain:?}");
    // The average in float: its result is rounded in front of the last layer, and nothing before it is.
    let apart = eight(codes(&map.with_operator("global_avg_pool", None)));
    assert_eq!(apart, [&plain[0], "flatten.quantize", "fc"]);
}

/// A BatchNorm whose scales are computed cannot be folded: it and its layer stay in float, and say why.
#[test]
fn a_computed_batch_norm_leaves_its_layer_in_float() {
    let weight = Leaf::param(Tensor::full(&[2, 3, 1, 1], 0.5));
    let [one, zero] = [1.0, 0.0].map(|value| Leaf::buffer(Tensor::full(&[2], value)));
    let named = [("w", &weight), ("one", &one), ("zero", &zero)];
    let named = named.map(|(name, leaf)| (name.to_owned(), leaf.clone()));
    let graph = ottava_autograd::trace(&named, &images(1, 0), |x| {
        let [weight, one, zero] = [&weight, &one, &zero].map(|leaf| x.tape().leaf(leaf));
        let (gamma, norm) = (one.add(one)?, BatchNorm2d::default());
        let y = x.conv2d(weight, None, ConvAttrs::default())?;
        y.batch_norm2d(gamma, zero, zero, one, norm)?.global_avg_pool()?.flatten()
    });
    let prepared = prepare(&graph.unwrap(), &QConfigMap::default()).unwrap();
    let reasons = Vec::from_iter(prepared.float.iter().map(|node| (node.op, &*node.reason)));
    let computed =
        |op: &str| reasons.iter().any(|(name, reason)| *name == op && reason.contains("computed"));
    assert!(computed("conv2d") && computed("batch_norm2d"), "{reasons:?}");
}

/// Wide powers of two have no integer codes: the layer is listed, trains, and converts to float.
#[test]
fn levels_without_codes_leave_a_layer_in_float() {
    let wide = WeightSpec { bits: 6, levels: Levels::PowerOfTwo, ..WeightSpec::default() };
    let map = QConfigMap::default().with("fc", QConfig { weight: wide, ..QConfig::default() });
    let prepared = prepare(&network(), &map).unwrap();
    assert_eq!(prepared.float.len(), 1);
    assert!(prepared.float[0].name == "fc" && prepared.float[0].reason.contains("float"));
    let graph = prepared.graph;
    graph.run(Tape::no_grad(Mode::CALIBRATE).input(images(4, 1))).unwrap();
    let tape = Tape::new(Mode::TRAIN);
    let loss = graph.run(tape.input(images(4, 1))).unwrap().cross_entropy(&[0, 1, 2, 3], 0.0);
    let gradients = loss.unwrap().backward().unwrap();
    let weight = graph.leaves().into_iter().find(|(name, _)| name == "fc.weight").unwrap().1;
    assert!(gradients.get(&weight).unwrap().iter().any(|g| g != 0.0));
    let program = convert(&graph).unwrap();
    let fc = program.nodes().iter().find(|node| node.name == "fc").unwrap();
    assert!(fc.instr.op() == "float_linear" && fc.why.contains("8-bit codes"), "{}", fc.why);
    let rows = verify(&graph, &program, &images(4, 2)).unwrap();
    assert!(rows.iter().any(|row| row.name == "fc"));
    assert!(rows.iter().all(|row| row.differing == 0), "{rows:?}");
}

/// Layers with a problem are named; without one, nothing is said.
#[test]
fn findings_name_the_layer() {
    assert_eq!(diagnose(&calibrated(&QConfigMap::default())).unwrap(), []);

    let unseen = prepare(&network(), &QConfigMap::default()).unwrap().graph;
    let never = |name: &str| Finding { layer: name.into(), problem: Problem::NeverObserved };
    assert!(diagnose(&unseen).unwrap().contains(&never("conv1")));

    let graph = prepare(&network(), &QConfigMap::default()).unwrap().graph;
    for (name, leaf) in graph.leaves() {
        if name == "bn1.weight" || name == "bn1.bias" {
            leaf.update(|values| values.data_mut().fill(0.0));
        }
    }
    graph.run(Tape::no_grad(Mode::CALIBRATE).input(images(2, 1).map(|_| 3.0))).unwrap();
    let findings = diagnose(&graph).unwrap();
    let expect = |layer: &str, problem| {
        let finding = Finding { layer: layer.into(), problem };
        assert!(findings.contains(&finding), "{finding:?} is not in {findings:?}");
        assert!(finding.to_string().contains(&format!("layer `{layer}`")));
    };
    expect("input.quantize", Problem::Range(Degenerate::Constant { value: 3.0 }));
    expect("conv1", Problem::Range(Degenerate::Zeros));
    let of = graph.leaves().iter().find(|(n, _)| n == "bn1.bias").unwrap().1.get().len();
    expect("conv1", Problem::DeadChannels { count: of, of });
}

/// Descent may push an end of a learned range past zero, where the grid ends.
#[test]
fn a_learned_range_that_was_seen_stays_seen() {
    let graph = calibrated(&QConfigMap::new(QConfig::default().learned()));
    let node = graph.nodes().iter().find(|node| node.name == "conv1").unwrap();
    let state = *node.inputs().last().unwrap();
    graph.nodes()[state].leaf().unwrap().set(Tensor::new(&[2], [0.0, -0.5]).unwrap());
    let findings = diagnose(&graph).unwrap();
    assert!(!findings.is_empty() && findings.iter().all(|f| f.layer == "conv1"), "{findings:?}");
    assert!(findings.iter().all(|f| f.problem != Problem::NeverObserved), "{findings:?}");
}

/// A NaN that reaches an observer, or a weight, is an error that names the layer.
#[test]
fn what_is_not_finite_names_the_layer() {
    let graph = calibrated(&QConfigMap::default());
    let bad = images(1, 2).map(|x| if x > 0.9 { f32::NAN } else { x });
    let error = graph.run(Tape::no_grad(Mode::CALIBRATE).input(bad)).unwrap_err().to_string();
    assert!(error.contains("layer `input.quantize`"), "{error}");
    let fc = graph.leaves().into_iter().find(|(name, _)| name == "fc.weight").unwrap().1;
    fc.update(|w| w.data_mut()[0] = f32::NAN);
    for error in [
        graph.run(Tape::no_grad(Mode::EVAL).input(images(1, 2))).unwrap_err(),
        convert(&graph).unwrap_err(),
        diagnose(&graph).unwrap_err(),
    ] {
        assert!(error.to_string().contains("layer `fc`"), "{error}");
    }
}

/// With one batch the running statistics become that batch's; with more, their mean; and an error leaves
/// them as they were.
#[test]
fn statistics_are_the_mean_over_the_batches() {
    type Batch = Result<Tensor<f32>, ottava_autograd::Error>;
    let statistics = |graph: &Graph| -> Vec<Vec<f32>> {
        let leaves = graph.leaves().into_iter();
        leaves.filter(|(n, _)| n.contains("running")).map(|(_, l)| l.get().to_vec()).collect()
    };
    let graph = calibrated(&QConfigMap::default());
    let before = statistics(&graph);
    let none: [Batch; 0] = [];
    assert_eq!(reestimate_batch_norm(&graph, none).unwrap(), 0);
    assert_eq!(statistics(&graph), before);
    let broken = ottava_autograd::Error::Trace { reason: "no more".into() };
    let batches: [Batch; 2] = [Ok(images(4, 7)), Err(broken)];
    assert!(reestimate_batch_norm(&graph, batches).is_err());
    assert_eq!(statistics(&graph), before);

    let of = |seeds: &[usize]| {
        let batches: Vec<Batch> = seeds.iter().map(|&seed| Ok(images(4, seed))).collect();
        assert_eq!(reestimate_batch_norm(&graph, batches).unwrap(), seeds.len());
        statistics(&graph)
    };
    let (a, b, both) = (of(&[1]), of(&[2]), of(&[1, 2]));
    assert_ne!(a, before);
    for ((a, b), both) in a.iter().flatten().zip(b.iter().flatten()).zip(both.iter().flatten()) {
        let mean = (a + b) / 2.0;
        assert!((mean - both).abs() <= 1e-5 * mean.abs().max(1e-3), "{a}, {b}, {both}");
    }
    // The graph is as good a network as before: it evaluates and converts.
    convert(&graph).unwrap();
    assert_eq!(graph.parameter_count(), calibrated(&QConfigMap::default()).parameter_count());
}

/// Widths of activations: the codes of each scheme.
#[test]
fn widths_have_their_codes() {
    let codes = |scheme, bits| {
        let quant = ActivationQuant::of_bits(scheme, bits);
        (quant.qmin, quant.qmax)
    };
    assert_eq!(codes(Scheme::Affine, 8), (0, 255));
    assert_eq!(codes(Scheme::Affine, 2), (0, 3));
    assert_eq!(codes(Scheme::Symmetric, 8), (-128, 127));
    assert_eq!(codes(Scheme::Symmetric, 4), (-8, 7));
    assert_eq!(ActivationQuant::of_bits(Scheme::Symmetric, 8).narrow().qmin, -127);
    assert_eq!(ActivationQuant::of_bits(Scheme::Affine, 8), ActivationQuant::default());
}
