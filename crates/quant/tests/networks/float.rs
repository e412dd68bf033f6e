//! Random float instructions.

use ottava_quant::{FloatOp, Instr};
use ottava_tensor::Tensor;

use super::{Dice, conv_shape, window};

/// One that takes a value of this shape.
pub fn instr(dice: &mut Dice, shape: &[usize]) -> Instr {
    let bias = |dice: &mut Dice, o: usize| (dice.roll(2) == 0).then(|| dice.floats(&[o]));
    let op = match (shape, dice.roll(10)) {
        (&[c, h, w], 0 | 1) => {
            let (shape, attrs) = conv_shape(dice, [c, h, w]);
            let weight = weight(dice, &shape);
            FloatOp::Conv { weight, bias: bias(dice, shape[0]), attrs }
        }
        (&[_, h, w], 2) => {
            let window = (dice.roll(2) == 0).then(|| window(dice, h, w));
            FloatOp::AvgPool { window, count_padding: dice.roll(2) == 0 }
        }
        (&[k], 0) => {
            let o = 1 + dice.roll(20);
            FloatOp::Linear { weight: weight(dice, &[o, k]), bias: bias(dice, o) }
        }
        (&[k], 1) => {
            let o = 1 + dice.roll(20);
            let weight = weight(dice, &[o, k]);
            FloatOp::MatMul(weight.transpose(0, 1).unwrap().contiguous())
        }
        (&[_], 2) => [FloatOp::Softmax, FloatOp::LogSoftmax][dice.roll(2)].clone(),
        (&[k], 3) => {
            let o = 1 + dice.roll(20);
            let layer = dice.layer(&[o, k], 127);
            let bias = dice.floats(&[layer.scales.len()]).to_vec();
            FloatOp::DynamicLinear { codes: layer.codes, scales: layer.scales, bias }
        }
        (shape, 4) => {
            FloatOp::Affine { scale: dice.floats(&shape[..1]), shift: dice.floats(&shape[..1]) }
        }
        (_, 6) => FloatOp::Add(constant(dice, shape)),
        (_, 7) => FloatOp::Mul(constant(dice, shape)),
        (shape, 8) => {
            let axis = dice.roll(shape.len() + 1);
            let count = if axis == 0 { 1 } else { shape[axis - 1] };
            let grid = dice.grid();
            let mut scaled = || {
                let scale = grid.scale() * (1.0 + dice.unit());
                ottava_quant::QParams::new(scale, grid.zero_point(), grid.qmin()..=grid.qmax())
            };
            let grids = (0..count).map(|_| scaled().unwrap()).collect();
            FloatOp::FakeQuant { grids, axis }
        }
        _ => return Instr::Clip(dice.activation()),
    };
    Instr::Float(op)
}

/// Weights that keep the results as large as the inputs.
fn weight(dice: &mut Dice, shape: &[usize]) -> Tensor<f32> {
    let inner: usize = shape[1..].iter().product();
    let factor = 0.7 / (inner as f32).sqrt();
    dice.floats(shape).map(move |x| x * factor)
}

/// None, or one that may be stretched, or that stretches the value.
fn constant(dice: &mut Dice, shape: &[usize]) -> Option<Tensor<f32>> {
    let mut sizes = match dice.roll(4) {
        0 => return None,
        1 => vec![1],
        2 => shape.to_vec(),
        _ => [&[1], shape].concat(),
    };
    for size in &mut sizes {
        *size = if dice.roll(3) == 0 { 1 } else { *size };
    }
    if sizes == [1] && dice.roll(2) == 0 {
        sizes.clear();
    }
    Some(dice.floats(&sizes))
}

/// The same elements as an image or as a vector.
pub fn reshape(dice: &mut Dice, shape: &[usize]) -> Instr {
    let elements: usize = shape.iter().product();
    let divisors = |n: usize| Vec::from_iter((1..=n).filter(|&d| n.is_multiple_of(d)));
    if dice.roll(3) == 0 {
        return Instr::Reshape(vec![elements]);
    }
    let mut pick = |n: usize| {
        let divisors = divisors(n);
        divisors[dice.roll(divisors.len())]
    };
    let c = pick(elements);
    let h = pick(elements / c);
    Instr::Reshape(vec![c, h, elements / c / h])
}
