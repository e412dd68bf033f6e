//! Float operators: values and gradients within 1e-4 of the largest.

use ottava::autograd::ops::{Add, Mul, Relu};
use ottava::autograd::ops::{
    AvgPool2d, Clip, Conv2d, GlobalAvgPool, Linear, LogSoftmax, MatMul, MaxPool2d,
};
use ottava::autograd::{Mode, Op, Tape};
use ottava::tensor::conv::ConvAttrs;

use crate::case::Case;

/// Runs `op` on the named tensors and compares its value and each gradient.
fn check(case: &Case, op: impl Into<Op>, names: &[&str]) {
    let tape = Tape::new(Mode::TRAIN);
    let inputs: Vec<_> = names.iter().map(|name| tape.variable(case.float(name))).collect();
    let y = tape.apply(op.into(), &inputs).unwrap();
    case.assert_close("y", &y.tensor(), &case.float("out.y"));
    let grads = y.backward_with(case.float("grad_out.y"));
    for (name, input) in names.iter().zip(inputs) {
        let (_, short) = name.split_once('.').unwrap();
        let expected = case.float(&format!("grad.{short}"));
        case.assert_close(&format!("grad {short}"), grads.of(input).unwrap(), &expected);
    }
}

pub fn conv2d(case: &Case) {
    let attrs = ConvAttrs {
        stride: case.pair("stride"),
        padding: case.padding(),
        dilation: case.pair("dilation"),
        groups: case.number("groups") as usize,
    };
    let names = ["in.x", "param.weight", "param.bias"];
    check(case, Conv2d { attrs }, &names[..if case.flag("bias") { 3 } else { 2 }]);
}

pub fn linear(case: &Case) {
    check(case, Linear, &["in.x", "param.weight", "param.bias"]);
}

pub fn matmul(case: &Case) {
    check(case, MatMul, &["in.a", "in.b"]);
}

pub fn relu(case: &Case) {
    check(case, Relu, &["in.x"]);
}

pub fn relu6(case: &Case) {
    check(case, Clip::RELU6, &["in.x"]);
}

pub fn add(case: &Case) {
    check(case, Add, &["in.a", "in.b"]);
}

pub fn mul(case: &Case) {
    check(case, Mul, &["in.a", "in.b"]);
}

pub fn log_softmax(case: &Case) {
    check(case, LogSoftmax, &["in.x"]);
}

pub fn max_pool2d(case: &Case) {
    let (kernel, stride, padding) = (case.pair("kernel"), case.pair("stride"), case.padding());
    check(case, MaxPool2d { kernel, stride, padding }, &["in.x"]);
}

pub fn avg_pool2d(case: &Case) {
    let (kernel, stride, padding) = (case.pair("kernel"), case.pair("stride"), case.padding());
    let count_include_pad = case.flag("count_include_pad");
    check(case, AvgPool2d { kernel, stride, padding, count_include_pad }, &["in.x"]);
}

pub fn global_avg_pool2d(case: &Case) {
    check(case, GlobalAvgPool, &["in.x"]);
}
