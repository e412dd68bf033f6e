//! Quantization without training, diagnosis and the choice of widths, against naive computations.

use std::convert::Infallible;

use ottava_autograd::ops::{
    ActivationQuant, Clip, Conv2d, Flatten, GlobalAvgPool, Linear, Mul, QuantLayer,
};
use ottava_autograd::{Graph, GraphNode, Leaf, Mode, NodeKind, Op, Tape};
use ottava_nn::models::{ModelConfig, build};
use ottava_nn::qat::{
    AdaRound, Choice, QConfig, QConfigMap, adaround, allocate, analyze, convert, correct_bias,
    equalize, fold_norms, prepare, sensitivities,
};
use ottava_nn::{Network as _, predict, trace};
use ottava_quant::{Engine, Scheme, WeightRange, WeightSpec, Workspace};
use ottava_tensor::Tensor;
use ottava_tensor::conv::ConvAttrs;

const FLOAT: Mode = Mode { batch_stats: false, observe: false, quantize: false };

fn images(count: usize, seed: usize) -> Tensor<f32> {
    let value = |i: usize| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0;
    let values: Vec<f32> = (0..count * 3 * 16 * 16).map(value).collect();
    Tensor::new(&[count, 3, 16, 16], values).unwrap()
}

/// A network whose BatchNorms have seen images.
fn network() -> Graph {
    let model = build("resnet8", &ModelConfig { classes: 4, ..ModelConfig::default() }).unwrap();
    for seed in 0..20 {
        predict(&*model, Mode::TRAIN, images(8, seed)).unwrap();
    }
    trace(&*model, &images(1, 0)).unwrap()
}

fn config(bits: u8) -> QConfigMap {
    let weight = WeightSpec { bits, ..Default::default() };
    QConfigMap::new(QConfig { weight, ..QConfig::default() })
}

fn calibrated(graph: &Graph, map: &QConfigMap) -> Graph {
    let graph = prepare(graph, map).unwrap().graph;
    predict(&graph, Mode::CALIBRATE, images(8, 1)).unwrap();
    graph
}

fn batches() -> Vec<Result<Tensor<f32>, Infallible>> {
    vec![Ok(images(5, 1)), Ok(images(3, 2))]
}

fn largest_difference(a: &Tensor<f32>, b: &Tensor<f32>) -> f32 {
    assert_eq!(a.shape(), b.shape());
    // In the total order a NaN is larger than any number.
    a.iter().zip(b.iter()).map(|(a, b)| (a - b).abs()).max_by(f32::total_cmp).unwrap_or(0.0)
}

fn squared(a: &Tensor<f32>, b: &Tensor<f32>) -> f64 {
    a.iter().zip(b.iter()).map(|(a, b)| f64::from(a - b).powi(2)).sum()
}

/// The value of every operator of a prepared graph.
fn values(graph: &Graph, mode: Mode, x: Tensor<f32>) -> Vec<(String, Tensor<f32>)> {
    let mut values = Vec::new();
    graph
        .run_with(Tape::no_grad(mode).input(x), |node, var| {
            values.push((node.name.clone(), var.tensor()));
        })
        .unwrap();
    values
}

#[test]
fn folding_and_equalizing_keep_the_function() {
    let graph = network();
    let folded = fold_norms(&graph).unwrap();
    let norm = |node: &ottava_autograd::GraphNode| {
        matches!(&node.kind, NodeKind::Op(Op::BatchNorm2d(_), _))
    };
    assert!(graph.nodes().iter().any(norm) && !folded.nodes().iter().any(norm));
    let expected = predict(&graph, Mode::EVAL, images(4, 3)).unwrap();
    let ours = predict(&folded, Mode::EVAL, images(4, 3)).unwrap();
    assert!(largest_difference(&expected, &ours) < 1e-4);

    let pairs = equalize(&folded).unwrap();
    assert!(pairs.iter().any(|p| p.first.ends_with("conv1") && p.second.ends_with("conv2")));
    let ours = predict(&folded, Mode::EVAL, images(4, 3)).unwrap();
    assert!(largest_difference(&expected, &ours) < 1e-3);
    // As a program, in fewer steps, it is the same to the bit.
    let program = Engine::new(&convert(&folded).unwrap()).unwrap();
    let deployed = program.run(&images(4, 3), &mut Workspace::new()).unwrap();
    assert_eq!(deployed, ours);
    // The original is as it was.
    assert_eq!(predict(&graph, Mode::EVAL, images(4, 3)).unwrap(), expected);
}

/// Two linear layers, the first with this bias, and another reader of the bias if it is `shared`.
fn two_layers(first: [f32; 4], second: [f32; 2], shared: bool) -> Graph {
    let leaf = |name: &str, value: Tensor<f32>| GraphNode {
        name: name.into(),
        kind: NodeKind::Leaf(Leaf::param(value)),
    };
    let op = |name: &str, op: Op, inputs: Vec<usize>| GraphNode {
        name: name.into(),
        kind: NodeKind::Op(op, inputs),
    };
    let input = GraphNode { name: "x".into(), kind: NodeKind::Input(vec![2]) };
    let mut nodes = vec![
        input,
        leaf("first.weight", Tensor::new(&[2, 2], first).unwrap()),
        leaf("first.bias", Tensor::new(&[2], [0.5, -0.5]).unwrap()),
        op("first", Linear.into(), vec![0, 1, 2]),
        leaf("second.weight", Tensor::new(&[1, 2], second).unwrap()),
        op("second", Linear.into(), vec![3, 4]),
    ];
    if shared {
        nodes.push(op("product", Mul.into(), vec![5, 2]));
    }
    let output = nodes.len() - 1;
    Graph::new(nodes, output).unwrap()
}

#[test]
fn equalizing_leaves_alone_what_it_cannot_move() {
    let x = || Tensor::new(&[2, 2], [1.0, 2.0, -0.5, 0.25]).unwrap();
    for shared in [false, true] {
        let graph = two_layers([4.0, 1.0, 0.5, 0.25], [0.1, 2.0], shared);
        let before = predict(&graph, Mode::EVAL, x()).unwrap();
        assert_eq!(equalize(&graph).unwrap().len(), usize::from(!shared));
        assert!(largest_difference(&before, &predict(&graph, Mode::EVAL, x()).unwrap()) < 1e-6);
    }
    // Beside a channel of zeros as well, where nothing moves.
    for bad in [f32::NAN, f32::INFINITY] {
        let error = |graph: Graph| equalize(&graph).unwrap_err().to_string();
        let first = error(two_layers([bad, 0.0, 1.0, 1.0], [0.0, 1.0], false));
        assert!(first.contains("`first`") && first.contains("not finite"), "{first}");
        let second = error(two_layers([0.0, 0.0, 1.0, 1.0], [bad, 1.0], false));
        assert!(second.contains("`second`") && second.contains("not finite"), "{second}");
    }
}

/// With one scale a tensor, channels a thousand times smaller than others are lost; not when equalized.
#[test]
fn equalizing_helps_a_badly_scaled_network() {
    let folded = fold_norms(&network()).unwrap();
    // Multiply channels of `conv1`, divide the inputs of `conv2`: the same network, badly scaled.
    for (name, leaf) in folded.leaves() {
        let value = leaf.get();
        let scale = |c: usize| 10f32.powi((c % 4) as i32);
        let inner: usize = value.shape().iter().skip(1).product::<usize>().max(1);
        let taps: usize = value.shape().iter().skip(2).product();
        let block = name.contains('.') && name != "conv1.weight";
        let values: Option<Vec<f32>> = if block && name.contains(".conv1.") {
            Some(value.iter().enumerate().map(|(i, w)| w * scale(i / inner)).collect())
        } else if name.ends_with(".conv2.weight") {
            let inputs = value.shape()[1];
            Some(value.iter().enumerate().map(|(i, w)| w / scale(i / taps % inputs)).collect())
        } else {
            None
        };
        if let Some(values) = values {
            leaf.set(Tensor::new(value.shape(), values).unwrap());
        }
    }
    let weight = WeightSpec { per_channel: false, ..Default::default() };
    let map = QConfigMap::new(QConfig { weight, ..QConfig::default() });
    let error = |graph: &Graph| {
        let prepared = calibrated(graph, &map);
        let x = images(8, 1);
        squared(
            &predict(graph, Mode::EVAL, x.clone()).unwrap(),
            &predict(&prepared, Mode::EVAL, x).unwrap(),
        )
    };
    let before = error(&folded);
    equalize(&folded).unwrap();
    let after = error(&folded);
    assert!(after < before / 10.0, "{before} {after}");
}

#[test]
fn bias_correction_takes_the_mean_error_away() {
    let graph = calibrated(&fold_norms(&network()).unwrap(), &config(4));
    let reference = graph.detach();
    // The mean error of each channel of a result that has no ReLU behind it.
    let mean_error = || {
        let (mut sums, mut count) = (vec![0.0f64; 16], 0.0);
        for x in batches() {
            let x = x.unwrap();
            let find = |values: Vec<(String, Tensor<f32>)>| {
                values.into_iter().find(|(name, _)| name.ends_with("0.conv2")).unwrap().1
            };
            let ours = find(values(&graph, Mode::EVAL, x.clone()));
            let theirs = find(values(&reference, FLOAT, x));
            let pixels = ours.len() / 16 / ours.shape()[0];
            for (i, (a, b)) in ours.iter().zip(theirs.iter()).enumerate() {
                sums[i / pixels % 16] += f64::from(a - b);
            }
            count += (ours.len() / 16) as f64;
        }
        sums.iter().map(|sum| (sum / count).abs()).fold(0.0, f64::max)
    };
    let before = mean_error();
    let report = correct_bias(&graph, batches).unwrap();
    assert!(report.iter().all(|row| row.largest.is_finite()) && report.len() > 8);
    let after = mean_error();
    // What is left is the mean of the rounding of the result to its grid.
    assert!(after < before / 5.0, "{before} {after}");
}

#[test]
fn a_layer_without_a_bias_is_named() {
    let graph = calibrated(&network(), &config(8));
    assert!(correct_bias(&graph, batches).is_ok()); // BatchNorms have one
    let error = adaround(&graph, &AdaRound::default(), batches, |_| ()).unwrap_err().to_string();
    assert!(error.contains("layer `conv1`") && error.contains("fold_norms"), "{error}");
}

#[test]
fn adaround_loses_less_than_rounding_to_the_nearest() {
    let folded = fold_norms(&network()).unwrap();
    let nearest = calibrated(&folded.detach(), &config(4));
    let graph = calibrated(&folded, &config(4));
    let reference = graph.detach();
    let options = AdaRound { iterations: 300, rows: 1000, ..AdaRound::default() };
    let report = adaround(&graph, &options, batches, |_| ()).unwrap();
    assert_eq!(report.iter().filter(|row| row.adaptive > row.nearest).count(), 0);
    let total = |of: fn(&ottava_nn::qat::Rounded) -> f64| report.iter().map(of).sum::<f64>();
    assert!(total(|row| row.adaptive) < 0.8 * total(|row| row.nearest), "{report:?}");
    assert!(report.iter().any(|row| row.moved > 0));
    // Of the network, not only by the search's own account; and it stays so through conversion.
    let x = images(8, 1);
    let exact = predict(&reference, FLOAT, x.clone()).unwrap();
    let error = |graph: &Graph| squared(&predict(graph, Mode::EVAL, x.clone()).unwrap(), &exact);
    assert!(error(&graph) < error(&nearest), "{} {}", error(&graph), error(&nearest));
    // Preparing anew rounds to what was chosen: every weight lies on its grid already.
    for (node, leaf) in graph.nodes().iter().filter_map(|node| match &node.kind {
        NodeKind::Op(Op::QuantLayer(layer), inputs) => Some((layer, inputs[1])),
        _ => None,
    }) {
        let NodeKind::Leaf(leaf) = &graph.nodes()[leaf].kind else { panic!("a weight") };
        let weight = leaf.get();
        let grids = node.weight.grids(&weight).unwrap();
        let rounded = node.weight.fake_quantize(&weight, &grids).unwrap();
        let most = weight.iter().fold(0.0f32, |most, w| most.max(w.abs()));
        assert!(largest_difference(&rounded, &weight) <= 1e-5 * most);
    }
    convert(&graph).unwrap();
}

#[test]
fn analysis_is_the_naive_computation() {
    let graph = calibrated(&network(), &config(4));
    let targets = vec![0, 1, 2, 3, 0];
    let analysis = analyze(&graph, [Ok::<_, Infallible>((images(5, 1), targets.clone()))]).unwrap();
    let (exact, rounded) =
        (values(&graph, FLOAT, images(5, 1)), values(&graph, Mode::EVAL, images(5, 1)));
    assert_eq!(analysis.float.images, 5);
    for node in &analysis.nodes {
        let find = |values: &[(String, Tensor<f32>)]| {
            values.iter().find(|(name, _)| *name == node.name).unwrap().1.clone()
        };
        let (x, q) = (find(&exact), find(&rounded));
        let signal: f64 = x.iter().map(|x| f64::from(x).powi(2)).sum();
        let naive = 20.0 * (signal.sqrt() / squared(&x, &q).sqrt()).log10();
        assert!((node.sqnr - naive).abs() < 1e-6, "{}: {} {naive}", node.name, node.sqnr);
        assert!((0.0..=1.0).contains(&node.clipped) && node.isolated > 0.0);
    }
    // The first two, the input and the layer on it, have nothing before them to pass errors on.
    for node in &analysis.nodes[..2] {
        assert!((node.sqnr - node.isolated).abs() < 1e-9, "{node:?}");
    }
    // One layer alone: the same network with every other layer skipped.
    let name = "fc";
    let map = QConfigMap::default().skip("*").with(name, *config(4).get(name, "linear").unwrap());
    let one = prepare(&network_of(&graph), &map).unwrap().graph;
    let state = graph.state_dict();
    // `fc` reads the average's result: on the average's grid.
    let average = graph.nodes().iter().find_map(|node| match &node.kind {
        NodeKind::Op(Op::QuantAvgPool(_), inputs) => inputs.last(),
        _ => None,
    });
    let NodeKind::Leaf(average) = &graph.nodes()[*average.unwrap()].kind else { panic!("a state") };
    let mut ranges = 0;
    for (leaf_name, leaf) in one.leaves() {
        if leaf_name.ends_with(".quantize.output_range") {
            leaf.set(average.get());
            ranges += 1;
        } else {
            leaf.set(state.iter().find(|(n, _)| *n == leaf_name).unwrap().1.clone());
        }
    }
    assert_eq!(ranges, 1, "one point where floats become codes");
    let logits = predict(&one, Mode::EVAL, images(5, 1)).unwrap();
    let alone = analysis.nodes.iter().find(|node| node.name == name).unwrap().alone;
    let mut naive = ottava_nn::Metrics::default();
    let tape = Tape::no_grad(Mode::EVAL);
    let loss = tape.input(logits.clone()).cross_entropy(&targets, 0.0).unwrap();
    naive.add(&logits, &targets, loss.tensor().item().unwrap()).unwrap();
    assert!((alone.loss_sum - naive.loss_sum).abs() < 1e-4, "{alone:?} {naive:?}");
}

/// A clip that is an operator of its own passes codes on: what reads it is rounded alone, too.
#[test]
fn analysis_sees_through_a_clip_of_its_own() {
    let op = |name: &str, op: Op, inputs: Vec<usize>| GraphNode {
        name: name.into(),
        kind: NodeKind::Op(op, inputs),
    };
    let weight = images(1, 5).slice(2, 0..3, 1).unwrap().slice(3, 0..3, 1).unwrap();
    let leaf = Leaf::param(weight.contiguous());
    let nodes = vec![
        GraphNode { name: "x".into(), kind: NodeKind::Input(vec![3, 16, 16]) },
        GraphNode { name: "conv.weight".into(), kind: NodeKind::Leaf(leaf) },
        op("conv", Conv2d { attrs: ConvAttrs::new(1, 1) }.into(), vec![0, 1]),
        op("clip", Clip { min: 0.0, max: 0.5 }.into(), vec![2]),
        op("mean", GlobalAvgPool.into(), vec![3]),
        op("flatten", Flatten.into(), vec![4]),
    ];
    let graph = Graph::new(nodes, 5).unwrap();
    let graph = calibrated(&graph, &QConfigMap::default().without_relu_fusion());
    let clip = |node: &GraphNode| matches!(node.kind, NodeKind::Op(Op::Clip(_), _));
    assert!(graph.nodes().iter().any(clip));
    let analysis = analyze(&graph, [Ok::<_, Infallible>((images(2, 1), vec![0, 0]))]).unwrap();
    let mean = analysis.nodes.iter().find(|node| node.name == "mean").unwrap();
    assert!(mean.isolated > 20.0, "{mean:?}");
}

/// AdaRound leaves each grid where it is, which a grid made of the mean weight would not be.
#[test]
fn adaround_refuses_a_scale_that_follows_the_mean() {
    let range = WeightRange::MeanMagnitude;
    let weight = WeightSpec { bits: 4, range, ..Default::default() };
    let map = QConfigMap::new(QConfig { weight, ..QConfig::default() });
    let graph = calibrated(&fold_norms(&network()).unwrap(), &map);
    let error = adaround(&graph, &AdaRound::default(), batches, |_| ()).unwrap_err().to_string();
    assert!(error.contains("layer `conv1`") && error.contains("another range"), "{error}");
}

/// A float network with the parameters of a prepared one.
fn network_of(prepared: &Graph) -> Graph {
    let graph = network();
    let state = prepared.state_dict();
    for (name, leaf) in graph.leaves() {
        if let Some((_, value)) = state.iter().find(|(known, _)| *known == name) {
            leaf.set(value.clone());
        }
    }
    graph
}

#[test]
fn the_path_of_widths_goes_from_widest_to_narrowest() {
    let float = network();
    let graphs = [8, 4].map(|bits| calibrated(&float, &config(bits)));
    let batches = [Ok::<_, Infallible>((images(6, 1), vec![0, 1, 2, 3, 0, 1]))];
    let choices = sensitivities(&graphs, batches).unwrap();
    assert!(choices.iter().all(|choice| choice.candidates.len() == 2));
    let path = allocate(&choices);
    assert_eq!(path.len(), choices.len() + 1);
    assert!(path.windows(2).all(|pair| pair[1].bytes < pair[0].bytes));
    assert!(path[0].weights.iter().all(|(_, weight)| weight.bits == 8));
    let narrowest = &path[choices.len()].weights;
    assert!(narrowest.iter().all(|(_, weight)| weight.bits == 4));

    // A width with which there is no loss to tell comes last.
    let mut broken = choices.clone();
    broken[1].candidates[1].alone.loss_sum = f64::NAN;
    let path = allocate(&broken);
    assert_eq!(path.len(), choices.len() + 1);
    let of = |step: usize| path[step].weights[1].1.bits;
    assert_eq!((of(choices.len() - 1), of(choices.len())), (8, 4));

    // Learned scales are each graph's own: as good, before anything was learned, as those of the weights.
    let learned = [8, 4].map(|bits| {
        let weight = WeightSpec { bits, ..Default::default() };
        let config = QConfig { weight, learn_scales: true, ..QConfig::default() };
        calibrated(&float, &QConfigMap::new(config))
    });
    let batches = [Ok::<_, Infallible>((images(6, 1), vec![0, 1, 2, 3, 0, 1]))];
    let losses = |choices: &[Choice]| {
        let all = choices.iter().flat_map(|choice| &choice.candidates);
        Vec::from_iter(all.map(|candidate| candidate.alone.loss()))
    };
    let of_learned = losses(&sensitivities(&learned, batches).unwrap());
    for (learned, given) in of_learned.into_iter().zip(losses(&choices)) {
        assert!((learned - given).abs() < 1e-3, "{learned} {given}");
    }

    // Narrower weights leave everything else of the first and the last layer as it was.
    let ends = || {
        config(8).first_last(QConfig {
            activation: ActivationQuant::of_bits(Scheme::Affine, 5),
            ..QConfig::default()
        })
    };
    let map = narrowest.iter().fold(ends(), |map, (name, weight)| map.with_weight(name, *weight));
    let [wide, narrow] = [ends(), map].map(|map| prepare(&float, &map).unwrap().graph);
    for (wide, narrow) in wide.nodes().iter().zip(narrow.nodes()) {
        match (wide.op(), narrow.op()) {
            (Some(Op::QuantLayer(wide)), Some(Op::QuantLayer(narrow))) => {
                let weight = WeightSpec { bits: 4, ..wide.weight };
                assert_eq!(QuantLayer { weight, ..*wide }, *narrow);
            }
            (wide, narrow) => assert_eq!(wide, narrow),
        }
    }
    let other = config(8).with_weight("layer[1]*", WeightSpec::default());
    assert!(prepare(&float, &other).unwrap_err().to_string().contains("layer[1]*"));
    assert!(
        sensitivities(&[graphs[0].clone(), float], [Ok::<_, Infallible>((images(1, 1), vec![0]))])
            .is_err()
    );
}
