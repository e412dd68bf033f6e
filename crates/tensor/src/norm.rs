//! Passes over the channels of an image: batch normalization, forward and backward, and sums.
//!
//! A channel is an index of axis 1. Images are read channels-last, so that a row of memory is a
//! pixel. Sums are taken in `f64` over fixed chunks of pixels, which are added in order.

use crate::simd::f32::dispatch_f32;
use crate::storage::Storage;
use crate::{Level, Tensor, bits, parallel};

/// What one pass sees of each channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    /// The means.
    pub mean: Vec<f32>,
    /// The biased variances.
    pub var: Vec<f32>,
    /// The least and the largest values, NaN left out.
    pub ends: Vec<[f32; 2]>,
}

/// Mean, biased variance and extremes of each channel, in one pass.
///
/// Squares of `f32` are exact in `f64`, so that `E[x²] − E[x]²` loses nothing an `f32` could hold
/// unless the mean is some ten thousand deviations away from zero.
///
/// # Shapes
/// `x`: `[n, c]` or `[n, c, …]`; results: `c`. NaN, and ends in the wrong order, if there are no elements.
pub fn channel_statistics(x: &Tensor<f32>) -> Statistics {
    let level = Level::current();
    let x = x.channels_last();
    let (values, channels) = (x.as_dense().expect("dense"), x.shape()[1]);
    let size = chunk_rows(channels) * channels;
    let parts = parallel::map(values.len().div_ceil(size.max(1)), |i| {
        let chunk = &values[i * size..values.len().min((i + 1) * size)];
        let mut seen = vec![Seen::NOTHING; channels];
        dispatch_f32!(level, _isa => chunk_statistics(chunk, &mut seen));
        seen
    });
    let mut seen = vec![Seen::NOTHING; channels];
    for part in parts {
        seen.iter_mut().zip(&part).for_each(|(seen, part)| seen.add(part));
    }
    let count = count(&x);
    let mean = |seen: &Seen| seen.sum / count;
    let var = |seen: &Seen| {
        let var = (seen.square / count - mean(seen) * mean(seen)) as f32;
        // Rounding; `max` would take a NaN for zero.
        if var < 0.0 { 0.0 } else { var }
    };
    Statistics {
        mean: seen.iter().map(|seen| mean(seen) as f32).collect(),
        var: seen.iter().map(var).collect(),
        ends: seen.iter().map(|seen| [seen.low, seen.high]).collect(),
    }
}

/// What some elements of a channel show.
#[derive(Clone, Copy)]
struct Seen {
    sum: f64,
    square: f64,
    low: f32,
    high: f32,
}

impl Seen {
    const NOTHING: Self =
        Self { sum: 0.0, square: 0.0, low: f32::INFINITY, high: f32::NEG_INFINITY };

    fn add(&mut self, other: &Self) {
        self.sum += other.sum;
        self.square += other.square;
        self.low = self.low.min(other.low);
        self.high = self.high.max(other.high);
    }
}

#[inline(always)]
fn chunk_statistics(x: &[f32], seen: &mut [Seen]) {
    let channels = seen.len();
    let mut start = 0;
    while start < channels {
        let width = BLOCK.min(channels - start);
        let (mut sum, mut square) = ([0.0f64; BLOCK], [0.0f64; BLOCK]);
        let (mut low, mut high) = ([f32::INFINITY; BLOCK], [f32::NEG_INFINITY; BLOCK]);
        let mut few = [0.0; BLOCK];
        for x in x.chunks_exact(channels) {
            let x = block(&x[start..], &mut few);
            for i in 0..BLOCK {
                sum[i] += f64::from(x[i]);
                square[i] += f64::from(x[i]) * f64::from(x[i]);
                low[i] = if x[i] < low[i] { x[i] } else { low[i] };
                high[i] = if x[i] > high[i] { x[i] } else { high[i] };
            }
        }
        for (i, seen) in seen[start..start + width].iter_mut().enumerate() {
            *seen = Seen { sum: sum[i], square: square[i], low: low[i], high: high[i] };
        }
        start += width;
    }
}

/// The sum of each channel: the gradient of a bias.
///
/// # Shapes
/// As [`channel_statistics`].
pub fn channel_sums(x: &Tensor<f32>) -> Vec<f32> {
    let x = x.channels_last();
    let [sums, _] = sums(&x, &x, Gate::Open);
    sums.into_iter().map(|sum| sum as f32).collect()
}

/// `y = scale[c]·x + shift[c]`, and `max(0, y)` of it if `relu`: batch normalization with known
/// statistics. NaN stays NaN.
///
/// # Shapes
/// `x`: `[n, c]` or `[n, c, …]`; `scale`, `shift`: `c`; result: as `x`, channels-last.
pub fn channel_affine(x: &Tensor<f32>, scale: &[f32], shift: &[f32], relu: bool) -> Tensor<f32> {
    let level = Level::current();
    let x = x.channels_last();
    let (values, channels) = (x.as_dense().expect("dense"), x.shape()[1]);
    assert!(scale.len() == channels && shift.len() == channels, "one a channel");
    let mut y = Tensor::recycled_channels_last(x.shape());
    let (scale, shift) = (repeated(scale), repeated(shift));
    let size = chunk_rows(channels) * channels;
    parallel::for_each_chunk(y.data_mut(), size, |i, y| {
        let x = &values[i * size..][..y.len()];
        dispatch_f32!(level, _isa => affine(x, &scale, &shift, relu, y));
    });
    y
}

/// What there is of each channel, for as many pixels as make a run long enough for vectors: a pixel of few
/// channels alone is not.
fn repeated(per_channel: &[f32]) -> Vec<f32> {
    const RUN: usize = 256;
    per_channel.repeat(RUN.div_ceil(per_channel.len().max(1)))
}

#[inline(always)]
fn affine(x: &[f32], scale: &[f32], shift: &[f32], relu: bool, y: &mut [f32]) {
    let run = scale.len();
    let floor = if relu { 0.0 } else { f32::NEG_INFINITY };
    for (x, y) in x.chunks(run).zip(y.chunks_mut(run)) {
        for (((&x, y), &scale), &shift) in x.iter().zip(y).zip(scale).zip(shift) {
            let value = scale * x + shift;
            *y = if value < floor { floor } else { value };
        }
    }
}

/// What a residual block ends with: `y = max(0, (scale[c]·x + shift[c]) + shortcut)`, and a bit for each
/// element of `y`, in memory order, that is positive or NaN: [`Gate::Bits`]. NaN stays NaN.
///
/// # Shapes
/// As [`channel_affine`]; `shortcut`: as `x`.
pub fn channel_affine_add_relu(
    x: &Tensor<f32>,
    scale: &[f32],
    shift: &[f32],
    shortcut: &Tensor<f32>,
) -> (Tensor<f32>, Vec<u64>) {
    assert_eq!(x.shape(), shortcut.shape());
    let level = Level::current();
    let [x, shortcut] = [x, shortcut].map(|x| x.channels_last());
    let (values, added) = (x.as_dense().expect("dense"), shortcut.as_dense().expect("dense"));
    let mut y = Tensor::recycled_channels_last(x.shape());
    let mut words = vec![0; values.len().div_ceil(bits::WORD)];
    let size = chunk_rows(scale.len()) * scale.len();
    let (scale, shift) = (repeated(scale), repeated(shift));
    let chunks = y.data_mut().chunks_mut(size.max(1));
    let items = chunks.zip(words.chunks_mut((size / bits::WORD).max(1))).collect();
    parallel::for_each_item(items, |i, (y, words): (&mut [f32], &mut [u64])| {
        let range = i * size..i * size + y.len();
        let (x, added) = (&values[range.clone()], &added[range]);
        dispatch_f32!(level, _isa => affine_add_relu(x, &scale, &shift, added, y, words));
    });
    (y, words)
}

#[inline(always)]
fn affine_add_relu(
    x: &[f32],
    scale: &[f32],
    shift: &[f32],
    added: &[f32],
    y: &mut [f32],
    words: &mut [u64],
) {
    let run = scale.len();
    let runs = x.chunks(run).zip(added.chunks(run)).zip(y.chunks_mut(run));
    for ((x, added), y) in runs {
        let of_channels = scale.iter().zip(shift);
        for (((y, x), added), (scale, shift)) in y.iter_mut().zip(x).zip(added).zip(of_channels) {
            let value = scale * x + shift + added;
            *y = if value < 0.0 { 0.0 } else { value };
        }
    }
    for (word, y) in words.iter_mut().zip(y.chunks(bits::WORD)) {
        *word = bits::word(
            y,
            #[inline(always)]
            |y| y > 0.0 || y.is_nan(),
        );
    }
}

/// Where a gradient passes to what it is the gradient of; elsewhere it counts as zero.
#[derive(Clone, Copy, Debug)]
pub enum Gate<'a> {
    /// Everywhere.
    Open,
    /// Behind a ReLU of `scale[c]·x + shift[c]`: unless that is zero or less.
    Relu {
        /// One a channel.
        scale: &'a [f32],
        /// One a channel.
        shift: &'a [f32],
    },
    /// Where an element's bit is set; in memory order, the lowest bit of a word first.
    Bits(&'a [u64]),
}

impl Gate<'_> {
    /// Calls `f` with a task's part of a gradient, which begins with the element `start`, a multiple of
    /// 64, of its tensor; zero where a bit is clear.
    #[inline(always)]
    fn select(&self, start: usize, grad: &[f32], f: impl FnOnce(&[f32])) {
        let Self::Bits(words) = self else {
            return f(grad);
        };
        let mut selected = Storage::recycled(grad.len());
        let selected = selected.as_mut_slice();
        bits::select(Level::current(), &words[start / bits::WORD..], grad, selected);
        f(selected);
    }

    /// The scales and shifts, if it is a ReLU's.
    fn relu(&self) -> Option<[&[f32]; 2]> {
        match self {
            Self::Relu { scale, shift } => Some([scale, shift]),
            Self::Open | Self::Bits(_) => None,
        }
    }
}

/// The gradients of batch normalization with the statistics of the batch,
/// `y = weight[c]·x̂ + bias[c]`, `x̂ = (x − mean[c])·inv_std[c]`, `grad` being what passes the gate:
///
/// ```text
/// dbias   = Σ grad
/// dweight = Σ grad·x̂
/// dx      = weight·inv_std·(grad − dbias/m − x̂·dweight/m)       m elements a channel
/// ```
///
/// # Shapes
/// `grad`, `x`: `[n, c]` or `[n, c, …]`; the slices: `c`, those of [`Gate::Relu`] too; [`Gate::Bits`]: a word
/// for each 64 elements of `x`, channels-last; results: as `x` (channels-last), `c`, `c`.
///
/// # Source
/// Ioffe and Szegedy 2015 (arXiv:1502.03167), section 3.
pub fn batch_norm_grad(
    grad: &Tensor<f32>,
    x: &Tensor<f32>,
    mean: &[f32],
    inv_std: &[f32],
    weight: &[f32],
    gate: Gate<'_>,
) -> (Tensor<f32>, Vec<f32>, Vec<f32>) {
    assert_eq!(grad.shape(), x.shape());
    let level = Level::current();
    let (grad, x) = (grad.channels_last(), x.channels_last());
    let channels = x.shape()[1];
    let [sums, products] = sums(&grad, &x, gate);
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
    let terms = [0, 1, 2].map(|i| repeated(&Vec::from_iter(terms.iter().map(|terms| terms[i]))));
    let means = repeated(mean);
    let relu = gate.relu().map(|relu| relu.map(repeated));

    let mut dx = Tensor::recycled_channels_last(x.shape());
    let (grads, values) = (grad.as_dense().expect("dense"), x.as_dense().expect("dense"));
    let size = chunk_rows(channels) * channels;
    parallel::for_each_chunk(dx.data_mut(), size, |i, dx| {
        let start = i * size;
        let range = start..start + dx.len();
        let (grad, x) = (&grads[range.clone()], &values[range]);
        gate.select(start, grad, |grad| {
            dispatch_f32!(level, _isa => match &relu {
                Some(relu) => centred::<true>(grad, x, &means, &terms, relu, dx),
                None => centred::<false>(grad, x, &means, &terms, &[vec![], vec![]], dx),
            });
        });
    });
    let narrow = |sums: Vec<f64>| Vec::from_iter(sums.into_iter().map(|sum| sum as f32));
    (dx, narrow(dweight), narrow(sums))
}

/// `dx = a·grad + b·(x − mean) + d` for each channel, `grad` being what passes a ReLU of `relu`'s scales and
/// shifts, if there is one. All that is there of a channel is [`repeated`].
#[inline(always)]
fn centred<const RELU: bool>(
    grad: &[f32],
    x: &[f32],
    means: &[f32],
    [a, b, d]: &[Vec<f32>; 3],
    [scale, shift]: &[Vec<f32>; 2],
    dx: &mut [f32],
) {
    let run = means.len();
    let runs = grad.chunks(run).zip(x.chunks(run)).zip(dx.chunks_mut(run));
    for ((grad, x), dx) in runs {
        let len = dx.len();
        let (grad, x, mean, a, b, d) =
            (&grad[..len], &x[..len], &means[..len], &a[..len], &b[..len], &d[..len]);
        let gate = if RELU { [&scale[..len], &shift[..len]] } else { [mean; 2] };
        for i in 0..len {
            let grad = if RELU { passed(grad[i], x[i], gate[0][i], gate[1][i]) } else { grad[i] };
            dx[i] = a[i] * grad + (b[i] * (x[i] - mean[i]) + d[i]);
        }
    }
}

/// What a ReLU of `scale·x + shift` lets pass of a gradient.
#[inline(always)]
fn passed(grad: f32, x: f32, scale: f32, shift: f32) -> f32 {
    if scale * x + shift <= 0.0 { 0.0 } else { grad }
}

/// `Σ a` and `Σ a·b` of each channel, of two tensors of one layout; of `a` what passes the gate.
fn sums(a: &Tensor<f32>, b: &Tensor<f32>, gate: Gate<'_>) -> [Vec<f64>; 2] {
    let level = Level::current();
    let channels = a.shape()[1];
    let (a, b) = (a.as_dense().expect("dense"), b.as_dense().expect("dense"));
    let size = chunk_rows(channels) * channels;
    let parts = parallel::map(a.len().div_ceil(size.max(1)), |i| {
        let range = i * size..a.len().min((i + 1) * size);
        let mut part = [vec![0.0; channels], vec![0.0; channels]];
        let b = &b[range.clone()];
        gate.select(i * size, &a[range], |a| {
            dispatch_f32!(level, _isa => match gate.relu() {
                Some(relu) => chunk_sums::<true>(a, b, relu, &mut part),
                None => chunk_sums::<false>(a, b, [&[]; 2], &mut part),
            });
        });
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

/// Channels at a time, so that their sums stay in registers.
const BLOCK: usize = 16;

/// The first values of `x`; where there are fewer than a block, they are copied into `few`.
#[inline(always)]
fn block<'a>(x: &'a [f32], few: &'a mut [f32; BLOCK]) -> &'a [f32; BLOCK] {
    match x.first_chunk() {
        Some(block) => block,
        None => {
            few[..x.len()].copy_from_slice(x);
            few
        }
    }
}

#[inline(always)]
fn chunk_sums<const RELU: bool>(
    a: &[f32],
    b: &[f32],
    relu: [&[f32]; 2],
    [sums, products]: &mut [Vec<f64>; 2],
) {
    let channels = sums.len();
    let mut start = 0;
    while start < channels {
        let width = BLOCK.min(channels - start);
        let (mut sum, mut product) = ([0.0f64; BLOCK], [0.0f64; BLOCK]);
        let [mut scale, mut shift] = [[0.0; BLOCK]; 2];
        if RELU {
            scale[..width].copy_from_slice(&relu[0][start..start + width]);
            shift[..width].copy_from_slice(&relu[1][start..start + width]);
        }
        let [mut few_a, mut few_b] = [[0.0; BLOCK]; 2];
        for (a, b) in a.chunks_exact(channels).zip(b.chunks_exact(channels)) {
            let (a, b) = (block(&a[start..], &mut few_a), block(&b[start..], &mut few_b));
            for i in 0..BLOCK {
                let a = if RELU { passed(a[i], b[i], scale[i], shift[i]) } else { a[i] };
                sum[i] += f64::from(a);
                product[i] += f64::from(a) * f64::from(b[i]);
            }
        }
        sums[start..start + width].copy_from_slice(&sum[..width]);
        products[start..start + width].copy_from_slice(&product[..width]);
        start += width;
    }
}

/// Pixels of a task: tasks begin where words of bits do.
fn chunk_rows(channels: usize) -> usize {
    let rows = (parallel::CHUNK / channels.max(1)).max(1);
    match (rows * channels).is_multiple_of(bits::WORD) {
        true => rows,
        false => (rows / bits::WORD).max(1) * bits::WORD,
    }
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

    /// However a matrix lies in memory, and its gradient.
    #[test]
    fn transposed_rows_are_read_by_their_places() {
        let turned =
            |x: &Tensor<f32>| x.transpose(0, 1).unwrap().contiguous().transpose(0, 1).unwrap();
        let (x, grad) = (uneven(&[70, 5], 1), uneven(&[70, 5], 2));
        let (scale, shift) = ([0.5, -2.0, 1.0, 0.25, 3.0], [0.1, 0.2, -0.3, 0.4, -0.5]);
        let affine = |x: &Tensor<f32>| channel_affine(x, &scale, &shift, true);
        assert_eq!(affine(&turned(&x)), affine(&x));
        let sum = |x: &Tensor<f32>, y: &Tensor<f32>| channel_affine_add_relu(x, &scale, &shift, y);
        assert_eq!(sum(&turned(&x), &grad), sum(&x, &turned(&grad)));
        let back = |grad: &Tensor<f32>, x: &Tensor<f32>| {
            batch_norm_grad(grad, x, &shift, &scale, &scale, Gate::Open)
        };
        assert_eq!(back(&turned(&grad), &x), back(&grad, &turned(&x)));
        assert_eq!(back(&grad, &turned(&x)), back(&grad, &x));
    }

    /// What diverged has no variance, rather than none.
    #[test]
    fn values_that_are_not_finite_have_no_variance() {
        for bad in [f32::NAN, f32::INFINITY] {
            let x = Tensor::new(&[2, 2], [bad, 1.0, 1.0, 3.0]).unwrap();
            let Statistics { var, .. } = channel_statistics(&x);
            assert!(var[0].is_nan() && var[1] == 1.0, "{var:?}");
        }
        assert!(channel_statistics(&Tensor::zeros(&[0, 1])).var[0].is_nan());
    }

    #[test]
    fn statistics_of_any_shape_and_layout() {
        for shape in [vec![7, 5], vec![3, 37, 5, 6], vec![2, 16, 40, 41], vec![1, 3, 2]] {
            let x = uneven(&shape, 1);
            let turned = x.transpose(0, 1).unwrap().contiguous().transpose(0, 1).unwrap();
            for x in [x.clone(), x.channels_last(), turned] {
                let Statistics { mean, var, ends } = channel_statistics(&x);
                let sums = channel_sums(&x);
                for c in 0..shape[1] {
                    let values = channel(&x, c);
                    let (n, sum) = (values.len() as f64, values.iter().sum::<f64>());
                    let square = values.iter().map(|v| (v - sum / n).powi(2)).sum::<f64>();
                    assert!((f64::from(mean[c]) - sum / n).abs() < 1e-6);
                    assert!((f64::from(var[c]) - square / n).abs() < 1e-6);
                    let ends = ends[c].map(f64::from);
                    assert!(values.contains(&ends[0]) && values.contains(&ends[1]));
                    assert!(values.iter().all(|v| (ends[0]..=ends[1]).contains(v)));
                    assert!((f64::from(sums[c]) - sum).abs() < 1e-3);
                }
            }
        }
    }

    #[test]
    fn variance_survives_a_large_mean() {
        let x = Tensor::new(&[4, 1], [4097.0f32, 4098.0, 4097.0, 4098.0]).unwrap();
        let Statistics { mean, var, ends } = channel_statistics(&x);
        assert_eq!((mean, var, ends), (vec![4097.5], vec![0.25], vec![[4097.0, 4098.0]]));
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
        let Statistics { mean, var, .. } = channel_statistics(&x);
        let inv_std = var.iter().map(|v| 1.0 / (v + 1e-5).sqrt()).collect::<Vec<f32>>();
        let (dx, dweight, dbias) = batch_norm_grad(&grad, &x, &mean, &inv_std, &weight, Gate::Open);
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

    /// One after the other gives the same bits.
    #[test]
    fn the_end_of_a_residual_block() {
        for shape in [[3, 5, 7, 9], [2, 16, 40, 41], [1, 70, 3, 3]] {
            let (mut x, shortcut) = (uneven(&shape, 1).to_vec(), uneven(&shape, 2));
            x[17] = f32::NAN;
            let x = Tensor::new(&shape, x).unwrap();
            let scale: Vec<f32> = (0..shape[1]).map(|c| c as f32 / 9.0 - 0.4).collect();
            let shift = vec![0.1; shape[1]];
            let sum =
                channel_affine(&x, &scale, &shift, false).zip_map("add", &shortcut, |a, b| a + b);
            let expected = sum.unwrap().map(|y| if y < 0.0 { 0.0 } else { y });
            let (y, words) = channel_affine_add_relu(&x, &scale, &shift, &shortcut);
            let bits = |x: &Tensor<f32>| Vec::from_iter(x.iter().map(f32::to_bits));
            assert_eq!(bits(&y), bits(&expected));
            for (i, y) in y.as_nhwc().unwrap().iter().enumerate() {
                let open = words[i / bits::WORD] >> (i % bits::WORD) & 1 == 1;
                assert_eq!(open, *y > 0.0 || y.is_nan());
            }
        }
    }

    /// A gate in the passes is a gate before them.
    #[test]
    fn what_does_not_pass_counts_as_zero() {
        for shape in [[3, 5, 7, 9], [2, 16, 40, 41], [1, 70, 3, 3]] {
            let (x, grad) = (uneven(&shape, 1).channels_last(), uneven(&shape, 2).channels_last());
            let channels = shape[1];
            let (scale, shift) = (vec![-0.7f32; channels], vec![0.1f32; channels]);
            let value = |x: f32| scale[0] * x + shift[0];
            let zeroed =
                grad.zip_map("gate", &x, |g, x| if value(x) > 0.0 { g } else { 0.0 }).unwrap();
            let mut words = vec![0u64; x.len().div_ceil(bits::WORD)];
            for (i, &x) in x.as_nhwc().unwrap().iter().enumerate() {
                words[i / bits::WORD] |= u64::from(value(x) > 0.0) << (i % bits::WORD);
            }
            let back = |grad, gate| batch_norm_grad(grad, &x, &shift, &shift, &scale, gate);
            let expected = back(&zeroed, Gate::Open);
            assert!(back(&grad, Gate::Relu { scale: &scale, shift: &shift }) == expected);
            assert!(back(&grad, Gate::Bits(&words)) == expected);
            assert!(back(&grad, Gate::Open) != expected);
        }
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bits() {
        let (x, grad) = (uneven(&[4, 24, 40, 40], 1), uneven(&[4, 24, 40, 40], 2));
        let all = || {
            let Statistics { mean, var, .. } = channel_statistics(&x);
            let gate = Gate::Relu { scale: &var, shift: &mean };
            (batch_norm_grad(&grad, &x, &mean, &var, &mean, gate), channel_sums(&x), var)
        };
        assert!(with_threads(1, all) == with_threads(2, all));
    }
}
