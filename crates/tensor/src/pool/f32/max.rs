use crate::conv::PoolGeometry;
use crate::simd::f32::dispatch_f32;
use crate::{Level, Tensor, parallel};

/// The largest value under each window, and where it was.
///
/// Of equal values the first in row-major order wins; NaN wins over everything, as in PyTorch.
///
/// # Shapes
/// `x`: `g.input_shape()`; both results: `g.output_shape()`, channels-last. The second holds
/// `row·width + column` of the winner in its input plane.
pub fn max_pool(x: &Tensor<f32>, g: &PoolGeometry) -> (Tensor<f32>, Tensor<i32>) {
    assert_eq!(x.shape(), g.input_shape());
    let level = Level::current();
    let mut y = Tensor::recycled_channels_last(&g.output_shape());
    let mut winners = Tensor::<i32>::recycled_channels_last(&g.output_shape());
    let x = x.channels_last();
    let images = x.as_nhwc().expect("channels-last");
    let row_len = g.out_size[1] * g.channels;
    if row_len == 0 {
        return (y, winners);
    }

    // Values and winners of an output row are written together.
    let rows: Vec<_> =
        y.data_mut().chunks_mut(row_len).zip(winners.data_mut().chunks_mut(row_len)).collect();
    parallel::for_each_item(rows, |row, (y, winners)| {
        dispatch_f32!(level, _isa => max_row(images, g, row, y, winners));
    });
    (y, winners)
}

#[inline(always)]
fn max_row(images: &[f32], g: &PoolGeometry, row: usize, y: &mut [f32], winners: &mut [i32]) {
    let [height, width] = g.in_size;
    let (image, i) = (row / g.out_size[0], row % g.out_size[0]);
    let pixels = y.chunks_exact_mut(g.channels).zip(winners.chunks_exact_mut(g.channels));
    for (j, (best, winners)) in pixels.enumerate() {
        best.fill(f32::NEG_INFINITY);
        let (rows, columns) = (g.window(0, i), g.window(1, j));
        winners.fill((rows.start * width + columns.start) as i32);
        for u in rows {
            for v in columns.clone() {
                let place = u * width + v;
                let values = &images[(image * height * width + place) * g.channels..];
                for ((best, winner), &x) in best.iter_mut().zip(&mut *winners).zip(values) {
                    let wins = x > *best || x.is_nan();
                    *best = if wins { x } else { *best };
                    *winner = if wins { place as i32 } else { *winner };
                }
            }
        }
    }
}

/// The gradient of [`max_pool`]: each output's goes to the winner of its window.
///
/// # Shapes
/// `grad`, `winners`: `g.output_shape()`; result: `g.input_shape()`, channels-last.
pub fn max_pool_grad(grad: &Tensor<f32>, winners: &Tensor<i32>, g: &PoolGeometry) -> Tensor<f32> {
    assert_eq!(grad.shape(), g.output_shape());
    assert_eq!(winners.shape(), g.output_shape());
    let mut dx = Tensor::zeros_channels_last(&g.input_shape());
    let (grad, winners) = (grad.channels_last(), winners.channels_last());
    let grad = grad.as_nhwc().expect("channels-last");
    let winners = winners.as_nhwc().expect("channels-last");
    let outputs = g.out_size[0] * g.out_size[1] * g.channels;
    let inputs = g.in_size[0] * g.in_size[1] * g.channels;
    // Windows overlap: an image is one task, and adds in order.
    parallel::for_each_chunk(dx.data_mut(), inputs, |image, dx| {
        let range = image * outputs..(image + 1) * outputs;
        let pixels = grad[range.clone()]
            .chunks_exact(g.channels)
            .zip(winners[range].chunks_exact(g.channels));
        for (grad, winners) in pixels {
            for (c, (&grad, &winner)) in grad.iter().zip(winners).enumerate() {
                dx[winner as usize * g.channels + c] += grad;
            }
        }
    });
    dx
}
