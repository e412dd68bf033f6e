//! A convolution's left operand: the matrix whose row is a pixel and whose columns are the values
//! under the window there, never built.

use std::ops::Range;

use crate::gemm::f32::{Left, Row, copy};
use crate::simd::f32::Float;

/// The values under each window of a channels-last image.
///
/// Row `i` is window `(n, y, x)`, `i = (n·rows + y)·columns + x`, for the `rows` listed; columns
/// are `(tap row, tap column, channel)`. The tap `(u, v)` of that window reads the pixel
/// `(y·stride[0] + first[0] + u·dilation[0], x·stride[1] + first[1] + v·dilation[1])`, or zero
/// where there is none.
pub(super) struct Patches<'a> {
    /// All images, NHWC.
    pub(super) images: &'a [f32],
    /// Height, width and channels of an image.
    pub(super) size: [usize; 3],
    /// The first channel read, and how many.
    pub(super) channels: [usize; 2],
    /// The rows of windows, of all images, that the matrix consists of: image and `y`.
    pub(super) rows: &'a [(usize, usize)],
    /// Windows in a row.
    pub(super) columns: usize,
    /// Rows and columns of taps.
    pub(super) taps: [usize; 2],
    pub(super) stride: [usize; 2],
    pub(super) first: [isize; 2],
    pub(super) dilation: [usize; 2],
}

impl Left for Patches<'_> {
    #[inline(always)]
    fn pack<I: Float>(&self, isa: I, row: usize, depth: Range<usize>, tile: &mut [Row]) {
        let [height, width, pixel] = self.size;
        let [first_channel, channels] = self.channels;
        // Neighbouring taps of a row are one run of values if they are neighbours in memory.
        let joined = channels == pixel && self.dilation[1] == 1;
        let run_taps = if joined { self.taps[1] } else { 1 };
        let run = run_taps * channels;
        let runs_in_row = self.taps[1] / run_taps;
        let first_run = depth.start / run;

        let (mut y, mut x) = (row / self.columns, row % self.columns);
        for target in tile {
            let (image, window_y) = self.rows[y];
            let mut start = first_run * run;
            let (mut u, mut v) = (first_run / runs_in_row, first_run % runs_in_row);
            while start < depth.end {
                // The part of this run that `depth` asks for, and within it what lies in the image.
                let low = start.max(depth.start) - start;
                let high = (start + run).min(depth.end) - start;
                let target = &mut target[start + low - depth.start..start + high - depth.start];
                let py =
                    (window_y * self.stride[0] + u * self.dilation[0]) as isize + self.first[0];
                let px = (x * self.stride[1] + v * self.dilation[1]) as isize + self.first[1];
                let taps_before = (-px).clamp(0, run_taps as isize) as usize;
                let taps_until = (width as isize - px).clamp(0, run_taps as isize) as usize;
                let inside_low = (taps_before * channels).clamp(low, high);
                let inside_high = (taps_until * channels).clamp(inside_low, high);
                if py < 0 || py >= height as isize || inside_low == inside_high {
                    zero(isa, target);
                } else {
                    let pixel_index = ((image * height) as isize + py) * width as isize + px;
                    // Signed, because a run may begin left of the image.
                    let memory = pixel_index * pixel as isize + first_channel as isize;
                    let from = (memory + inside_low as isize) as usize;
                    let inside = inside_high - inside_low;
                    zero(isa, &mut target[..inside_low - low]);
                    let middle = &mut target[inside_low - low..inside_high - low];
                    copy(isa, &self.images[from..from + inside], middle);
                    zero(isa, &mut target[inside_high - low..]);
                }
                start += run;
                v += 1;
                if v == runs_in_row {
                    (u, v) = (u + 1, 0);
                }
            }
            x += 1;
            if x == self.columns {
                (y, x) = (y + 1, 0);
            }
        }
    }
}

#[inline(always)]
fn zero<I: Float>(isa: I, target: &mut [f32]) {
    let len = target.len();
    if len < I::LANES {
        for value in target {
            *value = 0.0;
        }
        return;
    }
    let mut i = 0;
    while i + I::LANES <= len {
        isa.store(&mut target[i..], isa.splat(0.0));
        i += I::LANES;
    }
    isa.store(&mut target[len - I::LANES..], isa.splat(0.0));
}
