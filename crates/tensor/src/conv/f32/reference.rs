//! The definition, loop by loop, in `f64`: what every kernel is compared with.

use super::super::ConvGeometry;
use crate::Tensor;

/// Calls `f(y, x, w)` with the row-major indices of output, input and weight of every product.
fn for_each_product(g: &ConvGeometry, mut f: impl FnMut(usize, usize, usize)) {
    let [_, group_channels, kh, kw] = g.weight_shape();
    let group_outputs = g.out_channels / g.attrs.groups;
    let [top, left, ..] = g.attrs.padding;
    let inside = |window: usize, axis: usize, tap: usize, padding: usize| {
        (window * g.attrs.stride[axis] + tap * g.attrs.dilation[axis])
            .checked_sub(padding)
            .filter(|&position| position < g.in_size[axis])
    };
    for n in 0..g.batch {
        for o in 0..g.out_channels {
            for i in 0..g.out_size[0] {
                for j in 0..g.out_size[1] {
                    let y = ((n * g.out_channels + o) * g.out_size[0] + i) * g.out_size[1] + j;
                    for c in 0..group_channels {
                        let channel = o / group_outputs * group_channels + c;
                        let plane = (n * g.in_channels + channel) * g.in_size[0];
                        for u in 0..kh {
                            for v in 0..kw {
                                let row = inside(i, 0, u, top);
                                let column = inside(j, 1, v, left);
                                if let (Some(row), Some(column)) = (row, column) {
                                    let x = (plane + row) * g.in_size[1] + column;
                                    f(y, x, ((o * group_channels + c) * kh + u) * kw + v);
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The convolution, row-major.
pub(crate) fn forward(
    x: &[f64],
    weight: &[f64],
    bias: Option<&[f64]>,
    g: &ConvGeometry,
) -> Vec<f64> {
    let mut y = vec![0.0; g.output_shape().iter().product()];
    if let Some(bias) = bias {
        let plane = g.out_size[0] * g.out_size[1];
        for (i, y) in y.iter_mut().enumerate() {
            *y = bias[i / plane % g.out_channels];
        }
    }
    for_each_product(g, |i, j, k| y[i] += x[j] * weight[k]);
    y
}

/// Its gradient with respect to the input, row-major.
pub(crate) fn grad_input(grad: &[f64], weight: &[f64], g: &ConvGeometry) -> Vec<f64> {
    let mut dx = vec![0.0; g.input_shape().iter().product()];
    for_each_product(g, |i, j, k| dx[j] += grad[i] * weight[k]);
    dx
}

/// Its gradient with respect to the weight, row-major.
pub(crate) fn grad_weight(grad: &[f64], x: &[f64], g: &ConvGeometry) -> Vec<f64> {
    let mut dw = vec![0.0; g.weight_shape().iter().product()];
    for_each_product(g, |i, j, k| dw[k] += grad[i] * x[j]);
    dw
}

/// The elements as `f64`, in logical order.
pub(crate) fn wide(x: &Tensor<f32>) -> Vec<f64> {
    x.iter().map(f64::from).collect()
}
