//! A few rows of the image with its border of zeros, as the gradient of the weight reads them.

use std::ops::Range;

use super::super::ConvGeometry;
use crate::gemm::f32::copy;
use crate::simd::f32::Float;

/// The input rows under consecutive rows of the output (of all images, one after the other), as
/// wide as the windows reach, zero where there is no image.
pub(super) struct Strip<'a> {
    geometry: &'a ConvGeometry,
    data: Vec<f32>,
    row_len: usize,
    /// The first row of the output, and for each the strip row under its first tap.
    first: usize,
    tops: Vec<usize>,
}

impl<'a> Strip<'a> {
    /// A strip for up to `rows` rows; `slack` values beyond any window can be read.
    pub(super) fn new(g: &'a ConvGeometry, rows: usize, slack: usize) -> Self {
        let reach = |axis: usize| (g.kernel[axis] - 1) * g.attrs.dilation[axis] + 1;
        let row_len = ((g.out_size[1] - 1) * g.attrs.stride[1] + reach(1)) * g.in_channels;
        // Each image among the rows begins anew, which costs rows where windows overlap.
        let images = (rows.div_ceil(g.out_size[0]) + 1).min(rows);
        let overlap = reach(0).saturating_sub(g.attrs.stride[0]);
        let input_rows = rows * g.attrs.stride[0] + images * overlap;
        let data = vec![0.0; input_rows * row_len + slack];
        Self { geometry: g, data, row_len, first: 0, tops: Vec::new() }
    }

    /// Fills the strip for some rows of the output.
    #[inline(always)]
    pub(super) fn fill<I: Float>(&mut self, isa: I, images: &[f32], rows: Range<usize>) {
        let g = self.geometry;
        let out_height = g.out_size[0];
        let reach = (g.kernel[0] - 1) * g.attrs.dilation[0] + 1;
        self.first = rows.start;
        self.tops.clear();
        let (mut filled, mut row) = (0, rows.start);
        while row < rows.end {
            // The rows of one image share their input rows.
            let (image, y) = (row / out_height, row % out_height);
            let count = (out_height - y).min(rows.end - row);
            let input_rows = (count - 1) * g.attrs.stride[0] + reach;
            self.tops.extend((0..count).map(|i| filled + i * g.attrs.stride[0]));
            for i in 0..input_rows {
                let position = (y * g.attrs.stride[0] + i).checked_sub(g.attrs.padding[0]);
                let position = position.filter(|&position| position < g.in_size[0]);
                self.fill_row(isa, images, image, position, filled + i);
            }
            filled += input_rows;
            row += count;
        }
    }

    #[inline(always)]
    fn fill_row<I: Float>(
        &mut self,
        isa: I,
        images: &[f32],
        image: usize,
        position: Option<usize>,
        strip_row: usize,
    ) {
        let g = self.geometry;
        let target = &mut self.data[strip_row * self.row_len..][..self.row_len];
        let Some(position) = position else {
            target.fill(0.0);
            return;
        };
        let border = (g.attrs.padding[1] * g.in_channels).min(self.row_len);
        let len = (g.in_size[1] * g.in_channels).min(self.row_len - border);
        let from = (image * g.in_size[0] + position) * g.in_size[1] * g.in_channels;
        target[..border].fill(0.0);
        copy(isa, &images[from..from + len], &mut target[border..border + len]);
        target[border + len..].fill(0.0);
    }

    pub(super) fn geometry(&self) -> &ConvGeometry {
        self.geometry
    }

    /// The rows of the output, each with its place for [`values`](Self::values).
    #[inline(always)]
    pub(super) fn rows(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.tops.iter().enumerate().map(|(i, &top)| (self.first + i, top))
    }

    /// What the tap `(u, v)` reads along a row: pixel after pixel of the input.
    #[inline(always)]
    pub(super) fn values(&self, place: usize, [u, v]: [usize; 2]) -> &[f32] {
        let row = place + u * self.geometry.attrs.dilation[0];
        let column = v * self.geometry.attrs.dilation[1];
        &self.data[row * self.row_len + column * self.geometry.in_channels..]
    }
}
