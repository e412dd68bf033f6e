//! Every operator's gradient against central differences.

use std::collections::BTreeSet;

use ottava_autograd::ops::{
    ActivationQuant, Add, AvgPool2d, BatchNorm2d, Clip, Concat, Conv2d, CrossEntropy, FakeQuant,
    Flatten, Folding, GlobalAvgPool, LayerKind, LearnedFakeQuant, Linear, LogSoftmax, MatMul,
    MaxPool2d, Mul, Pad, QuantAdd, QuantAvgPool, QuantConcat, QuantLayer, Quantize, Relu, Reshape,
    Slice, Softmax, Sum,
};
use ottava_autograd::{Mode, Op, gradcheck};
use ottava_quant::{Activation, QParams, WeightSpec};
use ottava_tensor::Tensor;
use ottava_tensor::conv::ConvAttrs;

/// An operator, what it is given, and which inputs are varied.
struct Case {
    op: Op,
    inputs: Vec<Tensor<f32>>,
    wanted: Vec<bool>,
    mode: Mode,
    step: f32,
}

/// Values of order one, all different, none close to a kink at 0, 1 or 6.
fn values(shape: &[usize], seed: usize) -> Tensor<f32> {
    let len = shape.iter().product::<usize>();
    let data: Vec<f32> = (0..len)
        .map(|i| {
            let x = ((i * 37 + seed * 101 + 11) % 211) as f32 / 211.0 * 2.0 - 1.0;
            x + 0.05f32.copysign(x)
        })
        .collect();
    Tensor::new(shape, data).unwrap()
}

fn case(op: impl Into<Op>, shapes: &[&[usize]]) -> Case {
    let inputs: Vec<_> = shapes.iter().enumerate().map(|(i, shape)| values(shape, i)).collect();
    let wanted = vec![true; shapes.len()];
    Case { op: op.into(), inputs, wanted, mode: Mode::TRAIN, step: 4e-3 }
}

impl Case {
    /// Adds an input that is not varied.
    fn and(mut self, input: Tensor<f32>) -> Self {
        self.inputs.push(input);
        self.wanted.push(false);
        self
    }

    fn mode(self, mode: Mode) -> Self {
        Self { mode, ..self }
    }

    fn step(self, step: f32) -> Self {
        Self { step, ..self }
    }

    fn check(&self) {
        let worst = gradcheck(&self.op, &self.inputs, &self.wanted, self.mode, self.step).unwrap();
        assert!(worst < 4e-3, "{:?}: off by {worst}", self.op);
    }
}

fn convolutions() -> Vec<Case> {
    let uneven = ConvAttrs { stride: [2, 1], padding: [0, 1, 1, 2], ..ConvAttrs::default() };
    let dilated = ConvAttrs { dilation: [2, 2], ..ConvAttrs::new(1, 2) };
    let grouped = ConvAttrs { groups: 2, ..ConvAttrs::new(1, 1) };
    let depthwise = ConvAttrs { groups: 4, ..ConvAttrs::new(1, 1) };
    let all = [(uneven, 4), (dilated, 4), (grouped, 2), (depthwise, 1)];
    let case = |(attrs, group_channels): (ConvAttrs, usize)| {
        let shapes: [&[usize]; 3] = [&[2, 4, 5, 5], &[4, group_channels, 3, 3], &[4]];
        case(Conv2d { attrs }, &shapes)
    };
    all.map(case).into()
}

fn products() -> Vec<Case> {
    vec![case(Linear, &[&[3, 5], &[4, 5], &[4]]), case(MatMul, &[&[3, 5], &[5, 2]])]
}

fn elementwise() -> Vec<Case> {
    vec![
        case(Relu, &[&[2, 3, 2, 2]]),
        case(Clip { min: -0.5, max: 0.52 }, &[&[17]]),
        case(Add, &[&[2, 3, 2, 2], &[3, 1, 1]]),
        case(Add, &[&[2, 3, 2, 2], &[2, 3, 2, 2]]),
        case(Mul, &[&[2, 3, 2, 2], &[3, 1, 1]]),
        case(Sum, &[&[7]]),
    ]
}

fn rows() -> Vec<Case> {
    vec![
        case(LogSoftmax, &[&[3, 5]]),
        case(Softmax, &[&[3, 5]]),
        case(CrossEntropy { targets: vec![0, 4, 2], label_smoothing: 0.1 }, &[&[3, 5]]),
    ]
}

fn pools() -> Vec<Case> {
    let (kernel, stride, padding) = ([3, 2], [2, 1], [1, 0, 1, 1]);
    let shape: &[&[usize]] = &[&[2, 3, 5, 5]];
    vec![
        case(MaxPool2d { kernel, stride, padding }, shape),
        case(AvgPool2d { kernel, stride, padding, count_include_pad: false }, shape),
        case(AvgPool2d { kernel, stride, padding, count_include_pad: true }, shape),
        case(GlobalAvgPool, &[&[2, 3, 4, 3]]),
    ]
}

fn movements() -> Vec<Case> {
    vec![
        case(Flatten, &[&[2, 3, 2, 2]]),
        case(Reshape { shape: vec![4, 3] }, &[&[2, 3, 2, 2]]),
        case(Slice { axis: 2, start: 1, end: 5, step: 2 }, &[&[2, 3, 5, 2]]),
        case(Slice { axis: 3, start: 0, end: 9, step: 2 }, &[&[2, 3, 2, 5]]),
        case(Slice { axis: 1, start: 1, end: 4, step: 2 }, &[&[2, 5, 2, 3]]),
        case(Slice { axis: 1, start: 1, end: 4, step: 1 }, &[&[3, 5]]),
        case(Slice { axis: 2, start: 1, end: 3, step: 1 }, &[&[2, 3, 4]]),
        case(Pad { axis: 1, before: 1, after: 2 }, &[&[2, 3, 2, 2]]),
        case(Pad { axis: 2, before: 0, after: 1 }, &[&[2, 3, 2, 2]]),
        case(Pad { axis: 3, before: 2, after: 0 }, &[&[2, 3, 2, 2]]),
        case(Pad { axis: 1, before: 1, after: 1 }, &[&[2, 3]]),
        case(Concat { axis: 1 }, &[&[2, 3, 2, 2], &[2, 1, 2, 2], &[2, 2, 2, 2]]),
        case(Concat { axis: 3 }, &[&[2, 2, 2, 3], &[2, 2, 2, 1]]),
        case(Concat { axis: 1 }, &[&[2, 3], &[2, 4]]),
    ]
}

/// By the batch and by running statistics.
const MODES: [Mode; 2] = [
    Mode { batch_stats: true, observe: false, quantize: false },
    Mode { batch_stats: false, observe: false, quantize: false },
];

fn norms() -> Vec<Case> {
    let case = |mode| {
        case(BatchNorm2d::default(), &[&[4, 3, 3, 2], &[3], &[3]])
            .and(values(&[3], 3))
            .and(values(&[3], 4).map(|v| v.abs() + 0.5))
            .mode(mode)
    };
    MODES.map(case).into()
}

/// A staircase shifted by whole steps is itself shifted: with the step of the grid as the step of the
/// difference, the straight-through rule is the exact slope, away from where codes are clamped.
fn roundings() -> Vec<Case> {
    const STEP: f32 = 1.0 / 256.0;
    let grid = QParams::new(STEP, 100, 0..=255).unwrap();
    let learned = LearnedFakeQuant { qmin: -128, qmax: 127, grad_factor: 1.0, axis: None };
    vec![
        case(FakeQuant { params: vec![grid], axis: 0 }, &[&[2, 3, 3]]).step(STEP),
        case(learned, &[&[2, 3, 3]])
            .and(Tensor::full(&[1], STEP))
            .and(Tensor::zeros(&[1]))
            .step(STEP),
    ]
}

/// Quantized operators while nothing is rounded yet; `quantized.rs` compares the gradients of rounded
/// ones with the float layers'.
fn quantized() -> Vec<Case> {
    let output = ActivationQuant::default();
    let state = || output.observer.initial();
    let [_, frozen] = MODES;
    let layer = |kind, norm, activation| QuantLayer {
        kind,
        weight: WeightSpec::default(),
        learn_scales: false,
        bias: true,
        norm,
        folding: Folding::Exact,
        activation,
        output: Some(output),
    };
    let conv = LayerKind::Conv(ConvAttrs::new(1, 1));
    let mut cases = vec![
        case(Quantize { output }, &[&[2, 3]]).and(state()).mode(frozen),
        case(QuantAdd { activation: Activation::NONE, output }, &[&[2, 3, 2, 2], &[2, 3, 2, 2]])
            .and(state())
            .mode(frozen),
        case(QuantAvgPool { window: None, output }, &[&[2, 3, 2, 2]]).and(state()).mode(frozen),
        case(QuantConcat { axis: 1, output }, &[&[2, 3, 2, 2], &[2, 1, 2, 2]])
            .and(state())
            .mode(frozen),
        case(layer(LayerKind::Linear, None, Activation::NONE), &[&[3, 5], &[4, 5], &[4]])
            .and(state())
            .mode(frozen),
    ];
    for mode in MODES {
        let shapes: [&[usize]; 5] = [&[2, 2, 3, 3], &[3, 2, 3, 3], &[3], &[3], &[3]];
        let case = case(layer(conv, Some(BatchNorm2d::default()), Activation::NONE), &shapes);
        let var = values(&[3], 6).map(|v| v.abs() + 0.5);
        cases.push(case.and(values(&[3], 5)).and(var).and(state()).mode(mode));
    }
    cases
}

fn all() -> Vec<Case> {
    let groups = [
        convolutions(),
        products(),
        elementwise(),
        rows(),
        pools(),
        movements(),
        norms(),
        roundings(),
        quantized(),
    ];
    groups.into_iter().flatten().collect()
}

#[test]
fn gradients_are_those_of_finite_differences() {
    all().iter().for_each(Case::check);
}

#[test]
fn every_operator_has_a_case() {
    let checked: BTreeSet<_> = all().iter().map(|case| case.op.name()).collect();
    let missing: Vec<_> = Op::NAMES.iter().filter(|name| !checked.contains(*name)).collect();
    assert!(missing.is_empty(), "no gradient is checked of {missing:?}");
}
