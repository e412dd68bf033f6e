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
    let (values, channels) = (x.as_dense().expect("dense"), x.shape()[1]);
    let size = chunk_rows(channels) * channels;
    let parts = parallel::map(values.len().div_ceil(size.max(1)), |i| {
        chunk_totals(&values[i * size..values.len().min((i + 1) * size)], channels)
    });
    totals(parts, channels)
}

/// What of a gradient passes a gate of `bits`, and the sum of each channel of it, in one pass.
///
/// # Shapes
/// As [`channel_statistics`]; `bits` as for [`Gate::Bits`].
pub fn keep_and_sum(grad: Tensor<f32>, bits: &[u64]) -> (Tensor<f32>, Vec<f32>) {
    let grad = grad.channels_last();
    let channels = grad.shape()[1];
    let size = (chunk_rows(channels) * channels).max(bits::WORD);
    let (grad, parts) = bits::keep_all(bits, grad, size, |chunk| chunk_totals(chunk, channels));
    (grad, totals(parts, channels))
}

fn chunk_totals(x: &[f32], channels: usize) -> Vec<f64> {
    let mut part = vec![0.0; channels];
    dispatch_f32!(Level::current(), _isa => chunk_sum(x, &mut part));
    part
}

/// The sums of all chunks, in order.
fn totals(parts: Vec<Vec<f64>>, channels: usize) -> Vec<f32> {
    let mut totals = vec![0.0; channels];
    for part in parts {
        totals.iter_mut().zip(part).for_each(|(total, part)| *total += part);
    }
    totals.into_iter().map(|total| total as f32).collect()
}

#[inline(always)]
fn chunk_sum(x: &[f32], sums: &mut [f64]) {
    let channels = sums.len();
    let mut start = 0;
    while start < channels {
        let width = BLOCK.min(channels - start);
        let (mut sum, mut few) = ([0.0f64; BLOCK], [0.0; BLOCK]);
        for x in x.chunks_exact(channels) {
            let x = block(&x[start..], &mut few);
            for i in 0..BLOCK {
                sum[i] += f64::from(x[i]);
            }
        }
        sums[start..start + width].copy_from_slice(&sum[..width]);
        start += width;
    }
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
mod tests;
