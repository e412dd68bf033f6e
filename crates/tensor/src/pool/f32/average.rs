use crate::conv::PoolGeometry;
use crate::simd::f32::dispatch_f32;
use crate::{Level, Tensor, parallel};

/// The mean under each window. Padding counts as zeros if `count_include_pad`, and not at all
/// otherwise. Global average pooling is a window as large as the image.
///
/// # Shapes
/// `x`: `g.input_shape()`; result: `g.output_shape()`, channels-last.
pub fn avg_pool(x: &Tensor<f32>, g: &PoolGeometry, count_include_pad: bool) -> Tensor<f32> {
    assert_eq!(x.shape(), g.input_shape());
    let level = Level::current();
    let mut y = Tensor::zeros_channels_last(&g.output_shape());
    let x = x.channels_last();
    let images = x.as_nhwc().expect("channels-last");
    parallel::for_each_chunk(y.data_mut(), g.out_size[1] * g.channels, |row, y| {
        dispatch_f32!(level, _isa => avg_row(images, g, count_include_pad, row, y));
    });
    y
}

#[inline(always)]
fn avg_row(images: &[f32], g: &PoolGeometry, include: bool, row: usize, y: &mut [f32]) {
    let [height, width] = g.in_size;
    let (image, i) = (row / g.out_size[0], row % g.out_size[0]);
    for (j, y) in y.chunks_exact_mut(g.channels).enumerate() {
        for u in g.window(0, i) {
            for v in g.window(1, j) {
                let pixel = (image * height + u) * width + v;
                for (sum, &x) in y.iter_mut().zip(&images[pixel * g.channels..]) {
                    *sum += x;
                }
            }
        }
        let share = share(g, include, i, j);
        for mean in y {
            *mean *= share;
        }
    }
}

/// The gradient of [`avg_pool`]: each output's is shared equally by its window.
///
/// # Shapes
/// `grad`: `g.output_shape()`; result: `g.input_shape()`, channels-last.
pub fn avg_pool_grad(grad: &Tensor<f32>, g: &PoolGeometry, count_include_pad: bool) -> Tensor<f32> {
    assert_eq!(grad.shape(), g.output_shape());
    let level = Level::current();
    let mut dx = Tensor::zeros_channels_last(&g.input_shape());
    let grad = grad.channels_last();
    let grad = grad.as_nhwc().expect("channels-last");
    let outputs = g.out_size[0] * g.out_size[1] * g.channels;
    let inputs = g.in_size[0] * g.in_size[1] * g.channels;
    // Windows overlap: an image is one task, and adds in order.
    parallel::for_each_chunk(dx.data_mut(), inputs, |image, dx| {
        let grad = &grad[image * outputs..(image + 1) * outputs];
        dispatch_f32!(level, _isa => avg_image_grad(grad, g, count_include_pad, dx));
    });
    dx
}

#[inline(always)]
fn avg_image_grad(grad: &[f32], g: &PoolGeometry, include: bool, dx: &mut [f32]) {
    for (pixel, grad) in grad.chunks_exact(g.channels).enumerate() {
        let (i, j) = (pixel / g.out_size[1], pixel % g.out_size[1]);
        let share = share(g, include, i, j);
        for u in g.window(0, i) {
            for v in g.window(1, j) {
                let target = &mut dx[(u * g.in_size[1] + v) * g.channels..][..g.channels];
                for (target, &grad) in target.iter_mut().zip(grad) {
                    *target += grad * share;
                }
            }
        }
    }
}

/// One over the number of values that window `(i, j)` averages.
#[inline(always)]
fn share(g: &PoolGeometry, include: bool, i: usize, j: usize) -> f32 {
    let count = if include {
        g.kernel[0] * g.kernel[1]
    } else {
        g.window(0, i).len() * g.window(1, j).len()
    };
    1.0 / count as f32
}
