//! A few rows of the image with its border of zeros, in which kernels read windows in place.

use std::ops::Range;

use super::images::Pixels;
use super::windows::Windows;
use crate::simd::f32::Float;
use crate::storage::Storage;

/// The image rows under some rows of windows, as wide as the windows reach, zero where there is no
/// image.
pub(super) struct Strip {
    windows: Windows,
    data: Storage<f32>,
    row_len: usize,
    slack: usize,
    /// For each row of windows, the strip row under its first tap.
    tops: Vec<usize>,
}

/// Values of a strip, at most: windows that reach far, as those of a large dilation, would have one of many times
/// the image.
const VALUES: usize = 1 << 24;

impl Strip {
    /// Whether a row of windows has a strip at all.
    pub(super) fn fits(windows: &Windows) -> bool {
        Self::height(windows).saturating_mul(Self::row_len(windows)) <= VALUES
    }

    /// Rows of windows that make a strip worth its border, and still leave it in the cache.
    pub(super) fn rows(windows: &Windows) -> usize {
        const PIXELS: usize = 256;
        let fit = VALUES / Self::height(windows).saturating_mul(Self::row_len(windows)).max(1);
        PIXELS.div_ceil(windows.columns.max(1)).min(fit).max(1)
    }

    /// Rows of the image that a row of windows needs at the worst, where no two are neighbours. Dilated windows have
    /// their own rows each, without those between.
    fn height(windows: &Windows) -> usize {
        match windows.dilation[0] {
            1 => windows.stride[0].max(windows.reach(0)),
            _ => windows.taps[0],
        }
    }

    fn row_len(windows: &Windows) -> usize {
        let pixels = (windows.columns.max(1) - 1) * windows.stride[1] + windows.reach(1);
        pixels * windows.size[2]
    }

    /// A strip for up to `rows` rows of windows; tiles may read up to `slack` values beyond them.
    pub(super) fn new(windows: Windows, rows: usize, slack: usize) -> Self {
        let (row_len, input_rows) = (Self::row_len(&windows), rows * Self::height(&windows));
        // Values nobody filled are read into lanes nobody stores.
        let data = Storage::recycled(input_rows * row_len + slack);
        Self { windows, data, row_len, slack, tops: Vec::with_capacity(rows) }
    }

    /// Fills the strip for some rows of windows: image and `y` of each.
    #[inline(always)]
    pub(super) fn fill<I: Float>(&mut self, isa: I, images: Pixels<'_>, rows: &[(usize, usize)]) {
        let Windows { size, stride, first, dilation, taps, .. } = self.windows;
        self.tops.clear();
        let mut filled = 0;
        let neighbours = |a: &(usize, usize), b: &(usize, usize)| a.0 == b.0 && a.1 + 1 == b.1;
        let together =
            |a: &(usize, usize), b: &(usize, usize)| dilation[0] == 1 && neighbours(a, b);
        for rows in rows.chunk_by(together) {
            let (image, y) = rows[0];
            self.tops.extend((0..rows.len()).map(|i| filled + i * stride[0]));
            let input_rows = match dilation[0] {
                1 => (rows.len() - 1) * stride[0] + self.windows.reach(0),
                _ => taps[0],
            };
            for i in 0..input_rows {
                if dilation[0] == 1 && i % stride[0] >= taps[0] {
                    continue; // between the windows
                }
                let position = (y * stride[0] + i * dilation[0]).checked_add_signed(first[0]);
                let target =
                    &mut self.data.as_mut_slice()[(filled + i) * self.row_len..][..self.row_len];
                match position.filter(|&position| position < size[0]) {
                    Some(position) => {
                        let len = size[1] * size[2];
                        let start = (image * size[0] + position) * len;
                        bordered(
                            isa,
                            images,
                            start..start + len,
                            first[1] * size[2] as isize,
                            target,
                        );
                    }
                    None => target.fill(0.0),
                }
            }
            filled += input_rows;
        }
    }

    /// What tap `(u, v)` reads along row `row` of the windows: pixel after pixel of the image.
    #[inline(always)]
    pub(super) fn values(&self, row: usize, [u, v]: [usize; 2]) -> &[f32] {
        let row = self.tops[row] + u;
        let column = v * self.windows.dilation[1];
        &self.data.as_slice()[row * self.row_len + column * self.windows.size[2]..]
    }

    /// The strip from the first row under row `row` of the windows on, how far apart its rows are, and how
    /// long each is with the slack behind it.
    #[inline(always)]
    pub(super) fn lines(&self, row: usize) -> (&[f32], [usize; 2]) {
        (self.values(row, [0, 0]), [self.row_len, self.row_len + self.slack])
    }

    /// How many rows of windows the strip is filled with.
    pub(super) fn len(&self) -> usize {
        self.tops.len()
    }

    pub(super) fn windows(&self) -> &Windows {
        &self.windows
    }
}

/// `target[i] = row[i + first]`, zero outside the row.
#[inline(always)]
fn bordered<I: Float>(
    isa: I,
    images: Pixels<'_>,
    row: Range<usize>,
    first: isize,
    target: &mut [f32],
) {
    let low = first.min(0).unsigned_abs().min(target.len());
    let from = (low as isize + first) as usize;
    let len = row.len().saturating_sub(from).min(target.len() - low);
    target[..low].fill(0.0);
    if len > 0 {
        images.copy(isa, row.start + from, &mut target[low..low + len]);
    }
    target[low + len..].fill(0.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_that_reach_far_have_few_rows_at_a_time() {
        let windows = |columns, dilation| Windows {
            size: [4 * dilation, columns, 1],
            columns,
            taps: [2, 1],
            stride: [1, 1],
            first: [0, 0],
            dilation: [dilation, 1],
        };
        assert_eq!(Strip::rows(&windows(6, 1)), 43);
        assert_eq!(Strip::rows(&windows(6, 1 << 24)), 43, "rows between are not there");
        let wide = |dilation| Windows { taps: [2, 2], dilation: [1, dilation], ..windows(6, 1) };
        assert_eq!(Strip::rows(&wide(1 << 22)), 1);
        assert!(Strip::fits(&wide(1 << 22)) && !Strip::fits(&wide(1 << 23)));
    }
}
