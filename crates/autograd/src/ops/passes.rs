//! The elementwise passes of quantization-aware training, each of which does all that can be done while
//! it has the data: values become codes and bits.

use ottava_quant::QParams;
use ottava_tensor::bits::{WORD, pack};
use ottava_tensor::{Level, Tensor, parallel};

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
    let source = x.as_nhwc()?;
    // A period in which both channels and words begin anew.
    let period = scale.len().max(1) * (WORD / gcd(scale.len().max(1), WORD));
    if period > parallel::CHUNK {
        return None;
    }
    let repeat =
        |values: &[f32]| -> Vec<f32> { values.iter().copied().cycle().take(period).collect() };
    let (scale, shift) = (repeat(scale), repeat(shift));
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
                    let at = i * WORD % period;
                    let scale = scale[at..].first_chunk().expect("a period of words");
                    let shift = shift[at..].first_chunk().expect("a period of words");
                    let mut x = [0.0; WORD];
                    x[..source.len()].copy_from_slice(source);
                    let values = affine_word(&x, scale, shift, relu);
                    for (code, &y) in codes.iter_mut().zip(&values) {
                        *code = params.quantize(y) as u8;
                    }
                    *word = pack_passes(&values, source.len(), relu, params);
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

/// The bits of the first `len` values: whether their gradients pass.
#[inline(always)]
fn pack_passes(values: &[f32; WORD], len: usize, relu: bool, params: QParams) -> u64 {
    let mut passes = [0; WORD];
    for (pass, &y) in passes.iter_mut().zip(values) {
        *pass = u8::from(params.covers(y) & (!relu | (y > 0.0)));
    }
    // A last word of fewer elements leaves its other bits at zero.
    pack(&passes) & u64::MAX >> (WORD - len)
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
                        *word = pack_passes(&values, a.len(), self.relu, params);
                    }
                },
            );
        });
        Mask::channels_last(words)
    }
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
