//! 3×3 convolutions of stride one by Winograd's F(m×m, 3×3): for 9·m² products of a direct one 16 (m = 2)
//! or 36 (m = 4).
//!
//! ```text
//! y  = Aᵀ·[(G·w·Gᵀ) ⊙ (Bᵀ·d·B)]·A         forward, and backward to the input with flipped weights
//! dw = Gᵀ·[(A·dy·Aᵀ) ⊙ (Bᵀ·d·B)]·G        backward to the weight, summed over tiles before Gᵀ·…·G
//! ```
//!
//! where `d` is a tile of (m+2)×(m+2) pixels, m apart, and `y` its m×m results. For each of the (m+2)²
//! places of a transformed tile, `⊙` summed over channels (or tiles) is a matrix product.

mod convolve;
mod grad_weight;
mod lines;
mod transform;
mod variant;

use super::super::ConvGeometry;
use super::windows::Windows;
pub(super) use convolve::{backward_panels, convolve, forward_panels};
pub(super) use grad_weight::grad_weight;
use variant::{F2x2, F4x4, Variant};

/// How far apart places of at least `len` values lie: not a multiple of 4 KiB, or the values of a
/// transformed tile would share a cache set.
fn place_step(len: usize) -> usize {
    len.next_multiple_of(1024) + 80
}

/// Fewer tiles of an image do not pay. The size of the batch has no say: an image's results are the same
/// in every batch.
const FEWEST_TILES: usize = 4;

/// Fewer channels do not pay for transformed tiles.
const FEWEST_CHANNELS: usize = 8;

/// Channels, of an image or of results, up to which F(4×4) is used: the 36 places of more filters do not stay in an
/// L2 cache, and fewer products wait for them; and longer sums round more.
const MOST_CHANNELS: usize = 128;

/// Which tiles.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Size {
    F2x2,
    F4x4,
}

/// Runs `$body` with `$W` the [`Variant`] of a size.
macro_rules! with_variant {
    ($tile:expr, $W:ident => $body:expr) => {
        match $tile {
            $crate::conv::f32::winograd::Size::F2x2 => {
                type $W = $crate::conv::f32::winograd::F2x2;
                $body
            }
            $crate::conv::f32::winograd::Size::F4x4 => {
                type $W = $crate::conv::f32::winograd::F4x4;
                $body
            }
        }
    };
}
use with_variant;

/// The tiles of a convolution over a batch of images.
#[derive(Clone, Copy)]
pub(super) struct Tiling {
    tile: Size,
    /// Height, width and channels of an image.
    size: [usize; 3],
    /// Channels of a result.
    outputs: usize,
    /// Height and width of the results.
    out_size: [usize; 2],
    /// The pixel that the first tile begins with.
    first: [isize; 2],
    /// Rows of tiles over all images, of an image, and tiles in a row.
    all_rows: usize,
    rows: usize,
    columns: usize,
}

impl Tiling {
    /// The tiles of forward and of the gradient of the weight, if that is worth it.
    pub(super) fn forward(g: &ConvGeometry) -> Option<Self> {
        let [top, left, ..] = g.attrs.padding;
        let size = [g.in_size[0], g.in_size[1], g.in_channels];
        let first = [-(top as isize), -(left as isize)];
        Self::new(g, size, g.out_channels, g.out_size, first)
    }

    /// The tiles of the gradient of the input, if that is worth it: they lie over the gradient of the
    /// output, and pixel `p` is reached by windows `p + pad − 2 ..= p + pad`.
    pub(super) fn backward(g: &ConvGeometry) -> Option<Self> {
        let [top, left, ..] = g.attrs.padding;
        let size = [g.out_size[0], g.out_size[1], g.out_channels];
        let first = [top as isize - 2, left as isize - 2];
        Self::new(g, size, g.in_channels, g.in_size, first)
    }

    fn new(
        g: &ConvGeometry,
        size: [usize; 3],
        outputs: usize,
        out_size: [usize; 2],
        first: [isize; 2],
    ) -> Option<Self> {
        let attrs = &g.attrs;
        let fits = g.kernel == [3, 3]
            && attrs.stride == [1, 1]
            && attrs.dilation == [1, 1]
            && attrs.groups == 1;
        if !fits || size[2].min(outputs) < FEWEST_CHANNELS {
            return None;
        }
        let few_channels = size[2].max(outputs) <= MOST_CHANNELS;
        [Size::F4x4, Size::F2x2].into_iter().find_map(|tile| {
            let step = with_variant!(tile, W => W::STEP);
            let [rows, columns] = out_size.map(|len| len.div_ceil(step));
            // A tile of which most lies outside multiplies for nothing.
            let used = (out_size[0] * out_size[1]) as f64 / (rows * columns * step * step) as f64;
            let worth = rows * columns >= FEWEST_TILES && used > 0.7;
            let all_rows = g.batch * rows;
            (worth && (few_channels || tile == Size::F2x2)).then_some(Self {
                tile,
                size,
                outputs,
                out_size,
                first,
                all_rows,
                rows,
                columns,
            })
        })
    }

    /// What the weights are transformed for.
    pub(super) fn name(&self) -> &'static str {
        match self.tile {
            Size::F2x2 => "conv2d, Winograd F(2×2)",
            Size::F4x4 => "conv2d, Winograd F(4×4)",
        }
    }

    /// Rows and columns of results of a tile.
    pub(super) fn step(&self) -> usize {
        with_variant!(self.tile, W => W::STEP)
    }

    /// The tiles as windows over the images.
    fn windows(&self) -> Windows {
        Windows {
            size: self.size,
            columns: self.columns,
            taps: with_variant!(self.tile, W => [W::REACH; 2]),
            stride: [self.step(); 2],
            first: self.first,
            dilation: [1, 1],
        }
    }

    /// Image, and row of tiles in it.
    fn row(&self, row: usize) -> (usize, usize) {
        (row / self.rows, row % self.rows)
    }

    /// The first row of results that a row of tiles makes, counted over all images.
    fn out_row(&self, row: usize) -> usize {
        let (image, row) = self.row(row);
        image * self.out_size[0] + row * self.step()
    }

    /// The row of results behind those of the rows of tiles before `row`, which may be the last one's end.
    fn end_row(&self, row: usize) -> usize {
        if row == self.all_rows { row / self.rows * self.out_size[0] } else { self.out_row(row) }
    }

    /// As many rows as have at most about `tiles` tiles.
    fn rows_of(&self, tiles: usize) -> usize {
        (tiles / self.columns).clamp(1, self.all_rows.max(1))
    }

    /// How many rows of at most about `tiles` tiles to take at a time, given what a number of tiles costs: blocks
    /// that threads share evenly. No result of a tile depends on its block.
    fn block_rows(&self, tiles: usize, cost: impl Fn(usize) -> usize) -> usize {
        let most = self.rows_of(tiles);
        let threads = crate::parallel::threads();
        let cost = |&rows: &usize| {
            let turns = self.all_rows.div_ceil(rows).div_ceil(threads);
            turns * cost(rows * self.columns)
        };
        // The largest of the cheapest.
        (most.div_ceil(2)..=most).rev().min_by_key(cost).unwrap_or(1)
    }
}
