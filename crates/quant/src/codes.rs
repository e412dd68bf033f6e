//! Where floats become codes and codes floats: the entry of a program and its exit, vectorized.
//!
//! Channels are handled four at a time: four codes are a word, and words are what vectors make and
//! take apart, whatever the distance between a pixel's channels in memory.

use ottava_tensor::Level;
use ottava_tensor::parallel::{CHUNK, for_each_chunk};

use crate::QParams;
use crate::kernels::{Images, for_each_image_run, to_channels_last};

/// Channels of a word.
const WORD: usize = 4;
/// Pixels whose words are made at a time, on the stack.
const PIXELS: usize = 256;

/// Images to channels-last codes.
pub(crate) fn quantize(
    level: Level,
    x: Images<'_>,
    shape: [usize; 3],
    grid: QParams,
    y: &mut [u8],
) {
    let [c, h, w] = shape;
    let run = |x: &[f32], start: usize, y: &mut [u8]| {
        level.vectorize(
            #[inline(always)]
            || quantize_run(x, h * w, start, c, grid, y),
        );
    };
    let copy = |x: &[f32], y: &mut [u8]| {
        level.vectorize(
            #[inline(always)]
            || {
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = grid.quantize(x) as u8;
                }
            },
        );
    };
    to_channels_last(x, shape, y, run, copy);
}

/// The codes `y`, channels-last, of the pixels from `start` on.
#[inline(always)]
fn quantize_run(x: &[f32], pixels: usize, start: usize, c: usize, grid: QParams, y: &mut [u8]) {
    for (block, y) in y.chunks_mut(PIXELS * c).enumerate() {
        let start = start + block * PIXELS;
        let count = y.len() / c;
        for first in (0..c).step_by(WORD) {
            let channels = WORD.min(c - first);
            let mut words = [0u32; PIXELS];
            for i in 0..channels {
                let x = &x[(first + i) * pixels + start..][..count];
                for (word, &x) in words.iter_mut().zip(x) {
                    *word |= (grid.quantize(x) as u32) << (8 * i);
                }
            }
            let pixels = y[first..].chunks_mut(c).zip(&words);
            // Copies of a length that the compiler knows are an instruction or two.
            match channels {
                WORD => pixels.for_each(
                    #[inline(always)]
                    |(y, word)| y[..WORD].copy_from_slice(&word.to_le_bytes()),
                ),
                3 => pixels.for_each(
                    #[inline(always)]
                    |(y, word)| y[..3].copy_from_slice(&word.to_le_bytes()[..3]),
                ),
                _ => pixels.for_each(
                    #[inline(always)]
                    |(y, word)| y[..channels].copy_from_slice(&word.to_le_bytes()[..channels]),
                ),
            }
        }
    }
}

/// The values of channels-last codes of images of shape `[c, h, w]`, in logical (NCHW) order.
pub(crate) fn dequantize(
    level: Level,
    x: &[u8],
    [c, h, w]: [usize; 3],
    grid: QParams,
    y: &mut [f32],
) {
    let pixels = h * w;
    if c == 1 || pixels == 1 {
        return dequantize_in_order(level, x, grid, y);
    }
    // A task is some words' channels of an image.
    let words = (CHUNK / (WORD * pixels)).clamp(1, c.div_ceil(WORD));
    for_each_image_run(y, c * pixels, words * WORD * pixels, |image, at, y| {
        let x = &x[image * c * pixels..][..c * pixels];
        level.vectorize(
            #[inline(always)]
            || dequantize_run(x, pixels, at * words * WORD, c, grid, y),
        );
    });
}

/// The values `y` of the channels from `start` on.
#[inline(always)]
fn dequantize_run(x: &[u8], pixels: usize, start: usize, c: usize, grid: QParams, y: &mut [f32]) {
    for (group, y) in y.chunks_mut(WORD * pixels).enumerate() {
        let (first, channels) = (start + group * WORD, y.len() / pixels);
        for block in (0..pixels).step_by(PIXELS) {
            let count = PIXELS.min(pixels - block);
            let mut words = [0u32; PIXELS];
            let source = x[block * c + first..].chunks(c);
            let source = words[..count].iter_mut().zip(source);
            if channels == WORD {
                for (word, x) in source {
                    *word = u32::from_le_bytes(*x.first_chunk().expect("a word of channels"));
                }
            } else {
                for (word, x) in source {
                    for (i, &x) in x[..channels].iter().enumerate() {
                        *word |= u32::from(x) << (8 * i);
                    }
                }
            }
            for i in 0..channels {
                let y = &mut y[i * pixels + block..][..count];
                for (y, word) in y.iter_mut().zip(&words) {
                    *y = grid.dequantize((word >> (8 * i) & 255) as i32);
                }
            }
        }
    }
}

/// The values of codes, in the order they lie in memory.
pub(crate) fn dequantize_in_order(level: Level, x: &[u8], grid: QParams, y: &mut [f32]) {
    for_each_chunk(y, CHUNK, |i, y| {
        level.vectorize(
            #[inline(always)]
            || {
                for (y, &code) in y.iter_mut().zip(&x[i * CHUNK..]) {
                    *y = grid.dequantize(i32::from(code));
                }
            },
        );
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Any shape, on every instruction set: each element is where it belongs, and `QParams` says what.
        #[test]
        fn elements_find_their_places(
            (n, c, h, w) in (1..4usize, 1..11usize, 1..40usize, 1..40usize), seed in any::<u32>(),
        ) {
            let grid = QParams::new(0.1, 7, 0..=255).unwrap();
            let len = n * c * h * w;
            let x: Vec<f32> = (0..len as u32)
                .map(|i| (i ^ seed).wrapping_mul(2_654_435_761) as f32 / 1e8 - 10.0)
                .collect();
            let pixels = h * w;
            let place = |i: usize| {
                let (image, channel, pixel) = (i / (c * pixels), i / pixels % c, i % pixels);
                (image * pixels + pixel) * c + channel
            };
            for level in Level::available() {
                let mut codes = vec![0; len];
                quantize(level, Images::ChannelsFirst(&x), [c, h, w], grid, &mut codes);
                let mut values = vec![0.0; len];
                dequantize(level, &codes, [c, h, w], grid, &mut values);
                for (i, &x) in x.iter().enumerate() {
                    prop_assert_eq!(i32::from(codes[place(i)]), grid.quantize(x));
                    prop_assert_eq!(values[i], grid.fake_quantize(x));
                }
            }
        }
    }
}
