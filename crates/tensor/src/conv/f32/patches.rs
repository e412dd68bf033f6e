//! Windows as the rows of a matrix that is never built: for images too narrow to fill a tile with
//! neighbouring windows.

use std::ops::Range;

use super::windows::Windows;
use crate::gemm::f32::{Left, Row, copy};
use crate::simd::f32::Float;

/// The values under each window, row by row.
///
/// Row `i` is window `i % columns` of the `i / columns`-th of the rows listed; columns are
/// `(tap row, tap column, channel)`.
pub(super) struct Patches<'a> {
    pub(super) windows: Windows,
    /// All images, NHWC.
    pub(super) images: &'a [f32],
    /// The first channel read, and how many.
    pub(super) channels: [usize; 2],
    /// Image and `y` of each row of windows.
    pub(super) rows: &'a [(usize, usize)],
}

impl Left for Patches<'_> {
    #[inline(always)]
    fn pack<I: Float>(&self, isa: I, row: usize, depth: Range<usize>, tile: &mut [Row]) {
        let Windows { size: [height, width, pixel], columns, taps, stride, first, dilation } =
            self.windows;
        let [first_channel, channels] = self.channels;
        let run_taps = self.windows.run_taps(channels);
        let run = run_taps * channels;
        let runs_in_row = taps[1] / run_taps;
        let first_run = depth.start / run;

        let (mut y, mut x) = (row / columns, row % columns);
        for target in tile {
            let (image, window_y) = self.rows[y];
            let mut start = first_run * run;
            let (mut u, mut v) = (first_run / runs_in_row, first_run % runs_in_row);
            while start < depth.end {
                // The part of this run that `depth` asks for, and within it what lies in the image.
                let low = start.max(depth.start) - start;
                let high = (start + run).min(depth.end) - start;
                let target = &mut target[start + low - depth.start..start + high - depth.start];
                let py = (window_y * stride[0] + u * dilation[0]) as isize + first[0];
                let px = (x * stride[1] + v * dilation[1]) as isize + first[1];
                let taps_before = (-px).clamp(0, run_taps as isize) as usize;
                let taps_until = (width as isize - px).clamp(0, run_taps as isize) as usize;
                let inside_low = (taps_before * channels).clamp(low, high);
                let inside_high = (taps_until * channels).clamp(inside_low, high);
                if py < 0 || py >= height as isize || inside_low == inside_high {
                    target.fill(0.0);
                } else {
                    let pixel_index = ((image * height) as isize + py) * width as isize + px;
                    // Signed, because a run may begin left of the image.
                    let memory = pixel_index * pixel as isize + first_channel as isize;
                    let from = (memory + inside_low as isize) as usize;
                    let inside = inside_high - inside_low;
                    target[..inside_low - low].fill(0.0);
                    let middle = &mut target[inside_low - low..inside_high - low];
                    copy(isa, &self.images[from..from + inside], middle);
                    target[inside_high - low..].fill(0.0);
                }
                start += run;
                v += 1;
                if v == runs_in_row {
                    (u, v) = (u + 1, 0);
                }
            }
            x += 1;
            if x == columns {
                (y, x) = (y + 1, 0);
            }
        }
    }
}
