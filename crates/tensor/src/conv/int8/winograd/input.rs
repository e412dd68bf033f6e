//! The tiles of an input: read where they are, or out of a patch where a tile lies over an edge.

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
    /// Channels, and what is read behind them.
    reach: usize,
}

/// A tile's codes from its first pixel on, and the distances of its rows and of its pixels.
pub(crate) type Codes<'a> = (&'a [u8], [usize; 2]);

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

    /// Codes of a patch.
    pub(crate) fn patch_len<V: Variant>(reach: usize) -> usize {
        V::TILE * V::TILE * reach
    }

    /// The tile in row `y` and column `x` of image `n`, each of whose pixels has `reach` codes to read. Those behind
    /// its channels are any.
    pub(crate) fn tile<'t, V: Variant>(
        &'t self,
        [n, y, x]: [usize; 3],
        patch: &'t mut [u8],
    ) -> Codes<'t> {
        let [height, width] = self.size;
        let [row, pixel] = [width * self.channels, self.channels];
        let last = (V::TILE - 1) * (row + pixel) + self.reach;
        let inside = |at: usize, before: usize, size: usize| {
            at.checked_sub(before).filter(|at| at + V::TILE <= size)
        };
        let (top, left) = (y * V::OUT, x * V::OUT);
        if let Some(y) = inside(top, self.padding[0], height)
            && let Some(x) = inside(left, self.padding[1], width)
            && let Some(codes) = self.codes.get((n * height + y) * row + x * pixel..)
            && let Some(codes) = codes.get(..last)
        {
            return (codes, [row, pixel]);
        }
        let strides = [V::TILE * self.reach, self.reach];
        for (ty, out) in patch.chunks_exact_mut(strides[0]).take(V::TILE).enumerate() {
            out.fill(self.zero_point);
            let Some(y) = (top + ty).checked_sub(self.padding[0]).filter(|&y| y < height) else {
                continue;
            };
            let line = &self.codes[(n * height + y) * row..][..row];
            // The first pixel of the tile that the line has, and the pixel of the line it is.
            let skipped = self.padding[1].saturating_sub(left);
            let first = (left + skipped).saturating_sub(self.padding[1]).min(width);
            let pixels = V::TILE.saturating_sub(skipped).min(width - first);
            let (line, out) = (&line[first * pixel..][..pixels * pixel], &mut out[..]);
            let out = out.get_mut(skipped * self.reach..).unwrap_or_default();
            // All at once where they lie in the patch as they do in the line.
            let together = if pixel == self.reach { V::TILE } else { 1 };
            let lines = line.chunks(together * pixel);
            for (out, codes) in out.chunks_mut(together * self.reach).zip(lines) {
                out[..codes.len()].copy_from_slice(codes);
            }
        }
        (patch, strides)
    }
}
