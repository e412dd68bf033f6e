//! Backward to the weight.

use std::ops::Range;

use super::super::images::Pixels;
use super::super::strip::Strip;
use super::super::windows::Windows;
use super::lines::Lines;
use super::transform::{self, both_sides};
use super::variant::{MOST_REACH, MOST_STEP, Variant};
use super::{Tiling, place_step, with_variant};
use crate::gemm::f32::{Onto, accumulate, finish, next_rows, with_rows};
use crate::simd::f32::Float;
use crate::simd::f32::dispatch_f32;
use crate::storage::Storage;
use crate::{Level, Tensor, parallel};

/// Floats of transformed tiles at a time: with what they are added to, an L2 cache.
const BLOCK: usize = 3 << 15;

/// Tiles summed at a time, at the most.
const TILES: usize = 192;

/// Floats of the sums of a task: 4 MiB, so that the sums for a place stay in the L2 cache.
const TASK_SUMS: usize = 1 << 20;

/// Floats of all sums, and how many parts of the batch they are the sums of, at the most.
const ALL_SUMS: usize = 1 << 22;
const PARTS: usize = 16;

/// Tiles of a part at the least: its sums are added to those of the others.
const PART_TILES: usize = 192;

/// Writes the gradient of the weight, OIHW.
pub(in super::super) fn grad_weight(
    level: Level,
    grad: &[f32],
    images: Pixels<'_>,
    tiling: &Tiling,
    dw: &mut Tensor<f32>,
) {
    with_variant!(tiling.tile, W => grad_weight_of::<W>(level, grad, images, tiling, dw));
}

fn grad_weight_of<W: Variant>(
    level: Level,
    grad: &[f32],
    images: Pixels<'_>,
    tiling: &Tiling,
    dw: &mut Tensor<f32>,
) {
    // Tasks are pairs of a range of rows of tiles and a range of output channels.
    let (channels, outputs) = (tiling.size[2], tiling.outputs);
    let output_step = (TASK_SUMS / (W::PLACES * channels)).clamp(16, outputs.max(16)) & !15;
    let output_tasks = outputs.div_ceil(output_step);
    let parts = (ALL_SUMS / (W::PLACES * channels * outputs))
        .clamp(1, PARTS)
        .min(tiling.all_rows * tiling.columns / PART_TILES)
        .max(1);
    let row_step = tiling.all_rows.div_ceil(parts);
    let row_tasks = tiling.all_rows.div_ceil(row_step);
    let sums = parallel::map(row_tasks * output_tasks, |task| {
        let (i, j) = (task / output_tasks, task % output_tasks);
        let rows = i * row_step..tiling.all_rows.min((i + 1) * row_step);
        let outputs = j * output_step..outputs.min((j + 1) * output_step);
        let mut sums = Storage::recycled(W::PLACES * outputs.len() * channels);
        dispatch_f32!(level, isa =>
            sum_tiles::<_, W>(isa, grad, images, tiling, rows, outputs, sums.as_mut_slice()));
        sums
    });

    parallel::for_each_chunk(dw.data_mut(), 9 * channels, |output, target| {
        let (task, output) = (output / output_step, output % output_step);
        let sums = Vec::from_iter(
            sums.iter().skip(task).step_by(output_tasks).map(|sums| sums.as_slice()),
        );
        dispatch_f32!(level, isa => filter_gradients::<_, W>(isa, &sums, channels, output, target));
    });
}

/// Writes `sums[place][o][c] = Σ_tiles (A·dy·Aᵀ)[o] · (Bᵀ·d·B)[c]`, for some output channels.
#[inline(always)]
fn sum_tiles<I: Float, W: Variant>(
    isa: I,
    grad: &[f32],
    images: Pixels<'_>,
    tiling: &Tiling,
    rows: Range<usize>,
    outputs: Range<usize>,
    sums: &mut [f32],
) {
    let (channels, columns) = (tiling.size[2], tiling.columns);
    let width = 2 * I::LANES;
    let panels = [channels.div_ceil(width), outputs.len().div_ceil(width)];
    let all_channels = (panels[0] + panels[1]) * width;
    let tiles = (BLOCK / (W::PLACES * all_channels)).clamp(W::SUMMED, TILES);
    // Not as threads would share them: sums must not depend on their number.
    let block_rows = tiling.rows_of(tiles).min(rows.len());
    let most_tiles = block_rows * columns;

    // Both sides in panels of `width` channels: `[place][panel][tile][channel]`.
    let [mut pixels, mut grads] = panels.map(
        #[inline(always)]
        |panels| Storage::<f32>::recycled(W::PLACES * place_step(panels * most_tiles * width)),
    );
    let mut strip = Strip::new(tiling.windows(), block_rows, width);
    let grad_windows = Windows {
        size: [tiling.out_size[0], tiling.out_size[1], tiling.outputs],
        taps: [W::STEP; 2],
        first: [0, 0],
        ..tiling.windows()
    };
    let mut grad_strip = Strip::new(grad_windows, block_rows, width);
    for first in rows.clone().step_by(block_rows) {
        let block = Vec::from_iter((first..rows.end.min(first + block_rows)).map(
            #[inline(always)]
            |row| tiling.row(row),
        ));
        let tiles = block.len() * columns;
        strip.fill(isa, images, &block);
        grad_strip.fill(isa, Pixels::Floats(grad), &block);
        let panel_len = tiles * width;
        let lens = panels.map(
            #[inline(always)]
            |panels| panels * panel_len,
        );
        let steps = lens.map(place_step);
        let (pixels, grads) = (pixels.as_mut_slice(), grads.as_mut_slice());
        isa.enter(
            #[inline(always)]
            || {
                transform::tiles::<I, W, MOST_REACH>(
                    isa,
                    &strip,
                    0..channels,
                    W::REACH,
                    #[inline(always)]
                    |line| W::pixels(isa, line),
                    &mut Lines::new(pixels, steps[0], W::PLACES, lens[0]),
                    #[inline(always)]
                    |tile, channel| in_panel(width, tiles, tile, channel),
                )
            },
        );
        isa.enter(
            #[inline(always)]
            || {
                transform::tiles::<I, W, MOST_STEP>(
                    isa,
                    &grad_strip,
                    outputs.clone(),
                    W::STEP,
                    #[inline(always)]
                    |line| W::spread(isa, line),
                    &mut Lines::new(grads, steps[1], W::PLACES, lens[1]),
                    #[inline(always)]
                    |tile, channel| in_panel(width, tiles, tile, channel),
                )
            },
        );
        let onto = if first == rows.start { Onto::Nothing } else { Onto::Output };
        let places = pixels.chunks(steps[0]).zip(grads.chunks(steps[1]));
        let all_sums = sums.chunks_exact_mut(outputs.len() * channels);
        for ((pixels, grads), sums) in places.zip(all_sums) {
            for (i, pixels) in pixels[..lens[0]].chunks_exact(panel_len).enumerate() {
                let columns = (channels - i * width).min(width);
                for (j, grads) in grads[..lens[1]].chunks_exact(panel_len).enumerate() {
                    let sums = &mut sums[j * width * channels + i * width..];
                    let outputs = (outputs.len() - j * width).min(width);
                    multiply(isa, pixels, grads, outputs, onto, sums, channels, columns);
                }
            }
        }
    }
}

/// Where the values of a tile are, from a channel on, in panels of `tiles` tiles by `width` channels.
#[inline(always)]
fn in_panel(width: usize, tiles: usize, tile: usize, channel: usize) -> usize {
    (channel / width * tiles + tile) * width + channel % width
}

/// Writes the sums of `grads[tile][o]·pixels[tile][c]` over all tiles, or adds them, to `sums`, rows of which are
/// `step` apart.
#[inline(always)]
fn multiply<I: Float>(
    isa: I,
    pixels: &[f32],
    grads: &[f32],
    outputs: usize,
    onto: Onto,
    sums: &mut [f32],
    step: usize,
    columns: usize,
) {
    let most = if columns <= I::LANES { I::NARROW_ROWS } else { I::ROWS };
    let mut o = 0;
    while o < outputs {
        let count = next_rows(outputs - o, most);
        let sums = &mut sums[o * step..];
        if columns <= I::LANES {
            with_rows!(isa, I::NARROW_ROWS, count, R =>
                tile::<I, R, 1>(isa, pixels, grads, o, onto, sums, step, columns));
        } else {
            with_rows!(isa, I::ROWS, count, R =>
                tile::<I, R, 2>(isa, pixels, grads, o, onto, sums, step, columns));
        }
        o += count;
    }
}

#[inline(always)]
fn tile<I: Float, const R: usize, const V: usize>(
    isa: I,
    pixels: &[f32],
    grads: &[f32],
    output: usize,
    onto: Onto,
    sums: &mut [f32],
    step: usize,
    columns: usize,
) {
    let width = 2 * I::LANES;
    let mut acc = [[isa.splat(0.0); V]; R];
    let grads = &grads[output..];
    accumulate(
        isa,
        &mut acc,
        #[inline(always)]
        |r, k| grads[k * width..][..R][r],
        pixels.chunks_exact(width),
    );
    for r in 0..R {
        finish(isa, &acc[r], onto, &mut sums[r * step..][..columns]);
    }
}

/// Adds up the parts and makes the taps of one output channel, `[channel][tap]`.
#[inline(always)]
fn filter_gradients<I: Float, W: Variant>(
    isa: I,
    parts: &[&[f32]],
    channels: usize,
    output: usize,
    target: &mut [f32],
) {
    let outputs = parts[0].len() / (W::PLACES * channels);
    let mut between = [[isa.splat(0.0); MOST_REACH]; 3];
    for first in (0..channels).step_by(I::LANES) {
        let lanes = (channels - first).min(I::LANES);
        let mut sums = [[0.0; 16]; MOST_REACH * MOST_REACH];
        for part in parts {
            for (place, sums) in sums.iter_mut().enumerate().take(W::PLACES) {
                let values = &part[(place * outputs + output) * channels + first..][..lanes];
                for (sum, value) in sums.iter_mut().zip(values) {
                    *sum += value;
                }
            }
        }
        both_sides(
            isa,
            [W::REACH, 3],
            &mut between,
            #[inline(always)]
            |u, v| isa.load(&sums[u * W::REACH + v]),
            #[inline(always)]
            |line| W::gather(isa, line),
            #[inline(always)]
            |u, v, value| {
                let mut values = [0.0; 16];
                isa.store(&mut values, value);
                let target = target[first * 9 + u * 3 + v..].iter_mut().step_by(9);
                for (target, &value) in target.zip(&values[..lanes]) {
                    *target = value;
                }
            },
        );
    }
}
