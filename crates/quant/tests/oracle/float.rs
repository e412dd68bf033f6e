//! The float operators, in `f64`.

use ottava_quant::{FloatOp, Scheme, Window, choose_qparams};
use ottava_tensor::Tensor;

use super::Naive;

pub fn evaluate(op: &FloatOp, inputs: &[&Naive]) -> Naive {
    let x = inputs[0];
    let [_, channels, h, w] = x.shape;
    let channel = |i: usize| i / (h * w) % channels;
    match op {
        FloatOp::Conv { weight, bias, attrs } => {
            let [o, per_group, kh, kw] = weight.dims("conv").unwrap();
            let [top, left, bottom, right] = attrs.padding;
            let out = |size: usize, kernel: usize, axis: usize| {
                (size - attrs.dilation[axis] * (kernel - 1) - 1) / attrs.stride[axis] + 1
            };
            let shape = [x.shape[0], o, out(h + top + bottom, kh, 0), out(w + left + right, kw, 1)];
            make(shape, |[n, o_c, oy, ox]| {
                let group = o_c / (o / attrs.groups);
                let mut sum = bias.as_ref().map_or(0.0, |bias| f64::from(bias.at(&[o_c])));
                for (c, ky, kx) in taps(per_group, kh, kw) {
                    let iy = (oy * attrs.stride[0] + ky * attrs.dilation[0]).wrapping_sub(top);
                    let ix = (ox * attrs.stride[1] + kx * attrs.dilation[1]).wrapping_sub(left);
                    if iy < h && ix < w {
                        let x = at(x, [n, group * per_group + c, iy, ix]);
                        sum += f64::from(x) * f64::from(weight.at(&[o_c, c, ky, kx]));
                    }
                }
                sum
            })
        }
        FloatOp::Linear { weight, bias } => {
            product(x, &weight.transpose(0, 1).unwrap(), bias.as_ref())
        }
        FloatOp::MatMul(weight) => product(x, weight, None),
        FloatOp::Affine { scale, shift } => each(x, |i, v| {
            f64::from(scale.at(&[channel(i)])) * v + f64::from(shift.at(&[channel(i)]))
        }),
        FloatOp::Add(b) => binary(x, b.as_ref(), inputs.get(1), |a, b| a + b),
        FloatOp::Mul(b) => binary(x, b.as_ref(), inputs.get(1), |a, b| a * b),
        FloatOp::AvgPool { window, count_padding } => {
            let whole = Window { kernel: [h, w], stride: [1, 1], padding: [0; 4] };
            windows(x, window.unwrap_or(whole), |taps, area| {
                let sum: f64 = taps.iter().map(|&v| f64::from(v)).sum();
                (sum / if *count_padding { area } else { taps.len() } as f64) as f32
            })
        }
        FloatOp::Softmax => rows(x, f64::exp),
        FloatOp::LogSoftmax => rows(x, |v| v),
        FloatOp::FakeQuant { grids, axis } => each(x, |i, v| {
            let index = match axis {
                1 => channel(i),
                2 => i / w % h,
                _ => i % w,
            };
            f64::from(grids[if grids.len() == 1 { 0 } else { index }].fake_quantize(v as f32))
        }),
        FloatOp::DynamicLinear { codes, scales, bias } => {
            let fold = |f: fn(f32, f32) -> f32| x.floats.iter().copied().fold(x.floats[0], f);
            let grid = choose_qparams(fold(f32::min), fold(f32::max), Scheme::Affine, 0..=255);
            let Ok(grid) = grid else { return each(x, |_, _| f64::NAN) };
            make([x.shape[0], scales.len(), 1, 1], |[n, o, _, _]| {
                let term = |k: usize| {
                    let code = grid.quantize(at(x, [n, k, 0, 0])) - grid.zero_point();
                    i64::from(code) * i64::from(codes.at(&[o, k]))
                };
                let sum: i64 = (0..channels).map(term).sum();
                f64::from(sum as f32 * (grid.scale() * scales[o]) + bias[o])
            })
        }
    }
}

fn at(x: &Naive, [n, c, y, i]: [usize; 4]) -> f32 {
    let [_, channels, h, w] = x.shape;
    x.floats[((n * channels + c) * h + y) * w + i]
}

fn taps(c: usize, h: usize, w: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..c * h * w).map(move |i| (i / (h * w), i / w % h, i % w))
}

fn make(shape: [usize; 4], f: impl Fn([usize; 4]) -> f64) -> Naive {
    let [n, c, h, w] = shape;
    let index = |i: usize| [i / (c * h * w), i / (h * w) % c, i / w % h, i % w];
    let floats = (0..n * c * h * w).map(|i| f(index(i)) as f32).collect();
    Naive { shape, codes: vec![], floats, grid: None }
}

fn each(x: &Naive, f: impl Fn(usize, f64) -> f64) -> Naive {
    let floats = x.floats.iter().enumerate().map(|(i, &v)| f(i, f64::from(v)) as f32).collect();
    Naive { floats, ..x.clone() }
}

fn product(x: &Naive, weight: &Tensor<f32>, bias: Option<&Tensor<f32>>) -> Naive {
    let [k, o] = weight.dims("linear").unwrap();
    make([x.shape[0], o, 1, 1], |[n, o, _, _]| {
        let terms = (0..k).map(|k| f64::from(at(x, [n, k, 0, 0])) * f64::from(weight.at(&[k, o])));
        terms.sum::<f64>() + bias.map_or(0.0, |bias| f64::from(bias.at(&[o])))
    })
}

/// `f` of `a` and a constant, or another value, of the axes that have more than one index.
fn binary(
    a: &Naive,
    constant: Option<&Tensor<f32>>,
    other: Option<&&Naive>,
    f: impl Fn(f64, f64) -> f64,
) -> Naive {
    let b = match (constant, other) {
        (Some(constant), _) => {
            // Axes are aligned from the last one on, which for a vector is axis 1.
            let mut shape = [1; 4];
            let sizes = constant.shape();
            let rank = if a.shape[2..] == [1, 1] && sizes.len() <= 2 { 2 } else { 4 };
            shape[rank - sizes.len()..rank].copy_from_slice(sizes);
            Naive { shape, codes: vec![], floats: constant.to_vec(), grid: None }
        }
        (None, other) => other.copied().expect("two values").clone(),
    };
    let shape = std::array::from_fn(|axis| a.shape[axis].max(b.shape[axis]));
    let clamp = |x: &Naive, index: [usize; 4]| {
        at(x, std::array::from_fn(|axis| index[axis].min(x.shape[axis] - 1)))
    };
    make(shape, |index| f(f64::from(clamp(a, index)), f64::from(clamp(&b, index))))
}

fn rows(x: &Naive, f: impl Fn(f64) -> f64) -> Naive {
    let columns = x.shape[1];
    each(x, |i, v| {
        let row = x.floats[i / columns * columns..][..columns].iter().map(|&v| f64::from(v));
        let most = row.clone().fold(f64::NEG_INFINITY, f64::max);
        f(v - most - row.map(|v| (v - most).exp()).sum::<f64>().ln())
    })
}

pub fn windows(x: &Naive, window: Window, f: impl Fn(&[f32], usize) -> f32) -> Naive {
    let [n, c, h, w] = x.shape;
    let Window { kernel: [kh, kw], stride, padding: [top, left, bottom, right] } = window;
    let rows = (h + top + bottom - kh) / stride[0] + 1;
    let columns = (w + left + right - kw) / stride[1] + 1;
    make([n, c, rows, columns], |[n, c, oy, ox]| {
        let places = taps(1, kh, kw).map(|(_, ky, kx)| {
            [(oy * stride[0] + ky).wrapping_sub(top), (ox * stride[1] + kx).wrapping_sub(left)]
        });
        let inside = places.filter(|&[iy, ix]| iy < h && ix < w);
        let taps: Vec<f32> = inside.map(|[iy, ix]| at(x, [n, c, iy, ix])).collect();
        f64::from(f(&taps, kh * kw))
    })
}
