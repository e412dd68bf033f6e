use super::super::ConvGeometry;
use super::convolve::{Rows, convolve, task_rows};
use super::packed::Ending;
use super::weights;
use super::windows::Windows;
use super::winograd::{self, Tiling};
use crate::simd::f32::dispatch_f32;
use crate::{Level, Tensor, parallel};

/// The gradient of [`forward`](super::forward) with respect to its input:
/// `dx[n, c, y, x] = Σ_{o, u, v} grad[n, o, i, j]·weight[o, c, u, v]`, over all windows with
/// `y = i·s + u·d − p` and `x = j·s + v·d − p`.
///
/// The result is channels-last. Values that are not finite spread as in [`forward`](super::forward).
///
/// # Shapes
/// `grad`: `g.output_shape()`; `weight`: `g.weight_shape()`; result: `g.input_shape()`.
pub fn grad_input(grad: &Tensor<f32>, weight: &Tensor<f32>, g: &ConvGeometry) -> Tensor<f32> {
    grad_input_on(Level::current(), grad, weight, g)
}

/// [`grad_input`] on a chosen instruction set.
pub fn grad_input_on(
    level: Level,
    grad: &Tensor<f32>,
    weight: &Tensor<f32>,
    g: &ConvGeometry,
) -> Tensor<f32> {
    assert_eq!(grad.shape(), g.output_shape());
    assert_eq!(weight.shape(), g.weight_shape());
    if grad.is_empty() {
        return Tensor::zeros_channels_last(&g.input_shape());
    }
    let grad = grad.channels_last();
    let images = grad.as_nhwc().expect("channels-last");
    let weight = weight.contiguous();
    let weight = weight.as_slice().expect("contiguous");
    if let Some(tiling) = Tiling::backward(g) {
        let mut dx = Tensor::recycled_channels_last(&g.input_shape());
        let panels = winograd::backward_panels(level, weight, &tiling);
        let ending = Ending::default();
        winograd::convolve(level, images, &tiling, &panels, None, &ending, dx.data_mut());
        return dx;
    }

    let [_, _, kh, kw] = g.weight_shape();
    let out_channels = g.out_channels / g.attrs.groups;
    let [height, width] = g.in_size;
    let [top, left, ..] = g.attrs.padding;
    let phases = |axis: usize, padding: usize| {
        Vec::from_iter((0..g.attrs.stride[axis].min(g.in_size[axis])).filter_map(|phase| {
            Phase::new(phase, g.attrs.stride[axis], g.attrs.dilation[axis], padding, g.kernel[axis])
        }))
    };
    let (row_phases, column_phases) = (phases(0, top), phases(1, left));
    // Strides beyond the window leave pixels that no phase reaches.
    let all = [row_phases.len(), column_phases.len()];
    let mut dx = if (0..2).all(|axis| all[axis] == g.attrs.stride[axis].min(g.in_size[axis])) {
        Tensor::recycled_channels_last(&g.input_shape())
    } else {
        Tensor::zeros_channels_last(&g.input_shape())
    };

    // For each pair of phases and each group, the weights that reach it: from the values under a
    // window of the gradient (taps in reverse, then output channels) to input channels.
    let mut packed = Vec::new();
    for rows in &row_phases {
        for columns in &column_phases {
            let (rows, columns) = (rows.taps(), columns.taps());
            packed.push(Vec::from_iter(
                (0..g.attrs.groups)
                    .map(|group| weights::backward(level, weight, g, group, &rows, &columns)),
            ));
        }
    }

    let row_len = width * g.in_channels;
    let macs = row_len * (kh * kw * out_channels).div_ceil(g.attrs.stride[0] * g.attrs.stride[1]);
    let task_rows = task_rows(g.batch * height, macs, width).next_multiple_of(g.attrs.stride[0]);
    parallel::for_each_chunk(dx.data_mut(), task_rows * row_len, |i, out| {
        let mut packed = packed.iter();
        for row_phase in &row_phases {
            // Where in this task the phase has rows, and which windows of the gradient they are.
            let (rows, row_places): (Vec<_>, Vec<_>) = (0..out.len() / row_len)
                .map(|place| (place, i * task_rows + place))
                .map(|(place, row)| (place * row_len, row / height, row % height))
                .filter(|&(.., y)| y % row_phase.stride == row_phase.start)
                .map(|(place, image, y)| ((image, y / row_phase.stride), place))
                .unzip();
            for column_phase in &column_phases {
                let panels = packed.next().expect("packed in this order");
                let windows = Windows {
                    size: [g.out_size[0], g.out_size[1], g.out_channels],
                    columns: (width - column_phase.start).div_ceil(column_phase.stride),
                    taps: [row_phase.taps, column_phase.taps],
                    stride: [1, 1],
                    first: [row_phase.first, column_phase.first],
                    dilation: [row_phase.dilation, column_phase.dilation],
                };
                let first = column_phase.start * g.in_channels;
                let places = Vec::from_iter(row_places.iter().map(|place| place + first));
                let step = column_phase.stride * g.in_channels;
                let to = Rows { rows: &rows, places: &places, step };
                dispatch_f32!(level, isa =>
                    convolve(isa, images, windows, panels, None, &to, out));
            }
        }
    });
    dx
}

/// Along one axis, the input positions `start, start + stride, …` and the taps that reach them.
///
/// Position `start + stride·t` is read by tap `u` of window `i` if
/// `start + stride·t = stride·i + dilation·u − padding`. With `g = gcd(stride, dilation)` the taps
/// with a solution are every `stride/g`-th from `base` on, and the windows step back by
/// `dilation/g` from one such tap to the next. Read from the last tap to the first, that is
/// a convolution of stride one: tap `j` of `taps` at position `t` reads window
/// `t + first + j·dilation/g`.
struct Phase {
    start: usize,
    stride: usize,
    /// The first tap, and how far apart the others are.
    base: usize,
    step: usize,
    taps: usize,
    first: isize,
    dilation: usize,
}

impl Phase {
    /// `None` if no tap reaches the phase: its gradient is zero.
    fn new(
        start: usize,
        stride: usize,
        dilation: usize,
        padding: usize,
        kernel: usize,
    ) -> Option<Self> {
        let base = (0..kernel.min(stride)).find(|u| {
            (start as isize + padding as isize - (u * dilation) as isize) % stride as isize == 0
        })?;
        let common = gcd(stride, dilation);
        let step = stride / common;
        let taps = (kernel - base).div_ceil(step);
        let window_of_base =
            (start as isize + padding as isize - (base * dilation) as isize) / stride as isize;
        let dilation = dilation / common;
        let first = window_of_base - ((taps - 1) * dilation) as isize;
        Some(Self { start, stride, base, step, taps, first, dilation })
    }

    /// The taps of the weight that are taps `0..taps` here.
    fn taps(&self) -> Vec<usize> {
        (0..self.taps).rev().map(|j| self.base + j * self.step).collect()
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
