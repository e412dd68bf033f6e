//! Quantized operators: what they compute, and that their gradients are the float layer's.

use ottava_autograd::ops::{
    ActivationQuant, BatchNorm2d, Conv2d, Folding, LayerKind, LearnedFakeQuant, Learning, Pad,
    QuantAdd, QuantAvgPool, QuantLayer, Quantize,
};
use ottava_autograd::{Leaf, Mode, Observer, Tape, Var};
use ottava_quant::{Activation, WeightSpec};
use ottava_tensor::Tensor;
use ottava_tensor::conv::ConvAttrs;

fn values(shape: &[usize], seed: usize) -> Tensor<f32> {
    let len = shape.iter().product::<usize>();
    let data: Vec<f32> =
        (0..len).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0).collect();
    Tensor::new(shape, data).unwrap()
}

const QUANT: ActivationQuant = ActivationQuant {
    scheme: ottava_quant::Scheme::Affine,
    qmin: 0,
    qmax: 255,
    observer: Observer::MinMax,
    power_of_two: false,
    learn: None,
};

const FROZEN: Mode = Mode { batch_stats: false, observe: false, quantize: true };

struct Layer {
    op: QuantLayer,
    leaves: Vec<Leaf>,
}

impl Layer {
    fn new(per_channel: bool, gamma: &[f32]) -> Self {
        let c = gamma.len();
        let op = QuantLayer {
            kind: LayerKind::Conv(ConvAttrs::new(1, 1)),
            weight: WeightSpec { per_channel, ..Default::default() },
            learn_scales: false,
            bias: false,
            norm: Some(BatchNorm2d::default()),
            activation: Activation::RELU,
            folding: Folding::Exact,
            output: Some(QUANT),
        };
        let leaves = vec![
            Leaf::param(values(&[c, 3, 3, 3], 1)),
            Leaf::param(Tensor::new(&[c], gamma).unwrap()),
            Leaf::param(values(&[c], 2)),
            Leaf::buffer(Tensor::zeros(&[c])),
            Leaf::buffer(Tensor::full(&[c], 1.0)),
            Leaf::buffer(QUANT.observer.initial()),
        ];
        Self { op, leaves }
    }

    fn run<'t>(&self, x: Var<'t>, entrance: &Leaf) -> Var<'t> {
        let tape = x.tape();
        let x = tape.apply(Quantize { output: QUANT }.into(), &[x, tape.leaf(entrance)]).unwrap();
        let mut inputs = vec![x];
        inputs.extend(self.leaves.iter().map(|leaf| tape.leaf(leaf)));
        tape.apply(self.op.into(), &inputs).unwrap()
    }

    /// The same layer in float.
    fn float<'t>(&self, x: Var<'t>) -> Var<'t> {
        let tape = x.tape();
        let leaf = |i: usize| tape.leaf(&self.leaves[i]);
        let conv = Conv2d { attrs: ConvAttrs::new(1, 1) };
        let y = tape.apply(conv.into(), &[x, leaf(0)]).unwrap();
        let y = y.batch_norm2d(leaf(1), leaf(2), leaf(3), leaf(4), BatchNorm2d::default()).unwrap();
        y.relu().unwrap()
    }
}

fn largest_difference(a: &Tensor<f32>, b: &Tensor<f32>) -> f32 {
    // In the total order a NaN is larger than any number.
    let most = |values: &mut dyn Iterator<Item = f32>| {
        values.map(f32::abs).max_by(f32::total_cmp).unwrap_or(0.0)
    };
    let difference = most(&mut a.iter().zip(b.iter()).map(|(a, b)| a - b));
    difference / most(&mut b.iter().chain([1e-6]))
}

/// γ of both signs and of zero, per channel and per tensor, statistics live and frozen: values and
/// gradients stay within rounding of the float layer's, and everything is finite.
#[test]
fn a_quantized_layer_follows_the_float_layer() {
    for per_channel in [true, false] {
        for mode in [Mode::TRAIN, FROZEN] {
            let layer = Layer::new(per_channel, &[0.8, -1.1, 0.0, 1.3]);
            let entrance = Leaf::buffer(QUANT.observer.initial());
            let x = values(&[4, 3, 6, 6], 3);
            // Calibrate, so that the frozen mode has ranges; and move statistics off their start.
            layer.run(Tape::no_grad(Mode { observe: true, ..mode }).input(x.clone()), &entrance);
            let copy =
                Layer { op: layer.op, leaves: layer.leaves.iter().map(Leaf::detach).collect() };

            let tape = Tape::new(mode);
            let input = tape.variable(x.clone());
            let y = layer.run(input, &entrance);
            let seed = values(&[4, 4, 6, 6], 5);
            let grads = y.backward_with(seed.clone());

            let float_tape = Tape::new(mode);
            let float_input = float_tape.variable(x.clone());
            let float_y = copy.float(float_input);
            let float_grads = float_y.backward_with(seed);

            let what = format!("per channel {per_channel}, {mode:?}");
            let off = largest_difference(&y.tensor(), &float_y.tensor());
            assert!(off < 0.02, "{what}: value off by {off}");
            for i in 0..3 {
                let ours = grads.get(&layer.leaves[i]).unwrap();
                let theirs = float_grads.get(&copy.leaves[i]).unwrap();
                let off = largest_difference(ours, theirs);
                // The masks differ where y is within a step of zero: a few elements' gradients.
                assert!(off < 0.15, "{what}: gradient {i} off by {off}");
            }
            let off =
                largest_difference(grads.of(input).unwrap(), float_grads.of(float_input).unwrap());
            assert!(off < 0.25, "{what}: gradient of x off by {off}");
            for i in [3, 4] {
                let (ours, theirs) = (layer.leaves[i].get(), copy.leaves[i].get());
                assert!(largest_difference(&ours, &theirs) < 0.02, "{what}: running statistics");
            }
        }
    }
}

/// Folding commutes with rounding per channel: the layer that trains on live statistics is, on those
/// statistics, the folded one up to a step.
#[test]
fn live_and_folded_agree_to_a_step() {
    let layer = Layer::new(true, &[0.8, -1.1, 0.0, 1.3]);
    // A momentum of one: the running statistics are the batch's (but for the variance's n − 1).
    let layer = Layer {
        op: QuantLayer { norm: Some(BatchNorm2d { momentum: 1.0, eps: 1e-5 }), ..layer.op },
        ..layer
    };
    let entrance = Leaf::buffer(QUANT.observer.initial());
    let x = values(&[8, 3, 8, 8], 3);
    let live = layer.run(Tape::no_grad(Mode::TRAIN).input(x.clone()), &entrance).value();
    let folded = layer.run(Tape::no_grad(FROZEN).input(x), &entrance).value();
    let (live, folded) = (live.codes().unwrap(), folded.codes().unwrap());
    let most = live.codes().iter().zip(folded.codes().iter()).map(|(a, b)| a.abs_diff(b)).max();
    assert!(most <= Some(1), "{most:?}");
}

/// Asking for a gradient must not change a value: both ways of computing the folded layer agree.
#[test]
fn values_do_not_depend_on_whether_gradients_are_kept() {
    let layer = Layer::new(true, &[0.8, -1.1, 0.0, 1.3]);
    let entrance = Leaf::buffer(QUANT.observer.initial());
    let x = values(&[2, 3, 9, 7], 3);
    layer.run(Tape::no_grad(Mode::TRAIN).input(x.clone()), &entrance);
    let without = layer.run(Tape::no_grad(FROZEN).input(x.clone()), &entrance).value();
    let with = layer.run(Tape::new(FROZEN).variable(x), &entrance).value();
    assert_eq!(without, with);
}

#[test]
fn sums_and_means_follow_the_float_operators() {
    let state = || Leaf::buffer(QUANT.observer.initial());
    let (a, b) = (values(&[2, 4, 5, 5], 1), values(&[2, 4, 5, 5], 2));
    let tape = Tape::new(Mode::TRAIN);
    let (va, vb) = (tape.variable(a.clone()), tape.variable(b.clone()));
    let quantize =
        |x| tape.apply(Quantize { output: QUANT }.into(), &[x, tape.leaf(&state())]).unwrap();
    let add = QuantAdd { activation: Activation::RELU, output: QUANT };
    let y = tape.apply(add.into(), &[quantize(va), quantize(vb), tape.leaf(&state())]).unwrap();
    let expected = a.zip_map("add", &b, |a, b| (a + b).max(0.0)).unwrap();
    assert!(largest_difference(&y.tensor(), &expected) < 0.01);
    let pool = QuantAvgPool { window: None, output: QUANT };
    let mean = tape.apply(pool.into(), &[y, tape.leaf(&state())]).unwrap();
    let expected =
        expected.sum_axes(&[2, 3]).unwrap().map(|s| s / 25.0).reshape(&[2, 4, 1, 1]).unwrap();
    assert!(largest_difference(&mean.tensor(), &expected) < 0.02);
    let grads = mean.backward_with(Tensor::full(&[2, 4, 1, 1], 25.0));
    // Each element passes a gradient of one where the sum was positive.
    let open = grads.of(va).unwrap();
    assert!(open.iter().all(|g| g == 0.0 || (g - 1.0).abs() < 1e-6));
    assert_eq!(grads.of(va), grads.of(vb));
}

#[test]
fn an_observer_that_saw_nothing_is_an_error_that_says_what_to_do() {
    let layer = Layer::new(true, &[1.0]);
    let tape = Tape::no_grad(Mode::EVAL);
    let entrance = Leaf::buffer(QUANT.observer.initial());
    let inputs = [tape.input(values(&[1, 3, 4, 4], 0)), tape.leaf(&entrance)];
    let error = tape.apply(Quantize { output: QUANT }.into(), &inputs).unwrap_err().to_string();
    assert!(error.contains("calibrate"), "{error}");
    drop(layer);
}

/// PyTorch's approximate form: with a scale for each channel of the present weights it is the exact form
/// up to rounding, γ of zero and below included, whatever is rounded.
#[test]
fn the_approximate_folding_is_the_exact_one_up_to_rounding() {
    for (per_channel, power_of_two, output) in [
        (true, false, Some(QUANT)),
        (true, false, None),
        (true, true, Some(QUANT)),
        (false, false, Some(QUANT)),
        (false, false, None),
    ] {
        let run = |folding: Folding| {
            let mut layer = Layer::new(per_channel, &[0.8, -1.1, 0.0, 1.3]);
            layer.op.folding = folding;
            layer.op.output = output;
            layer.op.weight.power_of_two = power_of_two;
            let entrance = Leaf::buffer(QUANT.observer.initial());
            if output.is_none() {
                layer.leaves.pop();
            }
            let tape = Tape::new(Mode::TRAIN);
            let x = tape.variable(values(&[4, 3, 6, 6], 3));
            let y = layer.run(x, &entrance);
            let grads = y.backward_with(values(&[4, 4, 6, 6], 5));
            let mut all = vec![y.tensor(), grads.of(x).unwrap().clone()];
            all.extend(layer.leaves[..3].iter().map(|leaf| grads.get(leaf).unwrap().clone()));
            all.extend(layer.leaves[3..5].iter().map(Leaf::get));
            all
        };
        let (exact, approximate) = (run(Folding::Exact), run(Folding::Approximate));
        for (i, (a, b)) in exact.iter().zip(&approximate).enumerate() {
            let off = largest_difference(b, a);
            // The masks differ where y is within a step of zero: a few elements' gradients.
            let most = if (1..5).contains(&i) { 0.25 } else { 0.03 };
            assert!(off < most, "{i} is off by {off}: per channel {per_channel}, {power_of_two}");
            assert!(b.iter().all(f32::is_finite));
        }
    }
}

/// Levels without integer codes: the layer computes in float, on rounded weights, frozen as live.
#[test]
fn weights_alone_can_be_rounded() {
    let spec =
        WeightSpec { bits: 5, levels: ottava_quant::Levels::PowerOfTwo, ..Default::default() };
    for mode in [Mode::TRAIN, FROZEN] {
        let mut layer = Layer::new(true, &[0.8, -1.1, 0.0, 1.3]);
        layer.op.weight = spec;
        layer.op.output = None;
        layer.leaves.pop();
        let weight = layer.leaves[0].get();
        let tape = Tape::new(mode);
        let x = tape.variable(values(&[2, 3, 6, 6], 3));
        let mut inputs = vec![x];
        inputs.extend(layer.leaves.iter().map(|leaf| tape.leaf(leaf)));
        let y = tape.apply(layer.op.into(), &inputs).unwrap();
        assert!(y.value().codes().is_none());
        let grads = y.backward_with(values(&[2, 4, 6, 6], 5));

        // The float layer of the rounded weight: folding commutes with rounding to powers of two.
        let rounded = spec.fake_quantize(&weight, &spec.grids(&weight).unwrap()).unwrap();
        assert_ne!(rounded, weight);
        let plain = Layer::new(true, &[0.8, -1.1, 0.0, 1.3]);
        plain.leaves[0].set(rounded);
        let tape = Tape::new(mode);
        let x = tape.variable(values(&[2, 3, 6, 6], 3));
        let expected = plain.float(x);
        assert!(largest_difference(&y.tensor(), &expected.tensor()) < 1e-5);
        let expected = expected.backward_with(values(&[2, 4, 6, 6], 5));
        for i in [0, 2] {
            let (a, b) = (grads.get(&layer.leaves[i]), expected.get(&plain.leaves[i]));
            assert!(largest_difference(a.unwrap(), b.unwrap()) < 1e-4, "{mode:?} gradient {i}");
        }
    }
}

/// A learned scale that descent has pushed below zero is used without its sign, and its gradient turned.
#[test]
fn a_negative_learned_scale_acts_as_its_opposite() {
    let run = |sign: f32, mode: Mode| {
        let mut layer = Layer::new(true, &[0.8, -1.1, 0.5, 1.3]);
        layer.op.learn_scales = true;
        let scales = Leaf::param(Tensor::full(&[4], 0.006 * sign));
        layer.leaves.insert(5, scales.clone());
        let entrance = Leaf::buffer(QUANT.observer.initial());
        let x = values(&[4, 3, 6, 6], 3);
        layer.run(Tape::no_grad(Mode { observe: true, ..mode }).input(x.clone()), &entrance);
        let tape = Tape::new(mode);
        let y = layer.run(tape.input(x), &entrance);
        let grads = y.backward_with(values(&[4, 4, 6, 6], 5));
        (y.tensor(), grads.get(&scales).unwrap().to_vec())
    };
    for mode in [Mode::TRAIN, FROZEN] {
        let ((y, up), (same, down)) = (run(1.0, mode), run(-1.0, mode));
        assert_eq!(y, same);
        assert!(up.iter().any(|g| *g != 0.0));
        assert_eq!(up, down.iter().map(|g| -g).collect::<Vec<_>>());
    }
}

/// A layer whose learned scales clip its weights is linear in γ all the same, since they are folded with
/// it: `γ·∂γ = Σ ∂y·(y − β)`, with BatchNorm frozen or live.
#[test]
fn gamma_learns_through_weights_that_learned_scales_clip() {
    let gamma = [0.8, -1.1, 0.5, 1.3];
    let mut layer = Layer::new(true, &gamma);
    layer.op =
        QuantLayer { learn_scales: true, activation: Activation::NONE, output: None, ..layer.op };
    let beta = layer.leaves[2].get().to_vec();
    // Codes reach ±127·0.004: half of the weights are beyond.
    layer.leaves[5] = Leaf::param(Tensor::full(&[4], 0.004));
    for mode in [FROZEN, Mode::TRAIN] {
        let tape = Tape::new(mode);
        let mut inputs = vec![tape.input(values(&[4, 3, 6, 6], 3))];
        inputs.extend(layer.leaves.iter().map(|leaf| tape.leaf(leaf)));
        let y = tape.apply(layer.op.into(), &inputs).unwrap();
        let dy = values(&[4, 4, 6, 6], 5);
        let grads = y.backward_with(dy.clone());
        let dgamma = grads.get(&layer.leaves[1]).unwrap().to_vec();
        for c in 0..4 {
            let channel = |x: &Tensor<f32>| x.slice(1, c..c + 1, 1).unwrap().to_vec();
            let (y, dy) = (channel(&y.tensor()), channel(&dy));
            let terms = y.iter().zip(&dy).map(|(y, dy)| f64::from(dy * (y - beta[c])));
            let (sum, size) = (terms.clone().sum::<f64>(), terms.map(f64::abs).sum::<f64>());
            let off = (f64::from(gamma[c] * dgamma[c]) - sum).abs();
            assert!(off < 1e-5 * size, "{mode:?} channel {c}: off by {off} of {size}");
        }
    }
}

/// A learned range that became NaN, or infinite, is an error, not a range that ends at zero.
#[test]
fn a_learned_range_that_is_not_finite_is_refused() {
    let quant = ActivationQuant { learn: Some(Learning::StepSize), ..QUANT };
    for ends in [[f32::NAN, 1.0], [-1.0, f32::NAN], [-1.0, f32::INFINITY]] {
        let error = quant.params(&Tensor::new(&[2], ends).unwrap()).unwrap_err().to_string();
        assert!(error.contains("NaN") || error.contains("inf"), "{error}");
    }
}

/// A NaN in the input, and an infinity, are errors of the observer, not ranges.
#[test]
fn an_observer_refuses_what_is_not_finite() {
    for bad in [f32::NAN, f32::INFINITY] {
        let tape = Tape::no_grad(Mode::CALIBRATE);
        let entrance = Leaf::buffer(QUANT.observer.initial());
        let x = tape.input(Tensor::new(&[1, 2], [1.0, bad]).unwrap());
        let error = tape.apply(Quantize { output: QUANT }.into(), &[x, tape.leaf(&entrance)]);
        assert!(error.unwrap_err().to_string().contains("NaN or an infinity"));
    }
}

/// A channel with a learned grid of its own is rounded, and learns, as a tensor would be; below zero a
/// scale acts as its opposite.
#[test]
fn a_learned_channel_is_a_learned_tensor() {
    let run = |axis: Option<usize>, x: Tensor<f32>, scales: &[f32], zeros: &[f32]| {
        let op = LearnedFakeQuant { qmin: -8, qmax: 7, axis, grad_factor: 0.5 };
        let tape = Tape::new(Mode::TRAIN);
        let seed = x.map(|x| x * 3.0 + 1.0);
        let inputs = [
            tape.variable(x),
            tape.variable(Tensor::new(&[scales.len()], scales).unwrap()),
            tape.variable(Tensor::new(&[zeros.len()], zeros).unwrap()),
        ];
        let y = tape.apply(op.into(), &inputs).unwrap();
        let grads = y.backward_with(seed);
        let of = |i: usize| grads.of(inputs[i]).unwrap().clone();
        (y.tensor(), of(0), of(1).to_vec(), of(2).to_vec())
    };
    let x = values(&[2, 3, 5], 4);
    let (scales, zeros) = ([0.05, 0.2, 0.01], [0.0, 2.4, -3.0]);
    let (y, dx, ds, dz) = run(Some(1), x.clone(), &scales, &zeros);
    for c in 0..3 {
        let slice = |t: &Tensor<f32>| t.slice(1, c..c + 1, 1).unwrap().contiguous();
        let alone = run(None, slice(&x), &scales[c..=c], &zeros[c..=c]);
        assert_eq!((slice(&y), slice(&dx)), (alone.0, alone.1));
        assert_eq!((ds[c], dz[c]), (alone.2[0], alone.3[0]));
    }
    let negative = run(Some(1), x, &scales.map(|s| -s), &zeros);
    assert_eq!((negative.0, negative.1), (y, dx));
    assert_eq!(negative.2, ds.iter().map(|d| -d).collect::<Vec<_>>());

    let op = LearnedFakeQuant { qmin: -8, qmax: 7, axis: None, grad_factor: 1.0 };
    let of = |values: &[f32]| Tensor::new(&[values.len()], values).unwrap();
    assert!(op.grids(&of(&[0.1, 0.2]), &of(&[0.0, 0.0])).is_err());
    assert!(op.grids(&of(&[f32::NAN]), &of(&[0.0])).is_err());
    assert!(op.grids(&of(&[0.0]), &of(&[0.0])).is_ok());
    let none = LearnedFakeQuant { qmin: 1, qmax: 0, ..op };
    assert!(none.grids(&of(&[0.1]), &of(&[0.0])).is_err());
    // A scalar has one grid, whatever axis is asked for.
    let (y, ..) = run(Some(0), Tensor::scalar(0.32), &[0.1], &[0.0]);
    assert_eq!(y.item().unwrap(), 0.3);
}

/// Activations are bytes: a range of codes that no shift makes one is an error, not other codes.
#[test]
fn activations_of_codes_that_are_no_bytes_are_refused() {
    for (qmin, qmax) in [(-10, 200), (100, 300)] {
        let quant = ActivationQuant { qmin, qmax, ..QUANT };
        let state = quant.observer.observe(&quant.observer.initial(), &values(&[2, 8], 1)).unwrap();
        let error = quant.params(&state).unwrap_err().to_string();
        assert!(error.contains("no bytes"), "{error}");
    }
}

/// A frame that memory cannot hold is an error.
#[test]
fn padding_beyond_memory_is_refused() {
    for (before, after) in [(usize::MAX, 1), (1 << 62, 0)] {
        let tape = Tape::new(Mode::TRAIN);
        let x = tape.variable(values(&[1, 2, 3, 3], 5));
        let error = tape.apply(Pad { axis: 1, before, after }.into(), &[x]).unwrap_err();
        assert!(error.to_string().contains("memory"), "{error}");
    }
}
