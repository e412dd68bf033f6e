//! Forward and the gradient of the input are the same loops over different windows.

use super::images::Pixels;
use super::patches::Patches;
use super::strip::Strip;
use super::windows::Windows;
use crate::gemm::f32::{
    Onto, Panels, Strided, accumulate_rows, finish, multiply, next_rows, with_rows,
};
use crate::simd::f32::Float;

/// Multiply-accumulates of a task, where there are so many in all: a sixteenth of them, but no less than ten
/// microseconds' and no more than fifty's.
pub(super) fn task_macs(all: usize) -> usize {
    (all / 16).clamp(1 << 18, 1 << 20)
}

/// Windows of a task at the least, so that weights brought into the cache are used often.
const TASK_WINDOWS: usize = 96;

/// How many of the output's rows a task has, given the multiply-accumulates and windows of a row.
pub(super) fn task_rows(rows: usize, row_macs: usize, row_windows: usize) -> usize {
    let macs = task_macs(rows.saturating_mul(row_macs));
    (macs / row_macs.max(1)).max(TASK_WINDOWS.div_ceil(row_windows.max(1))).max(1)
}

/// Columns of windows from which on a tile of one row's neighbours is used well.
const WIDE: usize = 6;

/// Some rows of windows, and where in the output their results go.
pub(super) struct Rows<'a> {
    /// Image and `y` of each row.
    pub(super) rows: &'a [(usize, usize)],
    /// Where the result of each row's first window goes, in a slice of the output.
    pub(super) places: &'a [usize],
    /// How far apart in the output neighbouring windows are.
    pub(super) step: usize,
}

/// Convolves some rows, group after group: `panels[i]` maps the values under a window in group `i`
/// to its outputs, which follow those of the group before.
#[inline(always)]
pub(super) fn convolve<I: Float>(
    isa: I,
    images: &[f32],
    windows: Windows,
    panels: &[Panels],
    bias: Option<&[f32]>,
    to: &Rows,
    out: &mut [f32],
) {
    if to.rows.is_empty() {
        return; // as for some phases of a stride, where a task has few rows
    }
    let channels = windows.size[2] / panels.len();
    if windows.columns < WIDE || !Strip::fits(&windows) {
        for (group, panels) in panels.iter().enumerate() {
            let first = group * panels.columns();
            let bias = bias.map(|bias| &bias[first..]);
            let channels = [group * channels, channels];
            let patches = Patches { windows, images, channels, rows: to.rows };
            let (pixels, all) = (0..to.rows.len() * windows.columns, 0..panels.count());
            multiply(
                isa,
                &patches,
                pixels,
                panels,
                all,
                bias,
                out,
                #[inline(always)]
                |i| to.places[i / windows.columns] + i % windows.columns * to.step + first,
            );
        }
        return;
    }

    let strip_rows = Strip::rows(&windows).min(to.rows.len());
    let mut strip = Strip::new(windows, strip_rows, 0);
    for (rows, places) in to.rows.chunks(strip_rows).zip(to.places.chunks(strip_rows)) {
        strip.fill(isa, Pixels::Floats(images), rows);
        for (group, panels) in panels.iter().enumerate() {
            let first = group * panels.columns();
            let channels = [group * channels, channels];
            for i in 0..panels.count() {
                let (panel, weights) = panels.get(i);
                let column = first + panel.start;
                let onto = bias.map_or(Onto::Nothing, |bias| Onto::Bias(&bias[column..]));
                let width = panel.columns;
                if panel.width == I::LANES {
                    in_place::<I, 1>(
                        isa, &strip, channels, weights, onto, out, places, to.step, column, width,
                    );
                } else {
                    in_place::<I, 2>(
                        isa, &strip, channels, weights, onto, out, places, to.step, column, width,
                    );
                }
            }
        }
    }
}

/// One panel, over all windows of a strip.
#[inline(always)]
fn in_place<I: Float, const V: usize>(
    isa: I,
    strip: &Strip,
    channels: [usize; 2],
    weights: &[f32],
    onto: Onto,
    out: &mut [f32],
    places: &[usize],
    step: usize,
    column: usize,
    width: usize,
) {
    let columns = strip.windows().columns;
    let most = if V == 1 { I::NARROW_ROWS } else { I::ROWS };
    for (row, &place) in places.iter().enumerate() {
        let mut x = 0;
        while x < columns {
            let count = next_rows(columns - x, most);
            let out = &mut out[place + x * step + column..];
            with_rows!(isa, if V == 1 { I::NARROW_ROWS } else { I::ROWS }, count, R =>
                tile::<I, R, V>(isa, strip, row, x, channels, weights, onto, out, step, width));
            x += count;
        }
    }
}

/// `R` neighbouring windows by one panel.
#[inline(always)]
fn tile<I: Float, const R: usize, const V: usize>(
    isa: I,
    strip: &Strip,
    row: usize,
    x: usize,
    [first_channel, channels]: [usize; 2],
    mut weights: &[f32],
    onto: Onto,
    out: &mut [f32],
    step: usize,
    width: usize,
) {
    let windows = strip.windows();
    let run_taps = windows.run_taps(channels);
    let pitch = windows.stride[1] * windows.size[2];
    let start = x * pitch + first_channel;
    let run = run_taps * channels;
    let mut acc = [[isa.splat(0.0); V]; R];
    for u in 0..windows.taps[0] {
        for v in (0..windows.taps[1]).step_by(run_taps) {
            let left = Strided::<R>::new(&strip.values(row, [u, v])[start..], pitch, run);
            let (now, later) = weights.split_at(run * V * I::LANES);
            weights = later;
            accumulate_rows(
                isa,
                &mut acc,
                &left,
                now,
                #[inline(always)]
                |_| (),
            );
        }
    }
    for r in 0..R {
        finish(isa, &acc[r], onto, &mut out[r * step..][..width]);
    }
}
