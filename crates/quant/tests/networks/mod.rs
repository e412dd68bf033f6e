//! Programs to test with: random ones, and CIFAR ResNets with the option-A shortcut.
#![allow(dead_code)] // each test file uses a part

mod float;

use ottava_quant::{
    Activation, Builder, Elements, FloatOp, Instr, Program, QParams, QuantizedLayer, ValueId,
    ValueType, Window,
};
use ottava_tensor::Tensor;
use ottava_tensor::conv::ConvAttrs;

/// Numbers that look random and are always the same (xorshift).
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % sides
    }

    pub fn unit(&mut self) -> f32 {
        self.roll(1 << 20) as f32 / (1 << 20) as f32
    }

    pub fn floats(&mut self, shape: &[usize]) -> Tensor<f32> {
        let len = shape.iter().product();
        let data: Vec<f32> = (0..len).map(|_| self.unit() * 4.0 - 2.0).collect();
        Tensor::new(shape, data).unwrap()
    }

    /// A grid of 8 or 4 bits, signed or not.
    pub fn grid(&mut self) -> QParams {
        let (low, high) = [(0, 255), (-128, 127), (0, 127), (-8, 7)][self.roll(4)];
        let zero_point = low + self.roll((high - low + 1) as usize) as i32;
        let scale = (0.3 + self.unit()) / 2f32.powi(self.roll(7) as i32);
        QParams::new(scale, zero_point, low..=high).unwrap()
    }

    /// None, ReLU, or another interval with zero in it.
    pub fn activation(&mut self) -> Activation {
        let end = self.unit() * 3.0;
        match self.roll(6) {
            0 | 1 => Activation::NONE,
            2 | 3 => Activation::RELU,
            4 => Activation { min: 0.0, max: end },
            _ => Activation { min: -end, ..Activation::NONE },
        }
    }

    /// Weights of `top` or less, with scales that keep the results near the middle of a grid.
    pub fn layer(&mut self, shape: &[usize], top: i32) -> QuantizedLayer {
        let len: usize = shape.iter().product();
        let inner = (len / shape[0]) as f32;
        let codes: Vec<i8> =
            (0..len).map(|_| (self.roll(2 * top as usize + 1) as i32 - top) as i8).collect();
        let scale = 1.0 / (top as f32 * inner.sqrt());
        QuantizedLayer {
            codes: Tensor::new(shape, codes).unwrap(),
            scales: (0..shape[0]).map(|_| scale * (0.5 + self.unit())).collect(),
            bias: (0..shape[0]).map(|_| self.roll(4001) as i32 - 2000).collect(),
        }
    }
}

/// A program of `nodes` random instructions over a small image.
pub fn random(seed: u64, nodes: usize) -> Program {
    let mut dice = Dice(seed | 1);
    let input = match dice.roll(8) {
        0 => vec![1 + dice.roll(40)],
        _ => vec![1 + dice.roll(20), 1 + dice.roll(9), 1 + dice.roll(9)],
    };
    let mut draft = Draft::new(&input);
    let mut values = match dice.roll(5) {
        0 => vec![ValueId::INPUT],
        _ => vec![draft.push(Instr::Quantize(dice.grid()), &[ValueId::INPUT])],
    };
    while values.len() < nodes || values == [ValueId::INPUT] {
        // Recent values more often than old ones: chains, with an occasional shortcut.
        let back = dice.roll(3) * dice.roll(values.len().min(4));
        let x = values[values.len() - 1 - back.min(values.len() - 1)];
        let ValueType { shape, elements } = draft.builder.value(x).clone();
        if elements == Elements::Float && dice.roll(3) > 0 {
            let others: Vec<ValueId> = values
                .iter()
                .copied()
                .filter(|&v| {
                    *draft.builder.value(v) == ValueType { shape: shape.clone(), elements }
                })
                .collect();
            let instr = float::instr(&mut dice, &shape);
            let inputs = match &instr {
                Instr::Float(FloatOp::Add(None) | FloatOp::Mul(None)) => {
                    vec![x, others[dice.roll(others.len())]]
                }
                _ => vec![x],
            };
            values.push(draft.push(instr, &inputs));
            continue;
        }
        let of_codes = elements != Elements::Float;
        if dice.roll(9) == 0 {
            let concat = concat(&mut dice, &draft, &values, x);
            values.push(draft.push(concat.0, &concat.1));
            continue;
        }
        let instr = match (<[usize; 3]>::try_from(&shape[..]), dice.roll(12)) {
            (_, 10) if of_codes => Instr::Dequantize,
            (_, 11) => float::reshape(&mut dice, &shape),
            (Ok(shape), 0..3) if of_codes => conv(&mut dice, shape),
            (Ok([_, h, w]), 3) => {
                let window = window(&mut dice, h, w);
                match if of_codes { dice.roll(3) } else { 0 } {
                    0 => Instr::MaxPool(window),
                    1 => Instr::AvgPool { window: None, count_padding: true, output: dice.grid() },
                    _ => Instr::AvgPool {
                        window: Some(window),
                        count_padding: dice.roll(2) == 0,
                        output: dice.grid(),
                    },
                }
            }
            (_, 4) => Instr::Clip(dice.activation()),
            (_, 5) => {
                let axis = dice.roll(shape.len());
                let start = dice.roll(shape[axis]);
                let end = start + 1 + dice.roll(shape[axis] - start);
                Instr::Slice { axis: axis + 1, start, end, step: 1 + dice.roll(3) }
            }
            (_, 6) => Instr::Pad {
                axis: 1 + dice.roll(shape.len()),
                before: dice.roll(3),
                after: dice.roll(3),
            },
            (Ok(_), 7) if dice.roll(3) == 0 => Instr::Flatten,
            (Err(_), 7) if of_codes => Instr::Linear {
                layer: linear(&mut dice, shape[0]),
                output: dice.grid(),
                activation: dice.activation(),
            },
            _ if !of_codes => Instr::Quantize(dice.grid()),
            _ => {
                let others: Vec<ValueId> = values
                    .iter()
                    .copied()
                    .filter(|&v| draft.builder.value(v).shape == shape)
                    .filter(|&v| draft.builder.value(v).elements != Elements::Float)
                    .collect();
                let other = others[dice.roll(others.len())];
                let add = Instr::Add { output: dice.grid(), activation: dice.activation() };
                values.push(draft.push(add, &[x, other]));
                continue;
            }
        };
        values.push(draft.push(instr, &[x]));
    }
    let last = values[values.len() - 1];
    let of_codes = draft.builder.value(last).elements != Elements::Float;
    let output = match dice.roll(2) {
        0 if of_codes => draft.push(Instr::Dequantize, &[last]),
        _ => last,
    };
    draft.builder.explain(output, ["", "it is the \"last\" one"][dice.roll(2)]);
    let mut program = draft.builder.finish(output).unwrap();
    program.metadata_mut().insert("classes".into(), "[\"cat\",\"dög\"]".into());
    program
}

/// Some values of a shape that differs along an axis only, behind `x`.
fn concat(dice: &mut Dice, draft: &Draft, values: &[ValueId], x: ValueId) -> (Instr, Vec<ValueId>) {
    let of = |id: ValueId| draft.builder.value(id);
    let (shape, elements) = (&of(x).shape, of(x).elements);
    let axis = 1 + dice.roll(shape.len());
    let output = (elements != Elements::Float && dice.roll(3) > 0).then(|| dice.grid());
    let fits = |id: &ValueId| {
        let other = of(*id);
        let alike = match output {
            Some(_) => other.elements != Elements::Float,
            None => other.elements == elements,
        };
        let mut sizes = other.shape.iter().zip(shape).enumerate();
        alike
            && other.shape.len() == shape.len()
            && sizes.all(|(i, (a, b))| i + 1 == axis || a == b)
    };
    let others = Vec::from_iter(values.iter().copied().filter(fits));
    let more = (0..dice.roll(3)).map(|_| others[dice.roll(others.len())]);
    let inputs = std::iter::once(x).chain(more).collect();
    (Instr::Concat { axis, output }, inputs)
}

fn window(dice: &mut Dice, h: usize, w: usize) -> Window {
    let kernel = [1 + dice.roll(h), 1 + dice.roll(w)];
    let pad = [dice.roll(kernel[0] / 2 + 1), dice.roll(kernel[1] / 2 + 1)];
    Window {
        kernel,
        stride: [1 + dice.roll(3), 1 + dice.roll(3)],
        padding: [pad[0], pad[1], dice.roll(pad[0] + 1), dice.roll(pad[1] + 1)],
    }
}

fn linear(dice: &mut Dice, features: usize) -> QuantizedLayer {
    let out = 1 + dice.roll(20);
    dice.layer(&[out, features], 127)
}

fn conv(dice: &mut Dice, image: [usize; 3]) -> Instr {
    let (shape, attrs) = conv_shape(dice, image);
    let top = [127, 127, 7, 1][dice.roll(4)];
    let layer = dice.layer(&shape, top);
    Instr::Conv { layer, attrs, output: dice.grid(), activation: dice.activation() }
}

fn conv_shape(dice: &mut Dice, [c, h, w]: [usize; 3]) -> ([usize; 4], ConvAttrs) {
    let groups = (1..=c).filter(|g| c % g == 0).collect::<Vec<_>>();
    let groups = if dice.roll(3) == 0 { groups[dice.roll(groups.len())] } else { 1 };
    let padding = [dice.roll(3), dice.roll(3), dice.roll(3), dice.roll(3)];
    let kernel = |dice: &mut Dice, size: usize| 1 + dice.roll(size.min(4));
    let (kh, kw) = (kernel(dice, h), kernel(dice, w));
    let stride = [1 + dice.roll(2), 1 + dice.roll(2)];
    let fits = |size: usize, kernel: usize| (kernel - 1) * 2 < size;
    let dilation = if fits(h, kh) && fits(w, kw) { 1 + dice.roll(2) } else { 1 };
    let attrs = ConvAttrs { stride, padding, dilation: [dilation; 2], groups };
    let out = groups * (1 + dice.roll(20 / groups.min(20)).min(20));
    ([out, c / groups, kh, kw], attrs)
}

/// A builder that names nodes by their operation and number.
struct Draft {
    builder: Builder,
    nodes: usize,
}

impl Draft {
    fn new(input: &[usize]) -> Self {
        Self { builder: Program::builder(input).unwrap(), nodes: 0 }
    }

    fn push(&mut self, instr: Instr, inputs: &[ValueId]) -> ValueId {
        self.nodes += 1;
        self.builder.push(format!("{}.{}", instr.op(), self.nodes), instr, inputs).unwrap()
    }
}

/// A ResNet for 32×32 images: three stages of `blocks` blocks, `width` channels in the first; the
/// shortcut takes every second pixel and pads channels (He et al. 2015, option A). `blocks = 3`,
/// `width = 16` is ResNet-20.
pub fn resnet(blocks: usize, width: usize, size: usize) -> Program {
    let mut dice = Dice(20);
    let mut draft = Draft::new(&[3, size, size]);
    let grid = |dice: &mut Dice, zero: i32| {
        QParams::new(0.02 + 0.02 * dice.unit(), zero, 0..=255).unwrap()
    };
    let layer = |dice: &mut Dice, shape: [usize; 4]| dice.layer(&shape, 127);
    let mut x = draft.push(Instr::Quantize(grid(&mut dice, 114)), &[ValueId::INPUT]);
    let conv = |draft: &mut Draft, dice: &mut Dice, x, shape, stride, relu| {
        let output = grid(dice, if relu { 0 } else { 120 });
        let activation = if relu { Activation::RELU } else { Activation::NONE };
        let attrs = ConvAttrs::new(stride, 1);
        draft.push(Instr::Conv { layer: layer(dice, shape), attrs, output, activation }, &[x])
    };
    x = conv(&mut draft, &mut dice, x, [width, 3, 3, 3], 1, true);
    for stage in 0..3 {
        for block in 0..blocks {
            let (stride, c) = (1 + usize::from(stage > 0 && block == 0), width << stage);
            let inner = conv(&mut draft, &mut dice, x, [c, c / stride, 3, 3], stride, true);
            let inner = conv(&mut draft, &mut dice, inner, [c, c, 3, 3], 1, false);
            if stride == 2 {
                for axis in [2, 3] {
                    let end = draft.builder.value(x).shape[axis - 1];
                    x = draft.push(Instr::Slice { axis, start: 0, end, step: 2 }, &[x]);
                }
                x = draft.push(Instr::Pad { axis: 1, before: c / 4, after: c / 4 }, &[x]);
            }
            let output = QParams::new(0.03, 0, 0..=255).unwrap();
            x = draft.push(Instr::Add { output, activation: Activation::RELU }, &[inner, x]);
        }
    }
    let output = QParams::new(0.01, 0, 0..=255).unwrap();
    x = draft.push(Instr::AvgPool { window: None, count_padding: true, output }, &[x]);
    x = draft.push(Instr::Flatten, &[x]);
    let fc = dice.layer(&[10, 4 * width], 127);
    let output = QParams::new(0.1, 100, 0..=255).unwrap();
    x = draft.push(Instr::Linear { layer: fc, output, activation: Activation::NONE }, &[x]);
    x = draft.push(Instr::Dequantize, &[x]);
    draft.builder.finish(x).unwrap()
}
