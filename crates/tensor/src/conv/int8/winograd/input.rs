//! The tiles of an input, whose pixels are read where they are.

use super::variant::Variant;
use crate::conv::ConvGeometry;

/// NHWC codes, and how tiles lie over them.
pub(crate) struct Input<'a> {
    codes: &'a [u8],
    zero_point: u8,
    size: [usize; 2],
    channels: usize,
    /// Rows above the first one, columns before it.
    padding: [usize; 2],
    /// Codes that are read of each pixel: its channels, and what lies behind them.
    reach: usize,
}

/// What is read instead of pixels: one outside of the input, and copies of those behind which too little can be read.
pub(crate) struct Patch<'m> {
    outside: &'m [u8],
    copies: &'m mut [u8],
}

/// Where the pixels of a tile start.
pub(crate) type Pixels = [*const u8; 36];

impl<'a> Input<'a> {
    pub(crate) fn new(
        geometry: &ConvGeometry,
        reach: usize,
        codes: &'a [u8],
        zero_point: u8,
    ) -> Self {
        let [top, left, ..] = geometry.attrs.padding;
        Self {
            codes,
            zero_point,
            size: geometry.in_size,
            channels: geometry.in_channels,
            padding: [top, left],
            reach,
        }
    }

    /// Bytes of a patch.
    pub(crate) fn patch_len<V: Variant>(reach: usize) -> usize {
        (1 + V::TILE * V::TILE) * reach
    }

    /// The memory of a patch.
    pub(crate) fn patch<'m>(&self, memory: &'m mut [u8]) -> Patch<'m> {
        let (outside, copies) = memory.split_at_mut(self.reach);
        outside.fill(self.zero_point);
        Patch { outside, copies }
    }

    /// Finds the tile in row `y` and column `x` of image `n`. Each of its pixels has `reach` codes to read, until the
    /// patch serves the next tile; those behind its channels are any.
    pub(crate) fn tile<V: Variant>(
        &self,
        [n, y, x]: [usize; 3],
        patch: &mut Patch<'_>,
        pixels: &mut Pixels,
    ) {
        let ([height, width], channels) = (self.size, self.channels);
        // Before the first row it becomes so large that no row is there, and so does a column.
        let top = (y * V::OUT).wrapping_sub(self.padding[0]);
        let left = (x * V::OUT).wrapping_sub(self.padding[1]);
        let outside = patch.outside.as_ptr();
        let lines = pixels.chunks_exact_mut(V::TILE).take(V::TILE).enumerate();
        let inside = |start: usize, size: usize| start < size && size - start >= V::TILE;
        // No pixel of such a tile has to be asked for.
        if inside(top, height) && inside(left, width) {
            let first = ((n * height + top) * width + left) * channels;
            for (ty, line) in lines {
                let mut next = self.codes[first + ty * width * channels..].as_ptr();
                for pixel in line {
                    *pixel = next;
                    next = next.wrapping_add(channels);
                }
            }
        } else {
            for (ty, line) in lines {
                let row = top.wrapping_add(ty);
                if row >= height {
                    line.fill(outside);
                    continue;
                }
                let start = self.codes[(n * height + row) * width * channels..].as_ptr();
                for (tx, pixel) in line.iter_mut().enumerate() {
                    let column = left.wrapping_add(tx);
                    let inside = start.wrapping_add(column.wrapping_mul(channels));
                    *pixel = if column < width { inside } else { outside };
                }
            }
        }
        if channels < self.reach {
            let copies = patch.copies.chunks_exact_mut(self.reach);
            for (pixel, copy) in pixels.iter_mut().zip(copies) {
                if *pixel != outside {
                    let behind = &self.codes[pixel.addr() - self.codes.as_ptr().addr()..];
                    if behind.len() < self.reach {
                        copy[..behind.len()].copy_from_slice(behind);
                        *pixel = copy.as_ptr();
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::variant::{F2x2, F4x4};
    use super::*;
    use crate::conv::ConvAttrs;

    const ZERO_POINT: u8 = 200;

    /// Every pixel has all that is read of it in the input or in the patch, and its own channels first.
    fn check<V: Variant>(channels: usize, reach: usize, [height, width]: [usize; 2]) {
        let shape = [2, channels, height, width];
        let geometry = ConvGeometry::new(shape, [4, channels, 3, 3], ConvAttrs::new(1, 1)).unwrap();
        let codes = Vec::from_iter((0..2 * height * width * channels).map(|i| (i % 199) as u8));
        let input = Input::new(&geometry, reach, &codes, ZERO_POINT);
        let mut memory = vec![255; Input::patch_len::<V>(reach)];
        let mut patch = input.patch(&mut memory);
        let mut pixels = [std::ptr::null(); 36];
        let tiles = [height.div_ceil(V::OUT), width.div_ceil(V::OUT)];
        for i in 0..2 * tiles[0] * tiles[1] {
            let place = [i / tiles[1] / tiles[0], i / tiles[1] % tiles[0], i % tiles[1]];
            input.tile::<V>(place, &mut patch, &mut pixels);
            for (t, pixel) in pixels.iter().enumerate().take(V::TILE * V::TILE) {
                let read = [&codes, patch.outside, patch.copies].into_iter().find_map(|memory| {
                    let at = pixel.addr().checked_sub(memory.as_ptr().addr())?;
                    memory.get(at..at + reach)
                });
                let read = read.unwrap_or_else(|| panic!("pixel {t} of {place:?} is cut"));
                let at = [t / V::TILE, t % V::TILE];
                let [y, x] =
                    [0, 1].map(|axis| (place[1 + axis] * V::OUT + at[axis]).wrapping_sub(1));
                let expected = match y < height && x < width {
                    true => codes[((place[0] * height + y) * width + x) * channels..][..channels]
                        .to_vec(),
                    false => vec![ZERO_POINT; channels],
                };
                assert_eq!(read[..channels], expected, "pixel {t} of {place:?}");
            }
        }
    }

    #[test]
    fn pixels_are_read_where_they_are_and_never_beyond_the_input() {
        for (channels, reach) in [(16, 16), (3, 16), (1, 32), (20, 32), (33, 48)] {
            for size in [[1, 1], [4, 9], [7, 7], [8, 5], [10, 11]] {
                check::<F2x2>(channels, reach, size);
                check::<F4x4>(channels, reach, size);
            }
        }
    }
}
