//! What of a graph computes in floats: why, and by which instruction of a program.

use ottava_autograd::{Error, Op, Result};
use ottava_quant::{FloatOp, Window};
use ottava_tensor::Tensor;

/// Why a layer computes in float although its weights are rounded.
pub(super) const WEIGHTS_ALONE: &str =
    "its weights' levels have no 8-bit codes: they are rounded, the rest is float";

/// Why an operator whose inputs have these shapes has no integer form; `None` if it has one. A parameter
/// counts as having no shape.
pub(super) fn no_integer_form(op: &Op, inputs: &[Option<Vec<usize>>]) -> Option<&'static str> {
    match op {
        Op::Conv2d(_) | Op::Linear(_) => inputs[1..]
            .iter()
            .any(Option::is_some)
            .then_some("its weight is computed, not a parameter"),
        Op::Add(_) => match inputs {
            [Some(a), Some(b)] if a == b => None,
            [_, _] => Some("its operands are broadcast, or one is a constant"),
            _ => Some("it does not add two values"),
        },
        Op::AvgPool2d(pool) => {
            (pool.padding != [0; 4]).then_some("averages over padding have no integer form here")
        }
        Op::Concat(_) => {
            inputs.iter().any(Option::is_none).then_some("one of its operands is a constant")
        }
        Op::BatchNorm2d(_) => Some("it has an integer form only behind an integer convolution"),
        Op::GlobalAvgPool(_)
        | Op::Relu(_)
        | Op::Clip(_)
        | Op::MaxPool2d(_)
        | Op::Flatten(_)
        | Op::Reshape(_)
        | Op::Slice(_)
        | Op::Pad(_)
        | Op::Quantize(_)
        | Op::QuantLayer(_)
        | Op::QuantAdd(_)
        | Op::QuantAvgPool(_)
        | Op::QuantConcat(_) => None,
        Op::MatMul(_)
        | Op::Mul(_)
        | Op::LogSoftmax(_)
        | Op::Softmax(_)
        | Op::CrossEntropy(_)
        | Op::Sum(_)
        | Op::FakeQuant(_)
        | Op::LearnedFakeQuant(_) => Some("it has no integer form here"),
    }
}

/// Why an operator that could have an integer form has none all the same.
pub(super) fn left_in_float(op: &Op) -> &'static str {
    // What only moves values has the form of what it reads.
    if op.keeps_grid() { "it reads floats" } else { "the configuration leaves it in float" }
}

/// The instruction that computes what the operator computes in floats, and which of its inputs that
/// reads; the others are constants, which `constant` knows by their number.
///
/// # Errors
/// [`Error::Op`] if a program cannot hold it.
pub(super) fn float_op(
    op: &Op,
    inputs: usize,
    constant: impl Fn(usize) -> Option<Tensor<f32>>,
) -> Result<(FloatOp, Vec<usize>)> {
    let refuse = |reason: &str| Error::Op { op: op.name(), reason: reason.into() };
    let needed = |i: usize| {
        let reason = "a program has no instruction for it if its parameters depend on the input";
        constant(i).ok_or_else(|| refuse(reason))
    };
    let bias = || (inputs > 2).then(|| needed(2)).transpose();
    // Two values, or one and a constant.
    let pair = || match (constant(0), constant(1)) {
        (None, None) => (None, vec![0, 1]),
        (None, constant) => (constant, vec![0]),
        (constant, _) => (constant, vec![1]),
    };
    let unary = match op {
        Op::Conv2d(conv) => FloatOp::Conv { weight: needed(1)?, bias: bias()?, attrs: conv.attrs },
        Op::Linear(_) => FloatOp::Linear { weight: needed(1)?, bias: bias()? },
        Op::MatMul(_) if constant(0).is_none() => FloatOp::MatMul(needed(1)?),
        Op::MatMul(_) => {
            return Err(refuse("a constant times a value mixes the images of a batch"));
        }
        Op::BatchNorm2d(norm) => {
            let leaf = |i| needed(i).map(|leaf| leaf.to_vec());
            let (scale, shift) = norm.affine(&leaf(1)?, &leaf(2)?, &leaf(3)?, &leaf(4)?);
            let vector = |values: Vec<f32>| Tensor::new(&[values.len()], values);
            FloatOp::Affine { scale: vector(scale)?, shift: vector(shift)? }
        }
        Op::Add(_) => {
            let (constant, values) = pair();
            return Ok((FloatOp::Add(constant), values));
        }
        Op::Mul(_) => {
            let (constant, values) = pair();
            return Ok((FloatOp::Mul(constant), values));
        }
        Op::AvgPool2d(pool) => FloatOp::AvgPool {
            window: Some(Window {
                kernel: pool.kernel,
                stride: pool.stride,
                padding: pool.padding,
            }),
            count_padding: pool.count_include_pad,
        },
        Op::GlobalAvgPool(_) => FloatOp::AvgPool { window: None, count_padding: false },
        Op::LogSoftmax(_) => FloatOp::LogSoftmax,
        Op::Softmax(_) => FloatOp::Softmax,
        Op::FakeQuant(quant) => {
            // One grid for all has no axis.
            let axis = if quant.params.len() == 1 { 0 } else { quant.axis };
            FloatOp::FakeQuant { grids: quant.params.clone(), axis }
        }
        Op::LearnedFakeQuant(quant) => {
            let grids = quant.grids(&needed(1)?, &needed(2)?)?;
            FloatOp::FakeQuant { grids, axis: quant.axis.unwrap_or(0) }
        }
        Op::CrossEntropy(_) | Op::Sum(_) => {
            return Err(refuse("has no result for each image; let the graph end before it"));
        }
        Op::Relu(_)
        | Op::Clip(_)
        | Op::MaxPool2d(_)
        | Op::Flatten(_)
        | Op::Reshape(_)
        | Op::Slice(_)
        | Op::Pad(_)
        | Op::Concat(_)
        | Op::Quantize(_)
        | Op::QuantLayer(_)
        | Op::QuantAdd(_)
        | Op::QuantAvgPool(_)
        | Op::QuantConcat(_) => return Err(refuse("is no float operator of its own")),
    };
    Ok((unary, vec![0]))
}
