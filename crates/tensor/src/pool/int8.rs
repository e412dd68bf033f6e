//! Pooling and addition of codes, NHWC.

use std::ops::Range;

use crate::Level;
use crate::conv::PoolGeometry;
use crate::conv::int8::{AddCodes, Grid};
use crate::gemm::int8::MAX_LANES;
use crate::parallel::{self, CODES};
use crate::simd::int8::Int8;
use crate::simd::{Isa, dispatch};

/// `y[n, oy, ox, c] = max x` over the pixels of the window that lie in the image.
///
/// Codes are ordered as the values they stand for, so the output shares the input's scale and zero
/// point.
///
/// # Panics
/// If a slice has not the length that the geometry says.
pub fn max_pool(level: Level, geometry: &PoolGeometry, input: &[u8], out: &mut [u8]) {
    check(geometry, input, out);
    dispatch!(level, isa => max_on(isa, geometry, input, out));
}

/// What an average of codes becomes: `y = clamp(round(Σ(x − x_zero) · M), low − z, high − z) + z` with
/// `M = x_scale / (n · y_scale)` in `f32`, rounding half to even.
///
/// # Source
/// The law of [`Requantize`](crate::conv::int8::Requantize) with `n`, the pixels of the window, in
/// the multiplier.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Average {
    /// Scale of the input.
    pub x_scale: f32,
    /// Zero point of the input.
    pub x_zero: u8,
    /// Scale of the output.
    pub y_scale: f32,
    /// Zero point of the output.
    pub zero_point: u8,
    /// The smallest code of the output.
    pub low: u8,
    /// The largest code of the output.
    pub high: u8,
    /// Whether `n` counts the window's pixels in padding, which hold the value zero.
    pub count_padding: bool,
}

impl Average {
    /// The multiplier of a window of `n` pixels.
    pub fn multiplier(&self, n: usize) -> f32 {
        self.x_scale / (n as f32 * self.y_scale)
    }

    /// The code of `sum = Σ(x − x_zero)` over a window of `n` pixels.
    pub fn apply(&self, sum: i32, n: usize) -> u8 {
        self.grid().code(sum, self.multiplier(n))
    }

    fn grid(&self) -> Grid {
        Grid::new(self.zero_point, self.low, self.high)
    }
}

/// The average over each window, as codes of another scale: see [`Average`].
///
/// A window may hold at most 2²³ pixels (`255 · n < 2³¹`): larger sums wrap.
///
/// # Panics
/// If a slice has not the length that the geometry says.
pub fn average_pool(
    level: Level,
    geometry: &PoolGeometry,
    input: &[u8],
    average: &Average,
    out: &mut [u8],
) {
    check(geometry, input, out);
    dispatch!(level, isa => average_on(isa, geometry, input, average, out));
}

/// `out[i] = add.apply(a[i], b[i])`.
///
/// # Panics
/// If the slices differ in length.
pub fn add_codes(level: Level, a: &[u8], b: &[u8], add: &AddCodes, out: &mut [u8]) {
    assert_eq!((a.len(), b.len()), (out.len(), out.len()));
    dispatch!(level, isa => add_on(isa, a, b, add, out));
}

fn check(geometry: &PoolGeometry, input: &[u8], out: &[u8]) {
    assert_eq!(input.len(), geometry.input_shape().iter().product());
    assert_eq!(out.len(), geometry.output_shape().iter().product());
}

/// Calls `f(window, out)` for each output row, `window` giving the pixels of a window of this row.
fn for_each_row(
    geometry: &PoolGeometry,
    out: &mut [u8],
    f: impl Fn(&Row, &mut [u8]) + Sync + Send,
) {
    let row = geometry.out_size[1] * geometry.channels;
    let rows = (CODES / row.max(1)).max(1);
    parallel::for_each_chunk(out, rows * row, |chunk, out| {
        for (i, out) in out.chunks_exact_mut(row.max(1)).enumerate() {
            let index = chunk * rows + i;
            let (image, y) = (index / geometry.out_size[0], index % geometry.out_size[0]);
            f(&Row { geometry, image, y }, out);
        }
    });
}

/// One row of output pixels.
struct Row<'a> {
    geometry: &'a PoolGeometry,
    image: usize,
    y: usize,
}

impl Row<'_> {
    /// The rows and columns of the image that window `x` sees.
    #[inline(always)]
    fn window(&self, x: usize) -> [Range<usize>; 2] {
        [self.geometry.window(0, self.y), self.geometry.window(1, x)]
    }

    /// The channels of neighbouring pixels of an input row.
    #[inline(always)]
    fn pixels<'a>(&self, input: &'a [u8], y: usize, xs: &Range<usize>) -> &'a [u8] {
        let PoolGeometry { in_size: [height, width], channels, .. } = *self.geometry;
        let row = (self.image * height + y) * width;
        &input[(row + xs.start) * channels..(row + xs.end) * channels]
    }
}

/// Codes whose maximum is taken at a time: the widest vector.
const VECTOR: usize = 64;

fn max_on<I: Isa>(isa: I, geometry: &PoolGeometry, input: &[u8], out: &mut [u8]) {
    let channels = geometry.channels;
    for_each_row(geometry, out, |row, out| {
        isa.enter(
            #[inline(always)]
            || {
                for (x, out) in out.chunks_exact_mut(channels).enumerate() {
                    let [ys, xs] = row.window(x);
                    let mut vectors = out.chunks_exact_mut(VECTOR);
                    let mut first = 0;
                    for out in &mut vectors {
                        let mut largest = [0; VECTOR];
                        for y in ys.clone() {
                            for pixel in row.pixels(input, y, &xs).chunks_exact(channels) {
                                let codes = &pixel[first..first + VECTOR];
                                for i in 0..VECTOR {
                                    largest[i] = codes[i].max(largest[i]);
                                }
                            }
                        }
                        out.copy_from_slice(&largest);
                        first += VECTOR;
                    }
                    let rest = vectors.into_remainder();
                    if rest.is_empty() {
                        continue;
                    }
                    rest.fill(0);
                    for y in ys {
                        for pixel in row.pixels(input, y, &xs).chunks_exact(channels) {
                            for (out, &code) in rest.iter_mut().zip(&pixel[first..]) {
                                *out = code.max(*out);
                            }
                        }
                    }
                }
            },
        );
    });
}

fn average_on<I: Int8>(
    isa: I,
    geometry: &PoolGeometry,
    input: &[u8],
    average: &Average,
    out: &mut [u8],
) {
    let area = geometry.kernel[0] * geometry.kernel[1];
    for_each_row(geometry, out, |row, out| {
        for (x, out) in out.chunks_exact_mut(geometry.channels).enumerate() {
            let [ys, xs] = row.window(x);
            let inside = ys.len() * xs.len();
            let n = if average.count_padding { area } else { inside };
            let multiplier = [average.multiplier(n); MAX_LANES];
            let zero = [(inside as i32).wrapping_mul(-i32::from(average.x_zero)); MAX_LANES];
            isa.enter(
                #[inline(always)]
                || {
                    for (vector, out) in out.chunks_mut(I::LANES).enumerate() {
                        let first = vector * I::LANES;
                        let mut sum = isa.load(&zero);
                        let mut lanes = [0; MAX_LANES];
                        for y in ys.clone() {
                            let pixels = row.pixels(input, y, &xs);
                            for pixel in pixels.chunks_exact(geometry.channels) {
                                let codes = &pixel[first..first + out.len()];
                                sum = isa.add(
                                    sum,
                                    if out.len() == I::LANES {
                                        isa.load_codes(codes)
                                    } else {
                                        lanes[..out.len()].copy_from_slice(codes);
                                        isa.load_codes(&lanes)
                                    },
                                );
                            }
                        }
                        isa.store_codes(
                            isa.requantize(sum, &multiplier, average.grid()),
                            &mut lanes,
                        );
                        out.copy_from_slice(&lanes[..out.len()]);
                    }
                },
            );
        }
    });
}

fn add_on<I: Int8>(isa: I, a: &[u8], b: &[u8], add: &AddCodes, out: &mut [u8]) {
    parallel::for_each_chunk(out, CODES, |chunk, out| {
        let range = chunk * CODES..chunk * CODES + out.len();
        let (a, b) = (&a[range.clone()], &b[range]);
        isa.enter(
            #[inline(always)]
            || {
                let whole = out.len() / I::LANES * I::LANES;
                for i in (0..whole).step_by(I::LANES) {
                    let sum = isa.add_codes(isa.load_codes(&a[i..]), &b[i..], add);
                    isa.store_codes(sum, &mut out[i..]);
                }
                for i in whole..out.len() {
                    out[i] = add.apply(a[i], b[i]);
                }
            },
        );
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv::int8::testing;
    use proptest::prelude::*;

    /// The pixels of each window inside the image, by the definition.
    fn windows(g: &PoolGeometry, input: &[u8]) -> Vec<Vec<u8>> {
        let [n, c, height, width] = g.input_shape();
        let mut windows = Vec::new();
        for (n, oy) in (0..n).flat_map(|n| (0..g.out_size[0]).map(move |oy| (n, oy))) {
            for (ox, c) in (0..g.out_size[1]).flat_map(|ox| (0..c).map(move |c| (ox, c))) {
                let mut window = Vec::new();
                for (ky, kx) in (0..g.kernel[0]).flat_map(|y| (0..g.kernel[1]).map(move |x| (y, x)))
                {
                    let y = (oy * g.stride[0] + ky).wrapping_sub(g.padding[0]);
                    let x = (ox * g.stride[1] + kx).wrapping_sub(g.padding[1]);
                    if y < height && x < width {
                        window.push(input[((n * height + y) * width + x) * g.channels + c]);
                    }
                }
                windows.push(window);
            }
        }
        windows
    }

    proptest! {
        #[test]
        fn pooling_equals_its_definition_on_every_level(
            (channels, height, width) in (1..70usize, 1..12usize, 1..12usize),
            kernel in prop::array::uniform2(1..5usize), stride in prop::array::uniform2(1..4usize),
            padding in prop::array::uniform4(0..3usize), count_padding: bool,
            (zero_point, low, high) in (0..=255u8, 0..100u8, 100..=255u8), seed: u64,
        ) {
            let Ok(g) = PoolGeometry::new([2, channels, height, width], kernel, stride, padding) else {
                return Ok(());
            };
            let (input, _) = testing::data(2 * channels * height * width, 0, 0, seed);
            let windows = windows(&g, &input);
            let largest: Vec<u8> = windows.iter().map(|w| *w.iter().max().unwrap()).collect();
            let average = Average {
                x_scale: 0.03, x_zero: zero_point / 2, y_scale: 0.021, zero_point, low, high, count_padding,
            };
            let averages: Vec<u8> = windows.iter().map(|w| {
                let sum = w.iter().map(|&x| i32::from(x) - i32::from(average.x_zero)).sum();
                average.apply(sum, if count_padding { kernel[0] * kernel[1] } else { w.len() })
            }).collect();
            for level in Level::available() {
                let mut out = vec![1; windows.len()];
                max_pool(level, &g, &input, &mut out);
                prop_assert!(out == largest, "{:?}", level);
                average_pool(level, &g, &input, &average, &mut out);
                prop_assert!(out == averages, "{:?}", level);
            }
        }

        #[test]
        fn added_codes_equal_the_law(len in 0..200usize, seed: u64, fixed in -100f32..200.0) {
            let (codes, _) = testing::data(2 * len, 0, 0, seed);
            let (a, b) = codes.split_at(len);
            let add = AddCodes { a_ratio: 1.37, b_ratio: 0.62, fixed, low: 3, high: 251 };
            let expected: Vec<u8> = a.iter().zip(b).map(|(&a, &b)| add.apply(a, b)).collect();
            for level in Level::available() {
                let mut out = vec![0; len];
                add_codes(level, a, b, &add, &mut out);
                prop_assert!(out == expected, "{:?}", level);
            }
        }
    }
}
