//! Backward to the weight.

use std::ops::Range;

use super::super::strip::Strip;
use super::super::windows::Windows;
use super::convolve::transform_pixels;
use super::{PLACES, STEP, Tiling, place_step, transform};
use crate::gemm::f32::{Onto, accumulate, finish, next_rows, with_rows};
use crate::simd::f32::Float;
use crate::simd::f32::dispatch_f32;
use crate::storage::Storage;
use crate::{Level, Tensor, parallel};

/// Floats of transformed tiles at a time: with what they are added to, an L2 cache.
const BLOCK: usize = 3 << 15;

/// Tiles summed at a time, at the least and at the most.
const TILES: [usize; 2] = [96, 192];

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
    images: &[f32],
    tiling: &Tiling,
    dw: &mut Tensor<f32>,
) {
    // Tasks are pairs of a range of rows of tiles and a range of output channels.
    let (channels, outputs) = (tiling.size[2], tiling.outputs);
    let output_step = (TASK_SUMS / (PLACES * channels)).clamp(16, outputs.max(16)) & !15;
    let output_tasks = outputs.div_ceil(output_step);
    let parts = (ALL_SUMS / (PLACES * channels * outputs))
        .clamp(1, PARTS)
        .min(tiling.all_rows * tiling.columns / PART_TILES)
        .max(1);
    let row_step = tiling.all_rows.div_ceil(parts);
    let row_tasks = tiling.all_rows.div_ceil(row_step);
    let sums = parallel::map(row_tasks * output_tasks, |task| {
        let (i, j) = (task / output_tasks, task % output_tasks);
        let rows = i * row_step..tiling.all_rows.min((i + 1) * row_step);
        let outputs = j * output_step..outputs.min((j + 1) * output_step);
        let mut sums = Storage::zeroed(PLACES * outputs.len() * channels);
        dispatch_f32!(level, isa =>
            sum_tiles(isa, grad, images, tiling, rows, outputs, sums.as_mut_slice()));
        sums
    });

    parallel::for_each_chunk(dw.data_mut(), 9 * channels, |output, target| {
        let (task, output) = (output / output_step, output % output_step);
        let sums = Vec::from_iter(
            sums.iter().skip(task).step_by(output_tasks).map(|sums| sums.as_slice()),
        );
        dispatch_f32!(level, isa => filter_gradients(isa, &sums, channels, output, target));
    });
}

/// `sums[place][o][c] = Σ_tiles (A·dy·Aᵀ)[o] · (Bᵀ·d·B)[c]`, for some output channels.
#[inline(always)]
fn sum_tiles<I: Float>(
    isa: I,
    grad: &[f32],
    images: &[f32],
    tiling: &Tiling,
    rows: Range<usize>,
    outputs: Range<usize>,
    sums: &mut [f32],
) {
    let (channels, columns) = (tiling.size[2], tiling.columns);
    let width = 2 * I::LANES;
    let [fewest, most] = TILES;
    let panels = [channels.div_ceil(width), outputs.len().div_ceil(width)];
    let all_channels = (panels[0] + panels[1]) * width;
    let tiles = (BLOCK / (PLACES * all_channels)).clamp(fewest, most);
    // Not as threads would share them: sums must not depend on their number.
    let block_rows = tiling.rows_of(tiles).min(rows.len());
    let most_tiles = block_rows * columns;

    // Both sides in panels of `width` channels: `[place][panel][tile][channel]`.
    let [mut pixels, mut grads] = panels.map(
        #[inline(always)]
        |panels| Storage::<f32>::recycled(PLACES * place_step(panels * most_tiles * width)),
    );
    let mut strip = Strip::new(tiling.windows(), block_rows, width);
    let grad_windows = Windows {
        size: [tiling.out_size[0], tiling.out_size[1], tiling.outputs],
        taps: [STEP, STEP],
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
        grad_strip.fill(isa, grad, &block);
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
                transform_pixels(
                    isa,
                    &strip,
                    channels,
                    pixels,
                    steps[0],
                    #[inline(always)]
                    |tile, channel| in_panel(width, tiles, tile, channel),
                )
            },
        );
        isa.enter(
            #[inline(always)]
            || {
                transform_gradients(
                    isa,
                    &grad_strip,
                    &outputs,
                    grads,
                    steps[1],
                    #[inline(always)]
                    |tile, channel| in_panel(width, tiles, tile, channel),
                )
            },
        );
        let places = pixels.chunks(steps[0]).zip(grads.chunks(steps[1]));
        let all_sums = sums.chunks_exact_mut(outputs.len() * channels);
        for ((pixels, grads), sums) in places.zip(all_sums) {
            for (i, pixels) in pixels[..lens[0]].chunks_exact(panel_len).enumerate() {
                let columns = (channels - i * width).min(width);
                for (j, grads) in grads[..lens[1]].chunks_exact(panel_len).enumerate() {
                    let sums = &mut sums[j * width * channels + i * width..];
                    let outputs = (outputs.len() - j * width).min(width);
                    multiply(isa, pixels, grads, outputs, sums, channels, columns);
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

/// `A·dy·Aᵀ` of every tile of a strip, for some channels.
#[inline(always)]
fn transform_gradients<I: Float>(
    isa: I,
    strip: &Strip,
    outputs: &Range<usize>,
    transformed: &mut [f32],
    place_step: usize,
    place_of: impl Fn(usize, usize) -> usize,
) {
    let Windows { columns, size: [.., pixel], .. } = *strip.windows();
    for row in 0..strip.len() {
        let lines = [0, 1].map(
            #[inline(always)]
            |u| &strip.values(row, [u, 0])[outputs.start..],
        );
        for x in 0..columns {
            for channel in (0..outputs.len()).step_by(I::LANES) {
                let places = transform::gradients(
                    isa,
                    #[inline(always)]
                    |u, v| isa.load(&lines[u][(x * STEP + v) * pixel + channel..]),
                );
                let start = place_of(row * columns + x, channel);
                for (place, value) in places.into_iter().enumerate() {
                    isa.store(&mut transformed[place * place_step + start..], value);
                }
            }
        }
    }
}

/// Adds `grads[tile][o]·pixels[tile][c]` of all tiles to `sums`, rows of which are `step` apart.
#[inline(always)]
fn multiply<I: Float>(
    isa: I,
    pixels: &[f32],
    grads: &[f32],
    outputs: usize,
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
                tile::<I, R, 1>(isa, pixels, grads, o, sums, step, columns));
        } else {
            with_rows!(isa, I::ROWS, count, R =>
                tile::<I, R, 2>(isa, pixels, grads, o, sums, step, columns));
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
        finish(isa, &acc[r], Onto::Output, &mut sums[r * step..][..columns]);
    }
}

/// Adds up the parts and makes the taps of one output channel, `[channel][tap]`.
#[inline(always)]
fn filter_gradients<I: Float>(
    isa: I,
    parts: &[&[f32]],
    channels: usize,
    output: usize,
    target: &mut [f32],
) {
    let outputs = parts[0].len() / (PLACES * channels);
    for first in (0..channels).step_by(I::LANES) {
        let lanes = (channels - first).min(I::LANES);
        let mut sums = [[0.0; 16]; PLACES];
        for part in parts {
            for (place, sums) in sums.iter_mut().enumerate() {
                let values = &part[(place * outputs + output) * channels + first..][..lanes];
                for (sum, value) in sums.iter_mut().zip(values) {
                    *sum += value;
                }
            }
        }
        let taps = transform::filter_gradient(
            isa,
            #[inline(always)]
            |place| isa.load(&sums[place]),
        );
        for (tap, value) in taps.into_iter().enumerate() {
            let mut values = [0.0; 16];
            isa.store(&mut values, value);
            let target = target[first * 9 + tap..].iter_mut().step_by(9);
            for (target, &value) in target.zip(&values[..lanes]) {
                *target = value;
            }
        }
    }
}
