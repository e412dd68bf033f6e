use super::super::ConvGeometry;
use super::patches::Patches;
use crate::gemm::f32::{Panels, multiply};
use crate::simd::dispatch;
use crate::{Level, Tensor, parallel};

/// Multiply-accumulates worth a task of their own: about 100 microseconds.
pub(super) const TASK_MACS: usize = 1 << 21;

/// 2-D convolution (cross-correlation, as in PyTorch):
/// `y[n, o, i, j] = bias[o] + Σ_{c, u, v} x[n, c, i·s + u·d − p, j·s + v·d − p]·weight[o, c, u, v]`.
///
/// `x` is best channels-last and is copied into that layout otherwise; the result is channels-last.
///
/// # Shapes
/// `x`: `g.input_shape()`; `weight`: `g.weight_shape()`, OIHW; `bias`: `[o]`; result:
/// `g.output_shape()`. Checked by [`ConvGeometry::new`], which is why nothing can fail here.
pub fn forward(
    x: &Tensor<f32>,
    weight: &Tensor<f32>,
    bias: Option<&Tensor<f32>>,
    g: &ConvGeometry,
) -> Tensor<f32> {
    forward_on(Level::current(), x, weight, bias, g)
}

/// [`forward`] on a chosen instruction set.
pub fn forward_on(
    level: Level,
    x: &Tensor<f32>,
    weight: &Tensor<f32>,
    bias: Option<&Tensor<f32>>,
    g: &ConvGeometry,
) -> Tensor<f32> {
    debug_assert_eq!(x.shape(), g.input_shape());
    debug_assert_eq!(weight.shape(), g.weight_shape());
    let mut y = Tensor::zeros_channels_last(&g.output_shape());
    if y.is_empty() {
        return y;
    }
    let x = x.channels_last();
    let images = x.as_nhwc().expect("channels-last");
    let bias = bias.map(Tensor::to_vec);
    let bias = bias.as_deref();

    let [_, channels, kh, kw] = g.weight_shape();
    let (groups, out_channels) = (g.attrs.groups, g.out_channels / g.attrs.groups);
    let depth = kh * kw * channels;
    // OHWI: each output channel's weights in the order of a patch.
    let weight = weight.channels_last();
    let weight = weight.as_nhwc().expect("channels-last");
    let panels: Vec<Panels> = (0..groups)
        .map(|group| {
            let column = |o: usize| &weight[(group * out_channels + o) * depth..];
            Panels::from_columns(level, depth, out_channels, column)
        })
        .collect();

    let [out_height, out_width] = g.out_size;
    let row_len = out_width * g.out_channels;
    let task_rows = (TASK_MACS / (row_len * depth)).max(1);
    let [top, left, ..] = g.attrs.padding;
    parallel::for_each_chunk(y.data_mut(), task_rows * row_len, |i, out| {
        let rows = Vec::from_iter(
            (i * task_rows..i * task_rows + out.len() / row_len)
                .map(|row| (row / out_height, row % out_height)),
        );
        for (group, panels) in panels.iter().enumerate() {
            let patches = Patches {
                images,
                size: [g.in_size[0], g.in_size[1], g.in_channels],
                channels: [group * channels, channels],
                rows: &rows,
                columns: out_width,
                taps: g.kernel,
                stride: g.attrs.stride,
                first: [-(top as isize), -(left as isize)],
                dilation: g.attrs.dilation,
            };
            let first = group * out_channels;
            let bias = bias.map(|bias| &bias[first..first + out_channels]);
            let (pixels, all) = (0..rows.len() * out_width, 0..panels.count());
            dispatch!(level, isa => multiply(isa, &patches, pixels, panels, all, bias, out,
                #[inline(always)] |pixel| pixel * g.out_channels + first));
        }
    });
    y
}
