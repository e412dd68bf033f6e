//! Forward, and backward to the input.

use super::super::strip::Strip;
use super::{PLACES, REACH, STEP, Tiling, place_step, transform};
use crate::gemm::f32::{Onto, Panel, Panels, Strided, accumulate, finish, with_rows};
use crate::simd::f32::Float;
use crate::simd::f32::dispatch_f32;
use crate::storage::Storage;
use crate::{Level, parallel};

/// Floats of transformed tiles at a time: 256 KiB, half of a common L2 cache.
const BLOCK: usize = 1 << 16;

/// Tiles to use a panel of weights for, at the least and at the most.
const TILES: [usize; 2] = [64, 96];

/// Input channels of a panel that stay in the L1 cache beside a tile.
const DEPTH: usize = 256;

/// Multiply-accumulates of a task at the least.
const TASK_MACS: usize = 1 << 20;

/// The transformed weights of forward: for each panel of output channels, `[place][input channel]`.
pub(in super::super) fn forward_panels(level: Level, weight: &[f32], tiling: &Tiling) -> Panels {
    let channels = tiling.size[2];
    filters(level, tiling, |output, channel, tap| weight[(output * channels + channel) * 9 + tap])
}

/// The transformed weights of backward to the input: flipped, and outputs are what forward reads.
pub(in super::super) fn backward_panels(level: Level, weight: &[f32], tiling: &Tiling) -> Panels {
    let outputs = tiling.outputs;
    filters(level, tiling, |output, channel, tap| {
        weight[(channel * outputs + output) * 9 + 8 - tap]
    })
}

fn filters(
    level: Level,
    tiling: &Tiling,
    tap: impl Fn(usize, usize, usize) -> f32 + Copy + Sync + Send,
) -> Panels {
    let channels = tiling.size[2];
    Panels::pack(level, PLACES * channels, tiling.outputs, |panel, target| {
        dispatch_f32!(level, isa => fill(isa, panel, channels, tap, target));
    })
}

#[inline(always)]
fn fill<I: Float>(
    isa: I,
    Panel { start, columns, width }: Panel,
    channels: usize,
    tap: impl Fn(usize, usize, usize) -> f32,
    target: &mut [f32],
) {
    let mut taps = [[0.0; 64]; 9];
    for channel in 0..channels {
        for column in 0..columns {
            for (i, taps) in taps.iter_mut().enumerate() {
                taps[column] = tap(start + column, channel, i);
            }
        }
        for lane in (0..width).step_by(I::LANES) {
            let places = transform::filter(
                isa,
                #[inline(always)]
                |u, v| isa.load(&taps[u * 3 + v][lane..]),
            );
            for (place, value) in places.into_iter().enumerate() {
                isa.store(&mut target[(place * channels + channel) * width + lane..], value);
            }
        }
    }
}

/// Convolves all images into `out`, NHWC.
pub(in super::super) fn convolve(
    level: Level,
    images: &[f32],
    tiling: &Tiling,
    panels: &Panels,
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    let channels = tiling.size[2];
    let [fewest, most] = TILES;
    let tiles = (BLOCK / (PLACES * channels)).clamp(fewest, most);
    let block_rows = dispatch_f32!(level, isa => block_rows(isa, tiling, tiles));
    let row_macs = tiling.columns * PLACES * channels * tiling.outputs;
    let task_rows = (TASK_MACS / row_macs.max(1)).max(1).next_multiple_of(block_rows);

    let row_len = tiling.out_size[1] * tiling.outputs;
    let mut rest = out;
    let mut tasks = Vec::new();
    for first in (0..tiling.all_rows).step_by(task_rows) {
        let last = tiling.all_rows.min(first + task_rows);
        let rows = tiling.end_row(last) - tiling.out_row(first);
        let (task, later) = std::mem::take(&mut rest).split_at_mut(rows * row_len);
        tasks.push((first..last, task));
        rest = later;
    }
    parallel::for_each_item(tasks, |_, (rows, out)| {
        dispatch_f32!(level, isa =>
            convolve_rows(isa, images, tiling, panels, bias, rows, block_rows, out));
    });
}

#[inline(always)]
fn block_rows<I: Float>(_: I, tiling: &Tiling, tiles: usize) -> usize {
    tiling.block_rows(tiles, I::ROWS)
}

/// Convolves some rows of tiles.
#[inline(always)]
fn convolve_rows<I: Float>(
    isa: I,
    images: &[f32],
    tiling: &Tiling,
    panels: &Panels,
    bias: Option<&[f32]>,
    rows: std::ops::Range<usize>,
    block_rows: usize,
    out: &mut [f32],
) {
    let (channels, columns) = (tiling.size[2], tiling.columns);
    // Many channels a line further, so that tiles do not share their cache sets.
    let step = channels.next_multiple_of(I::LANES) + if channels >= 256 { 16 } else { 0 };
    let most_tiles = (block_rows * columns).next_multiple_of(I::ROWS);
    let mut transformed = Storage::<f32>::recycled(PLACES * place_step(most_tiles * step));
    let mut products = Storage::<f32>::recycled(PLACES * place_step(most_tiles * 2 * I::LANES));
    let mut strip = Strip::new(tiling.windows(), block_rows, I::LANES);
    let first_out_row = tiling.out_row(rows.start);

    for first in rows.clone().step_by(block_rows) {
        let block = Vec::from_iter((first..rows.end.min(first + block_rows)).map(
            #[inline(always)]
            |row| tiling.row(row),
        ));
        let tiles = (block.len() * columns).next_multiple_of(I::ROWS);
        strip.fill(isa, images, &block);
        let transformed = transformed.as_mut_slice();
        let products = products.as_mut_slice();
        isa.enter(
            #[inline(always)]
            || {
                transform_pixels(
                    isa,
                    &strip,
                    channels,
                    transformed,
                    place_step(tiles * step),
                    #[inline(always)]
                    |tile, channel| tile * step + channel,
                )
            },
        );
        for i in 0..panels.count() {
            let (panel, weights) = panels.get(i);
            let onto = bias.map_or(Onto::Nothing, |bias| Onto::Bias(&bias[panel.start..]));
            multiply(isa, transformed, tiles, step, channels, weights, panel.width, products);
            let to = Target { tiling, block: &block, first_out_row, panel };
            if panel.width == I::LANES {
                isa.enter(
                    #[inline(always)]
                    || finish_tiles::<I, 1>(isa, products, tiles, onto, &to, out),
                );
            } else {
                isa.enter(
                    #[inline(always)]
                    || finish_tiles::<I, 2>(isa, products, tiles, onto, &to, out),
                );
            }
        }
    }
}

/// `Bᵀ·d·B` of every tile of a strip: `place_of(tile, channel)` in each place, `place_step` apart.
#[inline(always)]
pub(super) fn transform_pixels<I: Float>(
    isa: I,
    strip: &Strip,
    channels: usize,
    transformed: &mut [f32],
    place_step: usize,
    place_of: impl Fn(usize, usize) -> usize,
) {
    let columns = strip.windows().columns;
    for row in 0..strip.len() {
        let lines = [0, 1, 2, 3].map(
            #[inline(always)]
            |u| strip.values(row, [u, 0]),
        );
        for x in 0..columns {
            for channel in (0..channels).step_by(I::LANES) {
                let places = transform::pixels(
                    isa,
                    #[inline(always)]
                    |u, v| isa.load(&lines[u][(x * STEP + v) * channels + channel..]),
                );
                let start = place_of(row * columns + x, channel);
                for (place, value) in places.into_iter().enumerate() {
                    isa.store(&mut transformed[place * place_step + start..], value);
                }
            }
        }
    }
}

/// For each place, all tiles by one panel.
#[inline(always)]
fn multiply<I: Float>(
    isa: I,
    transformed: &[f32],
    tiles: usize,
    step: usize,
    channels: usize,
    weights: &[f32],
    width: usize,
    products: &mut [f32],
) {
    let sources = transformed.chunks(place_step(tiles * step));
    let targets = products.chunks_mut(place_step(tiles * width));
    let depth_step = channels.div_ceil(channels.div_ceil(DEPTH));
    for ((source, target), weights) in
        sources.zip(targets).zip(weights.chunks_exact(channels * width))
    {
        let (source, target) = (&source[..tiles * step], &mut target[..tiles * width]);
        for first in (0..channels).step_by(depth_step) {
            let depth = first..channels.min(first + depth_step);
            if width == I::LANES {
                with_rows!(@ isa, I::ROWS, I::ROWS, R =>
                    multiply_tiles::<I, R, 1>(isa, source, step, depth, weights, target); 4 6 12 14);
            } else {
                with_rows!(@ isa, I::ROWS, I::ROWS, R =>
                    multiply_tiles::<I, R, 2>(isa, source, step, depth, weights, target); 4 6 12 14);
            }
        }
    }
}

#[inline(always)]
fn multiply_tiles<I: Float, const R: usize, const V: usize>(
    isa: I,
    source: &[f32],
    step: usize,
    depth: std::ops::Range<usize>,
    weights: &[f32],
    target: &mut [f32],
) {
    let width = V * I::LANES;
    let onto = if depth.start == 0 { Onto::Nothing } else { Onto::Output };
    let weights = &weights[depth.start * width..depth.end * width];
    for (rows, target) in source.chunks_exact(R * step).zip(target.chunks_exact_mut(R * width)) {
        let left = Strided::<R>::new(&rows[depth.start..], step, depth.len());
        let mut acc = [[isa.splat(0.0); V]; R];
        accumulate(
            isa,
            &mut acc,
            #[inline(always)]
            |r, k| left.at(r, k),
            weights.chunks_exact(width),
        );
        for r in 0..R {
            finish(isa, &acc[r], onto, &mut target[r * width..][..width]);
        }
    }
}

/// Where the results of a block go.
struct Target<'a> {
    tiling: &'a Tiling,
    /// Image and row of each row of tiles.
    block: &'a [(usize, usize)],
    /// The row that the output begins with, counted over all images.
    first_out_row: usize,
    panel: Panel,
}

/// `Aᵀ·m·A` of every tile, for one panel.
#[inline(always)]
fn finish_tiles<I: Float, const V: usize>(
    isa: I,
    products: &[f32],
    tiles: usize,
    onto: Onto,
    to: &Target,
    out: &mut [f32],
) {
    let Tiling { out_size: [height, width], outputs, columns, .. } = *to.tiling;
    let panel = to.panel;
    let place_step = place_step(tiles * V * I::LANES);
    for (i, &(image, row)) in to.block.iter().enumerate() {
        let out_row = image * height + row * STEP - to.first_out_row;
        let rows = STEP.min(height - row * STEP);
        for x in 0..columns {
            let tile = &products[(i * columns + x) * V * I::LANES..];
            let mut results = [[isa.splat(0.0); V]; STEP * STEP];
            for v in 0..V {
                let values = transform::results(
                    isa,
                    #[inline(always)]
                    |place| isa.load(&tile[place * place_step + v * I::LANES..]),
                );
                for (results, value) in results.iter_mut().zip(values) {
                    results[v] = value;
                }
            }
            let count = STEP.min(width - x * STEP);
            for (i, results) in results.iter().enumerate() {
                let (y, z) = (i / STEP, i % STEP);
                if y < rows && z < count {
                    let pixel = (out_row + y) * width + x * STEP + z;
                    finish(
                        isa,
                        results,
                        onto,
                        &mut out[pixel * outputs + panel.start..][..panel.columns],
                    );
                }
            }
        }
    }
}

const _: () = assert!(REACH == 4, "`transform_pixels` lists the rows of a tile");
