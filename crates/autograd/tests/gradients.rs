//! Every operator's gradient against central differences.

use ottava_autograd::ops::{
    Add, AvgPool2d, BatchNorm2d, Clip, Concat, Conv2d, CrossEntropy, Flatten, GlobalAvgPool,
    Linear, LogSoftmax, MatMul, MaxPool2d, Mul, Pad, Relu, Reshape, Slice, Softmax, Sum,
};
use ottava_autograd::{Mode, Op, gradcheck};
use ottava_tensor::Tensor;
use ottava_tensor::conv::ConvAttrs;

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

fn check(op: impl Into<Op>, shapes: &[&[usize]]) {
    let inputs: Vec<_> = shapes.iter().enumerate().map(|(i, shape)| values(shape, i)).collect();
    check_at(op, &inputs, &vec![true; shapes.len()], Mode::TRAIN);
}

fn check_at(op: impl Into<Op>, inputs: &[Tensor<f32>], wanted: &[bool], mode: Mode) {
    let op = op.into();
    let worst = gradcheck(&op, inputs, wanted, mode, 4e-3).unwrap();
    assert!(worst < 4e-3, "{}: off by {worst}", op.name());
}

#[test]
fn convolutions() {
    let uneven = ConvAttrs { stride: [2, 1], padding: [0, 1, 1, 2], ..ConvAttrs::default() };
    let dilated = ConvAttrs { dilation: [2, 2], ..ConvAttrs::new(1, 2) };
    let grouped = ConvAttrs { groups: 2, ..ConvAttrs::new(1, 1) };
    let depthwise = ConvAttrs { groups: 4, ..ConvAttrs::new(1, 1) };
    for (attrs, group_channels) in [(uneven, 4), (dilated, 4), (grouped, 2), (depthwise, 1)] {
        let shapes: [&[usize]; 3] = [&[2, 4, 5, 5], &[4, group_channels, 3, 3], &[4]];
        check(Conv2d { attrs }, &shapes);
    }
}

#[test]
fn products() {
    check(Linear, &[&[3, 5], &[4, 5], &[4]]);
    check(MatMul, &[&[3, 5], &[5, 2]]);
}

#[test]
fn elementwise() {
    check(Relu, &[&[2, 3, 2, 2]]);
    check(Clip { min: -0.5, max: 0.52 }, &[&[17]]);
    check(Add, &[&[2, 3, 2, 2], &[3, 1, 1]]);
    check(Mul, &[&[2, 3, 2, 2], &[3, 1, 1]]);
    check(Sum, &[&[7]]);
}

#[test]
fn rows() {
    check(LogSoftmax, &[&[3, 5]]);
    check(Softmax, &[&[3, 5]]);
    check(CrossEntropy { targets: vec![0, 4, 2], label_smoothing: 0.1 }, &[&[3, 5]]);
}

#[test]
fn pools() {
    let (kernel, stride, padding) = ([3, 2], [2, 1], [1, 0, 1, 1]);
    check(MaxPool2d { kernel, stride, padding }, &[&[2, 3, 5, 5]]);
    for count_include_pad in [false, true] {
        check(AvgPool2d { kernel, stride, padding, count_include_pad }, &[&[2, 3, 5, 5]]);
    }
    check(GlobalAvgPool, &[&[2, 3, 4, 3]]);
}

#[test]
fn movements() {
    check(Flatten, &[&[2, 3, 2, 2]]);
    check(Reshape { shape: vec![4, 3] }, &[&[2, 3, 2, 2]]);
    check(Slice { axis: 2, start: 1, end: 5, step: 2 }, &[&[2, 3, 5, 2]]);
    check(Pad { axis: 1, before: 1, after: 2 }, &[&[2, 3, 2, 2]]);
    check(Concat { axis: 1 }, &[&[2, 3, 2, 2], &[2, 1, 2, 2], &[2, 2, 2, 2]]);
    check(Concat { axis: 3 }, &[&[2, 2, 2, 3], &[2, 2, 2, 1]]);
    check(Concat { axis: 1 }, &[&[2, 3], &[2, 4]]);
}

#[test]
fn batch_norm_in_both_modes() {
    let mut inputs: Vec<_> = [&[4, 3, 3, 2][..], &[3], &[3], &[3], &[3]]
        .iter()
        .enumerate()
        .map(|(i, shape)| values(shape, i))
        .collect();
    inputs[4] = inputs[4].map(|v| v.abs() + 0.5);
    let wanted = [true, true, true, false, false];
    check_at(BatchNorm2d::default(), &inputs, &wanted, Mode::TRAIN);
    check_at(BatchNorm2d::default(), &inputs, &wanted, Mode::EVAL);
}
