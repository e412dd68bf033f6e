//! Programs evaluated as their documentation reads: one element at a time, in logical order, with
//! wide integers. Slow, obvious, and sharing no kernel with the library.
#![allow(dead_code)] // each test file uses a part

mod float;

use ottava_quant::{Activation, Instr, QParams, QuantizedLayer, Value, Window};
use ottava_tensor::Tensor;
use ottava_tensor::conv::ConvAttrs;

/// A value: shape `[n, c, h, w]` (a vector is an image of one pixel), elements in logical order, and
/// the grid; floats have none.
#[derive(Clone, Debug)]
pub struct Naive {
    pub shape: [usize; 4],
    pub codes: Vec<i64>,
    pub floats: Vec<f32>,
    pub grid: Option<QParams>,
}

impl Naive {
    fn at(&self, n: usize, c: usize, y: usize, x: usize) -> i64 {
        let [_, channels, h, w] = self.shape;
        self.codes[((n * channels + c) * h + y) * w + x]
    }

    fn like(&self, shape: [usize; 4], grid: QParams, f: impl Fn([usize; 4]) -> i64) -> Self {
        let [n, c, h, w] = shape;
        let mut codes = vec![];
        for n in 0..n {
            for c in 0..c {
                for y in 0..h {
                    codes.extend((0..w).map(|x| f([n, c, y, x])));
                }
            }
        }
        Self { shape, codes, floats: vec![], grid: Some(grid.to_unsigned()) }
    }
}

/// `[n, c, h, w]` of a tensor's shape; a vector is an image of one pixel.
fn image(shape: &[usize]) -> [usize; 4] {
    match *shape {
        [n, c, h, w] => [n, c, h, w],
        ref shape => [shape[0], shape[1..].iter().product(), 1, 1],
    }
}

impl From<&Tensor<f32>> for Naive {
    fn from(x: &Tensor<f32>) -> Self {
        Self { shape: image(x.shape()), codes: vec![], floats: x.to_vec(), grid: None }
    }
}

impl From<&Value> for Naive {
    fn from(value: &Value) -> Self {
        match value {
            Value::Float(x) => x.into(),
            Value::Codes(x) => Self {
                shape: image(x.codes().shape()),
                codes: x.codes().iter().map(i64::from).collect(),
                floats: vec![],
                grid: Some(x.params()),
            },
        }
    }
}

/// What the instruction makes of its inputs.
pub fn evaluate(instr: &Instr, inputs: &[&Naive]) -> Naive {
    match instr {
        Instr::Add { output, activation } => add(inputs[0], inputs[1], *output, *activation),
        Instr::Float(op) => float::evaluate(op, inputs),
        Instr::Concat { axis, output } => concat(inputs, *axis, *output),
        instr if inputs[0].grid.is_some() || matches!(instr, Instr::Quantize(_)) => {
            unary(instr, inputs[0])
        }
        instr => moved(instr, inputs[0]),
    }
}

/// Floats move as codes do: their places are moved as codes, 0 standing for the padding's zero.
fn moved(instr: &Instr, x: &Naive) -> Naive {
    match instr {
        Instr::Clip(Activation { min, max }) => {
            let clip = |v: f32| {
                if v < *min {
                    *min
                } else if v > *max {
                    *max
                } else {
                    v
                }
            };
            Naive { floats: x.floats.iter().map(|&v| clip(v)).collect(), ..x.clone() }
        }
        Instr::MaxPool(window) => float::windows(x, *window, |taps, _| {
            taps.iter().copied().fold(f32::NEG_INFINITY, f32::max)
        }),
        instr => {
            let grid = QParams::new(1.0, 0, 0..=65535).unwrap();
            let codes = (1..=x.floats.len() as i64).collect();
            let places = unary(instr, &Naive { codes, grid: Some(grid), ..x.clone() });
            let floats =
                places.codes.iter().map(|&p| if p == 0 { 0.0 } else { x.floats[p as usize - 1] });
            Naive { shape: places.shape, codes: vec![], floats: floats.collect(), grid: None }
        }
    }
}

fn unary(instr: &Instr, x: &Naive) -> Naive {
    let [n, c, h, w] = x.shape;
    let grid = x.grid;
    let same = || grid.expect("codes");
    match instr {
        Instr::Quantize(grid) => {
            let codes = x.floats.iter().map(|&v| i64::from(grid.to_unsigned().quantize(v)));
            Naive {
                shape: x.shape,
                codes: codes.collect(),
                floats: vec![],
                grid: Some(grid.to_unsigned()),
            }
        }
        Instr::Dequantize => {
            let floats = x.codes.iter().map(|&q| same().dequantize(q as i32)).collect();
            Naive { shape: x.shape, codes: vec![], floats, grid: None }
        }
        Instr::Conv { layer, attrs, output, activation } => {
            conv(x, layer, *attrs, *output, *activation)
        }
        Instr::Linear { layer, output, activation } => {
            let shape = [layer.codes.shape()[0], layer.codes.shape()[1], 1, 1];
            let codes = layer.codes.reshape(&shape).unwrap();
            let layer = QuantizedLayer { codes, ..layer.clone() };
            conv(x, &layer, ConvAttrs::default(), *output, *activation)
        }
        Instr::Add { .. } | Instr::Concat { .. } | Instr::Float(_) => {
            unreachable!("not unary, or not of codes")
        }
        Instr::MaxPool(window) => pool(x, *window, same(), |taps, _| *taps.iter().max().unwrap()),
        Instr::AvgPool { window, count_padding, output } => {
            let whole = Window { kernel: [h, w], stride: [1, 1], padding: [0; 4] };
            let y = output.to_unsigned();
            let (sx, zx) = (same().scale(), i64::from(same().zero_point()));
            pool(x, window.unwrap_or(whole), y, |taps, area| {
                let acc: i64 = taps.iter().map(|q| q - zx).sum();
                let count = if *count_padding { area } else { taps.len() };
                let multiplier = sx / (y.scale() * count as f32);
                let zero = f64::from(y.zero_point());
                let steps = f64::from(acc as f32 * multiplier);
                let clamped = steps.clamp(f64::from(y.qmin()) - zero, f64::from(y.qmax()) - zero);
                (clamped.round_ties_even() + zero) as i64
            })
        }
        Instr::Clip(activation) => {
            let (low, high) = ends(same(), *activation);
            x.like(x.shape, same(), |[n, c, y, i]| x.at(n, c, y, i).clamp(low, high))
        }
        Instr::Slice { axis, start, end, step } => {
            let mut shape = x.shape;
            shape[*axis] = (*start..*end).step_by(*step).count();
            x.like(shape, same(), |mut at| {
                at[*axis] = start + at[*axis] * step;
                x.at(at[0], at[1], at[2], at[3])
            })
        }
        Instr::Pad { axis, before, after } => {
            let (mut shape, size) = (x.shape, x.shape[*axis]);
            shape[*axis] += before + after;
            x.like(shape, same(), |mut at| {
                if at[*axis] < *before || at[*axis] >= before + size {
                    return i64::from(same().zero_point());
                }
                at[*axis] -= before;
                x.at(at[0], at[1], at[2], at[3])
            })
        }
        // Logical order is what the elements are in already.
        Instr::Flatten => Naive { shape: [n, c * h * w, 1, 1], ..x.clone() },
        Instr::Reshape(shape) => Naive { shape: image(&[&[n], &shape[..]].concat()), ..x.clone() },
    }
}

/// The lowest and the highest code of a result.
fn ends(grid: QParams, Activation { min, max }: Activation) -> (i64, i64) {
    let code = |v: f32| {
        let steps = (f64::from(v * grid.scale().recip())).round_ties_even();
        (steps + f64::from(grid.zero_point())).clamp(f64::from(grid.qmin()), f64::from(grid.qmax()))
            as i64
    };
    (code(min), code(max))
}

fn conv(
    x: &Naive,
    layer: &QuantizedLayer,
    attrs: ConvAttrs,
    y: QParams,
    activation: Activation,
) -> Naive {
    let [n, channels, h, w] = x.shape;
    let [o, per_group, kh, kw] = layer.codes.dims("conv").unwrap();
    let (x_grid, y) = (x.grid.expect("codes"), y.to_unsigned());
    let ConvAttrs { stride, padding, dilation, groups } = attrs;
    let out = |size: usize, pad: usize, kernel: usize, i: usize| {
        (size + pad - dilation[i] * (kernel - 1) - 1) / stride[i] + 1
    };
    let shape =
        [n, o, out(h, padding[0] + padding[2], kh, 0), out(w, padding[1] + padding[3], kw, 1)];
    assert_eq!(channels, per_group * groups);
    x.like(shape, y, |[n, o_c, oy, ox]| {
        let group = o_c / (o / groups);
        let mut acc = i64::from(layer.bias[o_c]);
        for c in 0..per_group {
            for ky in 0..kh {
                for kx in 0..kw {
                    let iy = (oy * stride[0] + ky * dilation[0]).checked_sub(padding[0]);
                    let ix = (ox * stride[1] + kx * dilation[1]).checked_sub(padding[1]);
                    let (Some(iy), Some(ix)) = (iy, ix) else { continue };
                    if iy < h && ix < w {
                        let code = x.at(n, group * per_group + c, iy, ix);
                        let weight = layer.codes.at(&[o_c, c, ky, kx]);
                        acc += (code - i64::from(x_grid.zero_point())) * i64::from(weight);
                    }
                }
            }
        }
        let multiplier = x_grid.scale() * layer.scales[o_c] / y.scale();
        let (low, high) = ends(y, activation);
        let zero = y.zero_point();
        let steps = (acc as i32 as f32 * multiplier)
            .clamp((low - i64::from(zero)) as f32, (high - i64::from(zero)) as f32)
            .round_ties_even();
        steps as i64 + i64::from(zero)
    })
}

fn concat(inputs: &[&Naive], axis: usize, output: Option<QParams>) -> Naive {
    let mut shape = inputs[0].shape;
    shape[axis] = inputs.iter().map(|x| x.shape[axis]).sum();
    // Which input an element comes from, and where it is there.
    let source = |mut at: [usize; 4]| {
        let mut of = inputs.iter();
        let mut x = of.next().unwrap();
        while at[axis] >= x.shape[axis] {
            at[axis] -= x.shape[axis];
            x = of.next().unwrap();
        }
        (*x, ((at[0] * x.shape[1] + at[1]) * x.shape[2] + at[2]) * x.shape[3] + at[3])
    };
    let Some(grid) = inputs[0].grid else {
        let floats = std::cell::RefCell::new(vec![]);
        let grid = QParams::new(1.0, 0, 0..=255).unwrap();
        inputs[0].like(shape, grid, |at| {
            let (x, i) = source(at);
            floats.borrow_mut().push(x.floats[i]);
            0
        });
        return Naive { shape, codes: vec![], floats: floats.into_inner(), grid: None };
    };
    let y = output.map_or(grid, QParams::to_unsigned);
    inputs[0].like(shape, y, |at| {
        let (x, i) = source(at);
        let grid = x.grid.expect("codes");
        let value = grid.scale() * (x.codes[i] - i64::from(grid.zero_point())) as f32;
        let steps = f64::from(value * y.scale().recip()).round_ties_even();
        (steps as i64 + i64::from(y.zero_point())).clamp(y.qmin().into(), y.qmax().into())
    })
}

fn add(a: &Naive, b: &Naive, y: QParams, activation: Activation) -> Naive {
    let (ga, gb, y) = (a.grid.expect("codes"), b.grid.expect("codes"), y.to_unsigned());
    let (ra, rb) = (ga.scale() / y.scale(), gb.scale() / y.scale());
    let fixed = y.zero_point() as f32 - (ra * ga.zero_point() as f32 + rb * gb.zero_point() as f32);
    let (low, high) = ends(y, activation);
    a.like(a.shape, y, |[n, c, i, j]| {
        let (qa, qb) = (a.at(n, c, i, j) as f32, b.at(n, c, i, j) as f32);
        // Each product is rounded together with its sum.
        let sum = qa.mul_add(ra, qb.mul_add(rb, fixed));
        sum.clamp(low as f32, high as f32).round_ties_even() as i64
    })
}

fn pool(x: &Naive, window: Window, grid: QParams, f: impl Fn(&[i64], usize) -> i64) -> Naive {
    let [n, c, h, w] = x.shape;
    let Window { kernel: [kh, kw], stride, padding: p } = window;
    let rows = (h + p[0] + p[2] - kh) / stride[0] + 1;
    let columns = (w + p[1] + p[3] - kw) / stride[1] + 1;
    x.like([n, c, rows, columns], grid, |[n, c, oy, ox]| {
        let mut taps = vec![];
        for ky in 0..kh {
            for kx in 0..kw {
                let iy = (oy * stride[0] + ky).checked_sub(p[0]).filter(|&iy| iy < h);
                let ix = (ox * stride[1] + kx).checked_sub(p[1]).filter(|&ix| ix < w);
                if let (Some(iy), Some(ix)) = (iy, ix) {
                    taps.push(x.at(n, c, iy, ix));
                }
            }
        }
        f(&taps, kh * kw)
    })
}
