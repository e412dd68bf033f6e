use std::ops::Range;

use super::super::ConvGeometry;
use super::images::{Images, Pixels};
use super::strip::Strip;
use super::windows::Windows;
use super::winograd::{self, Tiling};
use crate::gemm::f32::{Onto, accumulate, finish, next_rows, with_rows};
use crate::simd::f32::Float;
use crate::simd::f32::dispatch_f32;
use crate::{Level, Tensor, parallel};

/// Tasks a gradient is divided into, if it is large enough.
const TASKS: usize = 16;

/// Output pixels of a task at the least: its sums are added to those of the others.
const TASK_PIXELS: usize = 512;

/// Elements of the gradient a task sums at a time: 1 MiB, to stay in the L2 cache.
const TASK_WEIGHTS: usize = 1 << 18;

/// The gradient of [`forward`](super::forward) with respect to its weight:
/// `dw[o, c, u, v] = Σ_{n, i, j} grad[n, o, i, j]·x[n, c, i·s + u·d − p, j·s + v·d − p]`.
///
/// The result is row-major. Its sums are taken over fixed parts of the batch, which are then added
/// in order: it does not depend on the number of threads. Values that are not finite spread as in
/// [`forward`](super::forward).
///
/// # Shapes
/// `grad`: `g.output_shape()`; `x`: `g.input_shape()`; result: `g.weight_shape()`, OIHW.
pub fn grad_weight(grad: &Tensor<f32>, x: impl Into<Images>, g: &ConvGeometry) -> Tensor<f32> {
    grad_weight_on(Level::current(), grad, x, g)
}

/// [`grad_weight`] on a chosen instruction set.
pub fn grad_weight_on(
    level: Level,
    grad: &Tensor<f32>,
    x: impl Into<Images>,
    g: &ConvGeometry,
) -> Tensor<f32> {
    let x = x.into();
    assert_eq!(grad.shape(), g.output_shape());
    assert_eq!(x.shape(), g.input_shape());
    if grad.is_empty() {
        return Tensor::zeros(&g.weight_shape());
    }
    let (grad, x) = (grad.channels_last(), x.channels_last());
    let grad = grad.as_nhwc().expect("channels-last");
    let x = x.pixels();

    if let Some(tiling) = Tiling::forward(g) {
        let mut dw = Tensor::recycled(&g.weight_shape());
        winograd::grad_weight(level, grad, x, &tiling, &mut dw);
        return dw;
    }

    // Tasks are pairs of a range of output rows and a range of output channels.
    let [out_channels, channels, kh, kw] = g.weight_shape();
    let depth = channels * kh * kw;
    let channel_step = (TASK_WEIGHTS / depth.max(1)).clamp(1, out_channels.max(1));
    let channel_tasks = out_channels.div_ceil(channel_step);
    let rows = g.batch * g.out_size[0];
    let row_step = rows
        .div_ceil(TASKS.div_ceil(channel_tasks.max(1)))
        .max(TASK_PIXELS.div_ceil(g.out_size[1]));
    let row_tasks = rows.div_ceil(row_step);
    let parts = parallel::map(row_tasks * channel_tasks, |task| {
        let (i, j) = (task / channel_tasks, task % channel_tasks);
        let rows = i * row_step..rows.min((i + 1) * row_step);
        let outputs = j * channel_step..out_channels.min((j + 1) * channel_step);
        let mut part = vec![0.0; outputs.len() * depth];
        dispatch_f32!(level, isa => partial(isa, grad, x, g, rows, outputs, &mut part));
        part
    });

    // Add up the parts, which are OHWI, and turn each output channel's sums into IHW.
    let taps = kh * kw;
    let mut dw = Tensor::zeros(&g.weight_shape());
    parallel::for_each_chunk(dw.data_mut(), depth, |o, target| {
        let (task, o) = (o / channel_step, o % channel_step);
        let parts = parts.iter().skip(task).step_by(channel_tasks);
        let mut sums = vec![0.0; depth];
        for part in parts {
            for (sum, value) in sums.iter_mut().zip(&part[o * depth..][..depth]) {
                *sum += value;
            }
        }
        for (tap, sums) in sums.chunks_exact(channels).enumerate() {
            for (target, &sum) in target[tap..].iter_mut().step_by(taps).zip(sums) {
                *target = sum;
            }
        }
    });
    dw
}

/// `part[o, u, v, c] += …` over some rows of all outputs, for some output channels.
#[inline(always)]
fn partial<I: Float>(
    isa: I,
    grad: &[f32],
    x: Pixels<'_>,
    g: &ConvGeometry,
    rows: Range<usize>,
    outputs: Range<usize>,
    part: &mut [f32],
) {
    let [_, channels, kh, kw] = g.weight_shape();
    let depth = channels * kh * kw;
    let group_outputs = g.out_channels / g.attrs.groups;
    let windows = Windows::forward(g);
    let run_taps = windows.run_taps(channels);
    let run = run_taps * channels;

    let rows = Vec::from_iter(rows.map(|row| (row / g.out_size[0], row % g.out_size[0])));
    let strip_rows = Strip::rows(&windows).min(rows.len());
    let mut strip = Strip::new(windows, strip_rows, 2 * I::LANES);
    for rows in rows.chunks(strip_rows) {
        strip.fill(isa, x, rows);
        let (image, y) = rows[0];
        let grad = &grad[(image * g.out_size[0] + y) * g.out_size[1] * g.out_channels..];
        for group in 0..g.attrs.groups {
            let first = (group * group_outputs).clamp(outputs.start, outputs.end);
            let last = ((group + 1) * group_outputs).clamp(outputs.start, outputs.end);
            if first == last {
                continue;
            }
            for u in 0..kh {
                for v in (0..kw).step_by(run_taps) {
                    for column in (0..run).step_by(2 * I::LANES) {
                        let width = (run - column).min(2 * I::LANES);
                        let value = group * channels + column;
                        let target = (u * kw + v) * channels + column;
                        let mut o = first;
                        while o < last {
                            let count = next_rows(last - o, I::ROWS);
                            let place = (o - outputs.start) * depth + target;
                            let (part, tap) = (&mut part[place..], [u, v]);
                            if width <= I::LANES {
                                with_rows!(isa, I::ROWS, count, R =>
                                    tile::<I, R, 1>(isa, grad, &strip, tap, value, o, g.out_channels, part, depth, width));
                            } else {
                                with_rows!(isa, I::ROWS, count, R =>
                                    tile::<I, R, 2>(isa, grad, &strip, tap, value, o, g.out_channels, part, depth, width));
                            }
                            o += count;
                        }
                    }
                }
            }
        }
    }
}

/// Adds the products of one strip to `R` output channels by up to `V` vectors of the patch.
#[inline(always)]
fn tile<I: Float, const R: usize, const V: usize>(
    isa: I,
    grad: &[f32],
    strip: &Strip,
    tap: [usize; 2],
    value: usize,
    output: usize,
    pixel: usize,
    part: &mut [f32],
    depth: usize,
    width: usize,
) {
    let windows = strip.windows();
    let step = windows.stride[1] * windows.size[2];
    let mut acc = [[isa.splat(0.0); V]; R];
    for row in 0..strip.len() {
        let grad = &grad[row * windows.columns * pixel + output..];
        let values = &strip.values(row, tap)[value..];
        accumulate(
            isa,
            &mut acc,
            #[inline(always)]
            |r, k| grad[k * pixel..][..R][r],
            (0..windows.columns).map(
                #[inline(always)]
                |k| &values[k * step..][..V * I::LANES],
            ),
        );
    }
    for r in 0..R {
        finish(isa, &acc[r], Onto::Output, &mut part[r * depth..][..width]);
    }
}
