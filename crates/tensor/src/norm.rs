//! Passes over the channels of an image: batch normalization, forward and backward, and sums.
//!
//! A channel is an index of axis 1. Images are read channels-last, so that a row of memory is a
//! pixel. Sums are taken in `f64` over fixed chunks of pixels, which are added in order.

use crate::simd::f32::dispatch_f32;
use crate::{Level, Tensor, parallel};

/// The mean and the biased variance of each channel.
///
/// Both come from one pass: squares of `f32` are exact in `f64`, so that `E[x²] − E[x]²` loses
/// nothing an `f32` could hold unless the mean is some ten thousand deviations away from zero.
///
/// # Shapes
/// `x`: `[n, c]` or `[n, c, …]`; results: `c`. NaN if there are no elements.
pub fn channel_mean_var(x: &Tensor<f32>) -> (Vec<f32>, Vec<f32>) {
    let x = x.channels_last().dense();
    let [sums, squares] = sums(&x, &x);
    let count = count(&x);
    let means = sums.iter().map(|sum| sum / count);
    let variance = |(mean, square): (f64, &f64)| (square / count - mean * mean).max(0.0) as f32;
    let variances = means.clone().zip(&squares).map(variance).collect();
    (means.map(|mean| mean as f32).collect(), variances)
}

/// The sum of each channel: the gradient of a bias.
///
/// # Shapes
/// As [`channel_mean_var`].
pub fn channel_sums(x: &Tensor<f32>) -> Vec<f32> {
    let x = x.channels_last().dense();
    let [sums, _] = sums(&x, &x);
    sums.into_iter().map(|sum| sum as f32).collect()
}

/// `y = scale[c]·x + shift[c]`, and `max(0, y)` of it if `relu`: batch normalization with known
/// statistics. NaN stays NaN.
///
/// # Shapes
/// `x`: `[n, c]` or `[n, c, …]`; `scale`, `shift`: `c`; result: as `x`, channels-last.
pub fn channel_affine(x: &Tensor<f32>, scale: &[f32], shift: &[f32], relu: bool) -> Tensor<f32> {
    let level = Level::current();
    let x = x.channels_last().dense();
    let (values, channels) = (x.as_dense().expect("dense"), x.shape()[1]);
    debug_assert!(scale.len() == channels && shift.len() == channels);
    let mut y = Tensor::zeros_channels_last(x.shape());
    let size = chunk_rows(channels) * channels;
    parallel::for_each_chunk(y.data_mut(), size, |i, y| {
        let x = &values[i * size..][..y.len()];
        dispatch_f32!(level, _isa => affine(x, scale, shift, relu, y));
    });
    y
}

#[inline(always)]
fn affine(x: &[f32], scale: &[f32], shift: &[f32], relu: bool, y: &mut [f32]) {
    let channels = scale.len();
    let floor = if relu { 0.0 } else { f32::NEG_INFINITY };
    for (x, y) in x.chunks_exact(channels).zip(y.chunks_exact_mut(channels)) {
        for (((&x, y), &scale), &shift) in x.iter().zip(y).zip(scale).zip(shift) {
            let value = scale * x + shift;
            *y = if value < floor { floor } else { value };
        }
    }
}

/// The gradients of batch normalization with the statistics of the batch,
/// `y = weight[c]·x̂ + bias[c]`, `x̂ = (x − mean[c])·inv_std[c]`:
///
/// ```text
/// dbias   = Σ grad
/// dweight = Σ grad·x̂
/// dx      = weight·inv_std·(grad − dbias/m − x̂·dweight/m)       m elements a channel
/// ```
///
/// # Shapes
/// `grad`, `x`: `[n, c]` or `[n, c, …]`; the slices: `c`; results: as `x` (channels-last), `c`, `c`.
///
/// # Source
/// Ioffe and Szegedy 2015 (arXiv:1502.03167), section 3.
pub fn batch_norm_grad(
    grad: &Tensor<f32>,
    x: &Tensor<f32>,
    mean: &[f32],
    inv_std: &[f32],
    weight: &[f32],
) -> (Tensor<f32>, Vec<f32>, Vec<f32>) {
    debug_assert_eq!(grad.shape(), x.shape());
    let level = Level::current();
    let (grad, x) = (grad.channels_last().dense(), x.channels_last().dense());
    let channels = x.shape()[1];
    let [sums, products] = sums(&grad, &x);
    let count = count(&x);

    // Σ grad·x̂ = inv_std·(Σ grad·x − mean·Σ grad)
    let dweight: Vec<f64> = (0..channels)
        .map(|c| f64::from(inv_std[c]) * (products[c] - f64::from(mean[c]) * sums[c]))
        .collect();
    // dx = a·grad + b·(x − mean) + d
    let terms: Vec<[f32; 3]> = (0..channels)
        .map(|c| {
            let a = f64::from(weight[c]) * f64::from(inv_std[c]);
            let b = -a * f64::from(inv_std[c]) * dweight[c] / count;
            [a as f32, b as f32, (-a * sums[c] / count) as f32]
        })
        .collect();
    let [a, b, d] = [0, 1, 2].map(|i| Vec::from_iter(terms.iter().map(|terms| terms[i])));

    let mut dx = Tensor::zeros_channels_last(x.shape());
    let (grads, values) = (grad.as_dense().expect("dense"), x.as_dense().expect("dense"));
    let size = chunk_rows(channels) * channels;
    parallel::for_each_chunk(dx.data_mut(), size, |i, dx| {
        let range = i * size..i * size + dx.len();
        let (grad, x) = (&grads[range.clone()], &values[range]);
        dispatch_f32!(level, _isa => centred(grad, x, mean, [&a, &b, &d], dx));
    });
    let narrow = |sums: Vec<f64>| Vec::from_iter(sums.into_iter().map(|sum| sum as f32));
    (dx, narrow(dweight), narrow(sums))
}

/// `dx = a·grad + b·(x − mean) + d` for each channel.
#[inline(always)]
fn centred(grad: &[f32], x: &[f32], mean: &[f32], [a, b, d]: [&[f32]; 3], dx: &mut [f32]) {
    let channels = mean.len();
    let pixels = grad.chunks_exact(channels).zip(x.chunks_exact(channels));
    for ((grad, x), dx) in pixels.zip(dx.chunks_exact_mut(channels)) {
        let (grad, x, dx) = (&grad[..channels], &x[..channels], &mut dx[..channels]);
        let (a, b, d) = (&a[..channels], &b[..channels], &d[..channels]);
        for c in 0..channels {
            dx[c] = a[c] * grad[c] + (b[c] * (x[c] - mean[c]) + d[c]);
        }
    }
}

/// `Σ a` and `Σ a·b` of each channel, of two tensors of one layout.
fn sums(a: &Tensor<f32>, b: &Tensor<f32>) -> [Vec<f64>; 2] {
    let level = Level::current();
    let channels = a.shape()[1];
    let (a, b) = (a.as_dense().expect("dense"), b.as_dense().expect("dense"));
    let size = chunk_rows(channels) * channels;
    let parts = parallel::map(a.len().div_ceil(size.max(1)), |i| {
        let range = i * size..a.len().min((i + 1) * size);
        let mut part = [vec![0.0; channels], vec![0.0; channels]];
        dispatch_f32!(level, _isa => chunk_sums(&a[range.clone()], &b[range], &mut part));
        part
    });
    let mut totals = [vec![0.0; channels], vec![0.0; channels]];
    for part in parts {
        for (totals, part) in totals.iter_mut().zip(part) {
            for (total, part) in totals.iter_mut().zip(part) {
                *total += part;
            }
        }
    }
    totals
}

#[inline(always)]
fn chunk_sums(a: &[f32], b: &[f32], [sums, products]: &mut [Vec<f64>; 2]) {
    // Sixteen channels at a time, so that their sums stay in registers.
    const BLOCK: usize = 16;
    let channels = sums.len();
    let mut start = 0;
    while start + BLOCK <= channels {
        let (mut sum, mut product) = ([0.0f64; BLOCK], [0.0f64; BLOCK]);
        for (a, b) in a.chunks_exact(channels).zip(b.chunks_exact(channels)) {
            let (a, b) = (&a[start..start + BLOCK], &b[start..start + BLOCK]);
            for i in 0..BLOCK {
                sum[i] += f64::from(a[i]);
                product[i] += f64::from(a[i]) * f64::from(b[i]);
            }
        }
        sums[start..start + BLOCK].copy_from_slice(&sum);
        products[start..start + BLOCK].copy_from_slice(&product);
        start += BLOCK;
    }
    for (a, b) in a.chunks_exact(channels).zip(b.chunks_exact(channels)) {
        for c in start..channels {
            sums[c] += f64::from(a[c]);
            products[c] += f64::from(a[c]) * f64::from(b[c]);
        }
    }
}

/// Pixels of a task.
fn chunk_rows(channels: usize) -> usize {
    (parallel::CHUNK / channels.max(1)).max(1)
}

/// Elements of one channel.
fn count(x: &Tensor<f32>) -> f64 {
    x.len() as f64 / x.shape()[1].max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::tests::with_threads;

    fn uneven(shape: &[usize], seed: usize) -> Tensor<f32> {
        let value = |i: usize| ((i + seed) * 7919 % 1009) as f32 / 500.0 - 0.7;
        let len = shape.iter().product::<usize>();
        Tensor::new(shape, (0..len).map(value).collect::<Vec<f32>>()).unwrap()
    }

    /// The values of one channel, in `f64`.
    fn channel(x: &Tensor<f32>, c: usize) -> Vec<f64> {
        x.slice(1, c..c + 1, 1).unwrap().iter().map(f64::from).collect()
    }

    #[test]
    fn statistics_of_any_shape_and_layout() {
        for shape in [vec![7, 5], vec![3, 37, 5, 6], vec![2, 16, 40, 41], vec![1, 3, 2]] {
            let x = uneven(&shape, 1);
            for x in [x.clone(), x.channels_last()] {
                let (mean, var) = channel_mean_var(&x);
                let sums = channel_sums(&x);
                for c in 0..shape[1] {
                    let values = channel(&x, c);
                    let (n, sum) = (values.len() as f64, values.iter().sum::<f64>());
                    let square = values.iter().map(|v| (v - sum / n).powi(2)).sum::<f64>();
                    assert!((f64::from(mean[c]) - sum / n).abs() < 1e-6);
                    assert!((f64::from(var[c]) - square / n).abs() < 1e-6);
                    assert!((f64::from(sums[c]) - sum).abs() < 1e-3);
                }
            }
        }
    }

    #[test]
    fn variance_survives_a_large_mean() {
        let x = Tensor::new(&[4, 1], [4097.0f32, 4098.0, 4097.0, 4098.0]).unwrap();
        assert_eq!(channel_mean_var(&x), (vec![4097.5], vec![0.25]));
    }

    #[test]
    fn affine_with_and_without_relu() {
        let x = Tensor::new(&[1, 2, 1, 2], [1.0f32, -2.0, 3.0, f32::NAN]).unwrap();
        let y = channel_affine(&x, &[2.0, -1.0], &[1.0, 0.0], false);
        assert_eq!(y.to_vec()[..3], [3.0, -3.0, -3.0]);
        let y = channel_affine(&x, &[2.0, -1.0], &[1.0, 0.0], true);
        assert_eq!(y.to_vec()[..3], [3.0, 0.0, 0.0]);
        assert!(y.to_vec()[3].is_nan());
    }

    /// Central differences in `f64` of `Σ grad·y`, statistics recomputed each time.
    #[test]
    fn gradients_agree_with_finite_differences() {
        let shape = [2, 3, 2, 3];
        let (x, grad) = (uneven(&shape, 1), uneven(&shape, 400));
        let (weight, epsilon) = ([0.5f32, -1.5, 2.0], 1e-5);
        let (mean, var) = channel_mean_var(&x);
        let inv_std = var.iter().map(|v| 1.0 / (v + 1e-5).sqrt()).collect::<Vec<f32>>();
        let (dx, dweight, dbias) = batch_norm_grad(&grad, &x, &mean, &inv_std, &weight);
        for c in 0..3 {
            let (values, grads) = (channel(&x, c), channel(&grad, c));
            let n = values.len() as f64;
            let loss = |values: &[f64], weight: f64, bias: f64| {
                let mean = values.iter().sum::<f64>() / n;
                let var = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
                let y = |v: &f64| weight * (v - mean) / (var + epsilon).sqrt() + bias;
                values.iter().zip(&grads).map(|(v, g)| g * y(v)).sum::<f64>()
            };
            let (w, h) = (f64::from(weight[c]), 1e-4);
            let dw = (loss(&values, w + h, 0.0) - loss(&values, w - h, 0.0)) / (2.0 * h);
            let db = (loss(&values, w, h) - loss(&values, w, -h)) / (2.0 * h);
            assert!((dw - f64::from(dweight[c])).abs() < 1e-4);
            assert!((db - f64::from(dbias[c])).abs() < 1e-4);
            for (i, dx) in channel(&dx, c).into_iter().enumerate() {
                let (mut up, mut down) = (values.clone(), values.clone());
                (up[i], down[i]) = (up[i] + h, down[i] - h);
                let expected = (loss(&up, w, 0.0) - loss(&down, w, 0.0)) / (2.0 * h);
                assert!((expected - dx).abs() < 1e-4, "{expected} {dx}");
            }
        }
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bits() {
        let (x, grad) = (uneven(&[4, 24, 40, 40], 1), uneven(&[4, 24, 40, 40], 2));
        let all = || {
            let (mean, var) = channel_mean_var(&x);
            (batch_norm_grad(&grad, &x, &mean, &var, &mean), channel_sums(&x), var)
        };
        assert!(with_threads(1, all) == with_threads(2, all));
    }
}
