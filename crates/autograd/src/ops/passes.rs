//! The elementwise passes of quantization-aware training, each of which does all that can be done while
//! it has the data: values become codes and bits.

use ottava_quant::{Activation, QParams};
use ottava_tensor::bits::{WORD, pack};
use ottava_tensor::conv::int8::Requantize;
use ottava_tensor::{Element, Level, Tensor, parallel};

use crate::mask::Mask;

/// `scale[c] · x + shift[c]`, and zero for what is below if `relu`: one element of
/// [`channel_affine`](ottava_tensor::norm::channel_affine), in its order of operations.
#[inline(always)]
pub(super) fn affine(x: f32, scale: f32, shift: f32, relu: bool) -> f32 {
    let floor = if relu { 0.0 } else { f32::NEG_INFINITY };
    let value = scale * x + shift;
    if value < floor { floor } else { value }
}

/// The least and the largest of `values`; NaN if one is NaN.
pub(super) fn extremes(values: impl Iterator<Item = f32>) -> (f32, f32) {
    values.fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), x| {
        if x.is_nan() || low.is_nan() {
            return (f32::NAN, f32::NAN);
        }
        (if x < low { x } else { low }, if x > high { x } else { high })
    })
}

/// The codes of `affine(x)` on the grid `params`, and where the gradient passes: where the value was
/// neither clamped nor, behind a ReLU, at zero. `None` if the channels do not divide into words.
///
/// # Shapes
/// `x`: channels-last `[n, c, h, w]`; `scale`, `shift`: `c`.
pub(super) fn round_affine(
    x: &Tensor<f32>,
    scale: &[f32],
    shift: &[f32],
    relu: bool,
    params: QParams,
) -> Option<(Tensor<u8>, Mask)> {
    let period = period(scale.len())?;
    let (scale, shift) = (repeat(scale, period), repeat(shift, period));
    round_words(
        x,
        period,
        #[inline(always)]
        |at, x| {
            let scale = scale[at..].first_chunk().expect("a period of words");
            let shift = shift[at..].first_chunk().expect("a period of words");
            let values = affine_word(x, scale, shift, relu);
            let mut codes = [0; WORD];
            for (code, &y) in codes.iter_mut().zip(&values) {
                *code = params.quantize(y) as u8;
            }
            (codes, passes(&values, relu, params))
        },
    )
}

/// A period in which both channels and words begin anew; `None` if it is no part of a chunk.
fn period(channels: usize) -> Option<usize> {
    let channels = channels.max(1);
    Some(channels * (WORD / gcd(channels, WORD))).filter(|&period| period <= parallel::CHUNK)
}

/// A table of channels for every element of a period.
fn repeat<T: Copy>(values: &[T], period: usize) -> Vec<T> {
    values.iter().copied().cycle().take(period).collect()
}

/// What `round` makes of every word of `x`, given where in the period it begins: its codes and its bits.
fn round_words<T: Element + Default>(
    x: &Tensor<T>,
    period: usize,
    round: impl Fn(usize, &[T; WORD]) -> ([u8; WORD], u64) + Sync + Send,
) -> Option<(Tensor<u8>, Mask)> {
    let source = x.as_nhwc()?;
    let (mut codes, mut words) =
        (Tensor::recycled_channels_last(x.shape()), vec![0; source.len().div_ceil(WORD)]);
    let size = parallel::CHUNK / period * period;
    let items: Vec<_> = codes
        .data_mut()
        .chunks_mut(size)
        .zip(words.chunks_mut(size / WORD))
        .zip(source.chunks(size))
        .collect();
    let level = Level::current();
    parallel::for_each_item(items, |_, ((codes, words), source)| {
        level.vectorize(
            #[inline(always)]
            || {
                let blocks = codes.chunks_mut(WORD).zip(source.chunks(WORD)).zip(words).enumerate();
                for (i, ((codes, source), word)) in blocks {
                    let mut x = [T::default(); WORD];
                    x[..source.len()].copy_from_slice(source);
                    let (rounded, bits) = round(i * WORD % period, &x);
                    codes.copy_from_slice(&rounded[..source.len()]);
                    // A last word of fewer elements leaves its other bits at zero.
                    *word = bits & u64::MAX >> (WORD - source.len());
                }
            },
        )
    });
    Some((codes, Mask::channels_last(words)))
}

/// [`affine`] of a word's elements.
#[inline(always)]
fn affine_word(
    x: &[f32; WORD],
    scale: &[f32; WORD],
    shift: &[f32; WORD],
    relu: bool,
) -> [f32; WORD] {
    std::array::from_fn(
        #[inline(always)]
        |i| affine(x[i], scale[i], shift[i], relu),
    )
}

/// The bits of values: whether their gradients pass.
#[inline(always)]
fn passes(values: &[f32; WORD], relu: bool, params: QParams) -> u64 {
    let mut passes = [0; WORD];
    for (pass, &y) in passes.iter_mut().zip(values) {
        *pass = u8::from(params.covers(y) & (!relu | (y > 0.0)));
    }
    pack(&passes)
}

/// The exact sums of a layer and the values they stand for, which are never written down.
#[derive(Clone, Copy)]
pub(super) struct LayerSums<'a> {
    /// Channels-last `[n, c, h, w]`.
    pub sums: &'a Tensor<i32>,
    /// Added to them; one for each channel.
    pub bias: &'a [i32],
    /// What they are multiplied with then; one for each channel, not negative.
    pub steps: &'a [f32],
    pub activation: Activation,
}

impl LayerSums<'_> {
    /// The value of a sum that holds its bias.
    #[inline(always)]
    fn value(activation: Activation, sum: i32, step: f32) -> f32 {
        activation.apply(sum as f32 * step)
    }

    /// All values, written down after all.
    pub(super) fn values(&self) -> Tensor<f32> {
        per_channel(self.sums, |c, sum| {
            Self::value(self.activation, sum.wrapping_add(self.bias[c]), self.steps[c])
        })
    }

    /// The extremes of all values: those of each channel's sums, of which they are a monotone function.
    pub(super) fn extremes(&self) -> (f32, f32) {
        let source = self.sums.as_nhwc().expect("kernels write channels-last");
        let (channels, level) = (self.bias.len().max(1), Level::current());
        let rows = (parallel::CHUNK / channels).max(1) * channels;
        let parts = parallel::map(source.len().div_ceil(rows), |i| {
            let (mut low, mut high) = (vec![i32::MAX; channels], vec![i32::MIN; channels]);
            let source = &source[i * rows..source.len().min((i + 1) * rows)];
            level.vectorize(
                #[inline(always)]
                || {
                    for sums in source.chunks_exact(channels) {
                        let ends = low.iter_mut().zip(&mut high).zip(sums.iter().zip(self.bias));
                        for ((low, high), (&sum, &bias)) in ends {
                            let sum = sum.wrapping_add(bias);
                            (*low, *high) = ((*low).min(sum), (*high).max(sum));
                        }
                    }
                },
            );
            let ends = low.iter().zip(&high).zip(self.steps);
            let values = ends.flat_map(|((&low, &high), &step)| {
                [low, high].map(|sum| Self::value(self.activation, sum, step))
            });
            extremes(values)
        });
        extremes(parts.into_iter().flat_map(|(low, high)| [low, high]))
    }

    /// The codes that `law` gives them, and where the gradient passes through the rounding to `params`.
    /// `None` if the channels do not divide into words.
    pub(super) fn round(&self, law: &Requantize, params: QParams) -> Option<(Tensor<u8>, Mask)> {
        let period = period(self.bias.len())?;
        let (bias, steps) = (repeat(self.bias, period), repeat(self.steps, period));
        let multiplier = repeat(&law.multiplier, period);
        let (grid, activation) = (law.grid(), self.activation);
        round_words(
            self.sums,
            period,
            #[inline(always)]
            |at, sums| {
                let bias: &[i32; WORD] = bias[at..].first_chunk().expect("a period of words");
                let steps: &[f32; WORD] = steps[at..].first_chunk().expect("a period of words");
                let multiplier: &[f32; WORD] =
                    multiplier[at..].first_chunk().expect("a period of words");
                let (mut codes, mut passes) = ([0; WORD], [0; WORD]);
                for i in 0..WORD {
                    let sum = sums[i].wrapping_add(bias[i]);
                    codes[i] = grid.code(sum, multiplier[i]);
                    let y = Self::value(activation, sum, steps[i]);
                    let open = (activation.min < y) & (y < activation.max);
                    passes[i] = u8::from(params.covers(y) & open);
                }
                (codes, pack(&passes))
            },
        )
    }
}

/// The sum of two tensors of codes, in floats, that is never written down.
#[derive(Clone, Copy)]
pub(super) struct CodeSum<'a> {
    pub a: (&'a [u8], QParams),
    pub b: (&'a [u8], QParams),
    pub relu: bool,
}

impl CodeSum<'_> {
    #[inline(always)]
    fn at(&self, a: u8, b: u8) -> f32 {
        let sum = self.a.1.dequantize(a.into()) + self.b.1.dequantize(b.into());
        if self.relu && sum < 0.0 { 0.0 } else { sum }
    }

    /// The extremes.
    pub(super) fn extremes(&self) -> (f32, f32) {
        // As many as keep the vectors of any instruction set busy.
        const LANES: usize = 32;
        let (len, level) = (self.a.0.len(), Level::current());
        let parts = parallel::map(len.div_ceil(parallel::CHUNK), |i| {
            let range = i * parallel::CHUNK..len.min((i + 1) * parallel::CHUNK);
            let (a, a_rest) = self.a.0[range.clone()].as_chunks::<LANES>();
            let (b, b_rest) = self.b.0[range].as_chunks::<LANES>();
            let ends = level.vectorize(
                #[inline(always)]
                || {
                    // Copies that stay in registers.
                    let sum = *self;
                    let (mut low, mut high) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
                    for (a, b) in a.iter().zip(b) {
                        for lane in 0..LANES {
                            let sum = sum.at(a[lane], b[lane]);
                            low[lane] = if sum < low[lane] { sum } else { low[lane] };
                            high[lane] = if sum > high[lane] { sum } else { high[lane] };
                        }
                    }
                    [low, high]
                },
            );
            let rest = a_rest.iter().zip(b_rest).map(|(&a, &b)| self.at(a, b));
            extremes(ends.into_iter().flatten().chain(rest))
        });
        extremes(parts.into_iter().flat_map(|(low, high)| [low, high]))
    }

    /// Where the gradient passes through the rounding to `params`, for channels-last tensors.
    pub(super) fn mask(&self, params: QParams) -> Mask {
        let (a, b) = (self.a.0, self.b.0);
        let mut words = vec![0; a.len().div_ceil(WORD)];
        let level = Level::current();
        parallel::for_each_chunk(&mut words, parallel::CHUNK / WORD, |i, words| {
            let start = i * parallel::CHUNK;
            let pairs = a[start..].chunks(WORD).zip(b[start..].chunks(WORD));
            level.vectorize(
                #[inline(always)]
                || {
                    for (word, (a, b)) in words.iter_mut().zip(pairs) {
                        let mut values = [0.0; WORD];
                        for ((value, &a), &b) in values.iter_mut().zip(a).zip(b) {
                            *value = self.at(a, b);
                        }
                        // A last word of fewer elements leaves its other bits at zero.
                        *word = passes(&values, self.relu, params) & u64::MAX >> (WORD - a.len());
                    }
                },
            );
        });
        Mask::channels_last(words)
    }
}

/// `f(channel, sum)` of every sum of a channels-last tensor.
pub(super) fn per_channel<T: Element>(
    sums: &Tensor<i32>,
    f: impl Fn(usize, i32) -> T + Sync + Send,
) -> Tensor<T> {
    let channels = sums.shape()[1].max(1);
    let source = sums.as_nhwc().expect("kernels write channels-last");
    let mut result = Tensor::recycled_channels_last(sums.shape());
    let (rows, level) = ((parallel::CHUNK / channels).max(1) * channels, Level::current());
    parallel::for_each_chunk(result.data_mut(), rows, |i, chunk| {
        let source = &source[i * rows..][..chunk.len()];
        level.vectorize(
            #[inline(always)]
            || {
                for (target, sums) in chunk.chunks_mut(channels).zip(source.chunks(channels)) {
                    for (c, (target, &sum)) in target.iter_mut().zip(sums).enumerate() {
                        *target = f(c, sum);
                    }
                }
            },
        );
    });
    result
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use ottava_quant::QTensor;
    use ottava_tensor::norm::{channel_affine, channel_statistics};

    use super::*;

    /// What the passes do together is what plain operations do one after the other.
    #[test]
    fn fused_passes_equal_plain_ones() {
        for (channels, relu) in
            [(1, false), (3, true), (10, false), (16, true), (48, true), (70, false)]
        {
            let shape = [3, channels, 9, 11];
            let len: usize = shape.iter().product();
            let value = |i: usize| ((i * 7919 + 13) % 20_011) as i32 - 10_000;
            let sums = Tensor::new(&shape, (0..len).map(value).collect::<Vec<_>>()).unwrap();
            let sums = sums.channels_last();
            let steps: Vec<f32> = (0..channels).map(|c| 1e-3 * (c + 1) as f32).collect();
            let bias: Vec<f32> = (0..channels).map(|c| c as f32 * 0.1 - 0.2).collect();
            let x = sums.map(|sum| sum as f32);
            let steps = Tensor::new(&[channels, 1, 1], &steps).unwrap();
            let x = x.zip_map("scale", &steps, |x, step| x * step).unwrap();
            let seen = channel_statistics(&x).ends;
            let scale: Vec<f32> =
                (0..channels).map(|c| if c % 3 == 2 { -0.7 } else { 0.3 }).collect();
            let y = channel_affine(&x, &scale, &bias, relu);
            let ends = seen.iter().enumerate();
            let ends = ends.flat_map(|(c, x)| x.map(|x| affine(x, scale[c], bias[c], relu)));
            assert_eq!(Some(extremes(ends)), y.min_max());
            let params = QParams::new(0.02, 100, 0..=255).unwrap();
            let (codes, mask) = round_affine(&x, &scale, &bias, relu, params).unwrap();
            assert_eq!(&codes, QTensor::quantize(&y, params).codes());
            let plain = Mask::of(&y, |y| params.covers(y) && (!relu || y > 0.0));
            let grad = || Tensor::full(&shape, 1.0).channels_last();
            assert_eq!(mask.apply(grad()), plain.apply(grad()));
        }
    }

    /// The codes are those of the law, the bits and the extremes those of the values.
    #[test]
    fn sums_are_rounded_as_their_values_would_be() {
        for (channels, activation) in [
            (1, Activation::NONE),
            (3, Activation::RELU),
            (16, Activation::RELU6),
            (48, Activation { min: -0.3, max: 0.4 }),
            (70, Activation::RELU),
        ] {
            let shape = [3, channels, 9, 11];
            let len: usize = shape.iter().product();
            let sum = |i: usize| ((i * 7919 + 13) % 20_011) as i32 - 10_000;
            let sums = Tensor::new(&shape, Vec::from_iter((0..len).map(sum))).unwrap();
            let sums = sums.channels_last();
            let bias = Vec::from_iter((0..channels).map(|c| c as i32 * 31 - 200));
            let steps = Vec::from_iter((0..channels).map(|c| 1e-3 / (c + 1) as f32));
            let params = QParams::new(0.02, 100, 0..=255).unwrap();
            let clamped = activation.clamp(params);
            let law = Requantize {
                bias: bias.clone(),
                multiplier: steps.iter().map(|step| step / params.scale()).collect(),
                zero_point: 100,
                low: clamped.qmin() as u8,
                high: clamped.qmax() as u8,
            };
            let layer = LayerSums { sums: &sums, bias: &bias, steps: &steps, activation };
            let (codes, mask) = layer.round(&law, params).unwrap();
            let inner = 9 * 11;
            let (mut expected, mut values) = (Vec::new(), Vec::new());
            for (i, sum) in sums.iter().enumerate() {
                let c = i / inner % channels;
                expected.push(law.apply(c, sum));
                values.push(activation.apply((sum + bias[c]) as f32 * steps[c]));
            }
            assert_eq!(codes, Tensor::new(&shape, expected).unwrap());
            let values = Tensor::new(&shape, values).unwrap();
            assert_eq!(Some(layer.extremes()), values.min_max());
            let plain =
                Mask::of(&values.channels_last(), |y| params.covers(y) && activation.passes(y));
            let grad = || Tensor::full(&shape, 1.0).channels_last();
            assert_eq!(mask.apply(grad()), plain.apply(grad()));
        }
    }

    #[test]
    fn a_sum_of_codes_is_the_sum_of_their_values() {
        let (p, q) =
            (QParams::new(0.03, 3, 0..=255).unwrap(), QParams::new(0.01, 120, 0..=255).unwrap());
        let codes =
            |seed: usize| (0..20_000).map(|i| ((i * 7919 + seed) % 256) as u8).collect::<Vec<_>>();
        let (a, b) = (codes(1), codes(77));
        let float = |codes: &[u8], params: QParams| {
            let codes = Tensor::new(&[codes.len()], codes).unwrap();
            QTensor::new(codes, params).dequantize()
        };
        for relu in [false, true] {
            let sum = CodeSum { a: (&a, p), b: (&b, q), relu };
            let plain = float(&a, p).zip_map("add", &float(&b, q), |a, b| a + b).unwrap();
            let plain = if relu { plain.map(|x| x.max(0.0)) } else { plain };
            assert_eq!(Some(sum.extremes()), plain.min_max());
            let grid = QParams::new(0.005, 10, 0..=255).unwrap();
            let mask = Mask::of(&plain, |y| grid.covers(y) && (!relu || y > 0.0));
            let grad = || Tensor::full(&[a.len()], 1.0);
            assert_eq!(sum.mask(grid).apply(grad()), mask.apply(grad()));
        }
    }
}
