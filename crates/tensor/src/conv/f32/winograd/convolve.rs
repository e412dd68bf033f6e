//! Forward, and backward to the input.

use super::super::convolve::task_macs;
use super::super::images::Pixels;
use super::super::packed::Ending;
use super::super::strip::Strip;
use super::lines::Lines;
use super::transform::{self, both_sides};
use super::variant::{MOST_REACH, MOST_STEP, Variant};
use super::{Tiling, place_step, with_variant};
use crate::gemm::f32::{
    ASKED, Onto, Panel, Panels, Strided, WHOLE, Widest, accumulate_rows, finish, with_rows,
};
use crate::simd::f32::Float;
use crate::simd::f32::dispatch_f32;
use crate::storage::Storage;
use crate::{Level, parallel};

/// Floats of transformed tiles at a time: 256 KiB, half of a common L2 cache.
const BLOCK: usize = 1 << 16;

/// Tiles to use a panel of weights for, at the most.
const TILES: usize = 96;

/// How many rows register tiles may have: those that [`multiply`] compiles.
const REGISTER_ROWS: [usize; 6] = [14, 12, 10, 8, 6, 4];

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
    with_variant!(tiling.tile, W => {
        Panels::pack(level, Widest::Two, W::PLACES * channels, tiling.outputs, |panel, target| {
            dispatch_f32!(level, isa => fill::<_, W>(isa, panel, channels, tap, target));
        })
    })
}

#[inline(always)]
fn fill<I: Float, W: Variant>(
    isa: I,
    Panel { start, columns, width }: Panel,
    channels: usize,
    tap: impl Fn(usize, usize, usize) -> f32,
    target: &mut [f32],
) {
    let mut taps = [[0.0; 64]; 9];
    let mut between = [[isa.splat(0.0); 3]; MOST_REACH];
    for channel in 0..channels {
        for column in 0..columns {
            for (i, taps) in taps.iter_mut().enumerate() {
                taps[column] = tap(start + column, channel, i);
            }
        }
        for lane in (0..width).step_by(I::LANES) {
            both_sides(
                isa,
                [3, W::REACH],
                &mut between,
                #[inline(always)]
                |u, v| isa.load(&taps[u * 3 + v][lane..]),
                #[inline(always)]
                |line| W::filter(isa, line),
                #[inline(always)]
                |u, v, value| {
                    let place = u * W::REACH + v;
                    isa.store(&mut target[(place * channels + channel) * width + lane..], value);
                },
            );
        }
    }
}

/// Convolves all images into `out`, NHWC; `ending` completes each task's results.
pub(in super::super) fn convolve(
    level: Level,
    images: &[f32],
    tiling: &Tiling,
    panels: &Panels,
    bias: Option<&[f32]>,
    ending: &Ending<'_>,
    out: &mut [f32],
) {
    let channels = tiling.size[2];
    let (places, fewest) = with_variant!(tiling.tile, W => (W::PLACES, W::TILES));
    let tiles = (BLOCK / (places * channels)).clamp(fewest, TILES);
    let cost = |tiles| dispatch_f32!(level, isa => register_rows(isa, tiles))[1];
    let block_rows = tiling.block_rows(tiles, cost);
    let row_macs = tiling.columns * places * channels * tiling.outputs;
    let macs = task_macs(tiling.all_rows.saturating_mul(row_macs));
    let task_rows = (macs / row_macs.max(1)).max(1).next_multiple_of(block_rows);

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
        let start = tiling.out_row(rows.start) * row_len;
        with_variant!(tiling.tile, W => dispatch_f32!(level, isa =>
            convolve_rows::<_, W>(isa, images, tiling, panels, bias, rows, block_rows, out)));
        ending.complete(level, start, out);
    });
}

/// How many rows the register tiles have that multiply so many tiles in the shortest time, and that time: few
/// tiles lost to make them a multiple, and few register tiles.
#[inline(always)]
fn register_rows<I: Float>(_: I, tiles: usize) -> [usize; 2] {
    // What a register tile takes beside its rows: loading a panel, storing sums.
    const BESIDE: usize = 2;
    let time = |rows: usize| tiles.div_ceil(rows) * (rows + BESIDE);
    let rows = REGISTER_ROWS.into_iter().filter(|&rows| rows <= I::ROWS);
    rows.map(|rows| [rows, time(rows)]).min_by_key(|&[_, time]| time).expect("four fit anywhere")
}

/// Convolves some rows of tiles.
#[inline(always)]
fn convolve_rows<I: Float, W: Variant>(
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
    // `[place][vector of channels][tile][channel]`: what a register tile reads at a time is one run of memory,
    // and its rows are a known distance apart.
    let vectors = channels.div_ceil(I::LANES);
    let most_tiles = block_rows * columns + I::ROWS;
    let mut transformed =
        Storage::<f32>::recycled(W::PLACES * place_step(most_tiles * vectors * I::LANES));
    let mut products = Storage::<f32>::recycled(W::PLACES * place_step(most_tiles * 2 * I::LANES));
    let mut strip = Strip::new(tiling.windows(), block_rows, I::LANES);
    let first_out_row = tiling.out_row(rows.start);
    let forgets = panels.bytes() / size_of::<f32>() > WHOLE;

    for first in rows.clone().step_by(block_rows) {
        let block = Vec::from_iter((first..rows.end.min(first + block_rows)).map(
            #[inline(always)]
            |row| tiling.row(row),
        ));
        let tiles = block.len() * columns;
        let [register_rows, _] = register_rows(isa, tiles);
        let tiles = tiles.next_multiple_of(register_rows);
        strip.fill(isa, Pixels::Floats(images), &block);
        let transformed = transformed.as_mut_slice();
        let products = products.as_mut_slice();
        isa.enter(
            #[inline(always)]
            || {
                let len = vectors * tiles * I::LANES;
                transform::tiles::<I, W, MOST_REACH>(
                    isa,
                    &strip,
                    0..channels,
                    W::REACH,
                    #[inline(always)]
                    |line| W::pixels(isa, line),
                    &mut Lines::new(transformed, place_step(len), W::PLACES, len),
                    #[inline(always)]
                    |tile, channel| (channel / I::LANES * tiles + tile) * I::LANES,
                )
            },
        );
        for i in 0..panels.count() {
            let (panel, weights) = panels.get(i);
            let next = if i + 1 < panels.count() { panels.get(i + 1).1 } else { &[] };
            multiply::<I, W>(
                isa,
                transformed,
                [tiles, register_rows],
                channels,
                panel.width,
                weights,
                forgets.then_some(next),
                products,
            );
            let to = Target { tiling, block: &block, first_out_row, panel };
            isa.enter(
                #[inline(always)]
                || finish_tiles::<I, W>(isa, products, tiles, bias, &to, out),
            );
        }
    }
}

/// For each place, all tiles by one panel. While the weights of a step are multiplied, those of the next step are asked
/// for, the first ones of the `next` panel at the end; not if there is none, since the cache has them.
#[inline(always)]
fn multiply<I: Float, W: Variant>(
    isa: I,
    transformed: &[f32],
    [tiles, rows]: [usize; 2],
    channels: usize,
    width: usize,
    weights: &[f32],
    next: Option<&[f32]>,
    products: &mut [f32],
) {
    let len = channels.next_multiple_of(I::LANES) * tiles;
    let sources = transformed.chunks(place_step(len));
    let targets = products.chunks_mut(place_step(tiles * width));
    let depth_step = channels.div_ceil(channels.div_ceil(W::DEPTH)).next_multiple_of(I::LANES);
    for (place, (source, target)) in sources.zip(targets).enumerate().take(W::PLACES) {
        let (source, target) = (&source[..len], &mut target[..tiles * width]);
        for first in (0..channels).step_by(depth_step) {
            let depth = first..channels.min(first + depth_step);
            let at = (place * channels + first) * width;
            let (now, behind) = weights[at..].split_at(depth.len() * width);
            let coming = next.map_or(&[][..], |next| if behind.is_empty() { next } else { behind });
            let coming = &coming[..coming.len().min(now.len())];
            if width == I::LANES {
                with_rows!(@ isa, I::ROWS, rows, R =>
                    multiply_tiles::<I, R, 1>(isa, source, tiles, depth, now, coming, target); 4 6 8 10 12 14);
            } else {
                with_rows!(@ isa, I::ROWS, rows, R =>
                    multiply_tiles::<I, R, 2>(isa, source, tiles, depth, now, coming, target); 4 6 8 10 12 14);
            }
        }
    }
}

#[inline(always)]
fn multiply_tiles<I: Float, const R: usize, const V: usize>(
    isa: I,
    source: &[f32],
    tiles: usize,
    depth: std::ops::Range<usize>,
    weights: &[f32],
    coming: &[f32],
    target: &mut [f32],
) {
    let width = V * I::LANES;
    let onto = if depth.start == 0 { Onto::Nothing } else { Onto::Output };
    // Each tile asks for its share of what comes, a little every few steps: many at once would wait for each other.
    let times = tiles / R * depth.len().div_ceil(I::LANES);
    let share = coming.len().div_ceil(times).next_multiple_of(ASKED);
    let mut coming = coming.chunks(share.max(1));
    for (i, target) in target.chunks_exact_mut(R * width).enumerate() {
        let mut acc = [[isa.splat(0.0); V]; R];
        let rows = &source[i * R * I::LANES..];
        // Almost always all are whole, and how many channels those have is known to the compiler.
        let whole = depth.end - depth.len() % I::LANES;
        for first in (depth.start..whole).step_by(I::LANES) {
            let weights = &weights[(first - depth.start) * width..][..I::LANES * width];
            let asked = coming.next().unwrap_or_default();
            add_channels(isa, &mut acc, &rows[first * tiles..], I::LANES, weights, asked);
        }
        if whole < depth.end {
            let weights = &weights[(whole - depth.start) * width..];
            let asked = coming.next().unwrap_or_default();
            add_channels(isa, &mut acc, &rows[whole * tiles..], depth.end - whole, weights, asked);
        }
        for r in 0..R {
            finish(isa, &acc[r], onto, &mut target[r * width..][..width]);
        }
    }
}

/// Adds the products of a vector of channels, or of what is left of one, and asks for weights that come later.
#[inline(always)]
fn add_channels<I: Float, const R: usize, const V: usize>(
    isa: I,
    acc: &mut [[I::Vector; V]; R],
    rows: &[f32],
    channels: usize,
    weights: &[f32],
    coming: &[f32],
) {
    for lines in coming.chunks(ASKED) {
        isa.prefetch_outer(lines, 0);
    }
    accumulate_rows(
        isa,
        acc,
        &Strided::new(rows, I::LANES, channels),
        weights,
        #[inline(always)]
        |row| {
            if I::AHEAD > 0 {
                isa.prefetch(row, I::AHEAD);
            }
        },
    );
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
fn finish_tiles<I: Float, W: Variant>(
    isa: I,
    products: &[f32],
    tiles: usize,
    bias: Option<&[f32]>,
    to: &Target,
    out: &mut [f32],
) {
    let Tiling { out_size: [height, width], outputs, columns, .. } = *to.tiling;
    let Panel { start, columns: exist, width: panel_width } = to.panel;
    let len = tiles * panel_width;
    let products = Lines::new(products, place_step(len), W::PLACES, len);
    let mut between = [[isa.splat(0.0); MOST_REACH]; MOST_STEP];
    for lane in (0..exist).step_by(I::LANES) {
        let lanes = I::LANES.min(exist - lane);
        let mut added = [0.0; 64];
        if let Some(bias) = bias {
            added[..lanes].copy_from_slice(&bias[start + lane..][..lanes]);
        }
        let added = isa.load(&added);
        for (i, &(image, row)) in to.block.iter().enumerate() {
            let out_row = image * height + row * W::STEP - to.first_out_row;
            let rows = W::STEP.min(height - row * W::STEP);
            for x in 0..columns {
                let count = W::STEP.min(width - x * W::STEP);
                let first = (out_row * width + x * W::STEP) * outputs + start + lane;
                let whole = rows == W::STEP && count == W::STEP && lanes == I::LANES;
                let at = (i * columns + x) * panel_width + lane;
                both_sides(
                    isa,
                    [W::REACH, W::STEP],
                    &mut between,
                    #[inline(always)]
                    |u, v| products.load(isa, u * W::REACH + v, at),
                    #[inline(always)]
                    |line| W::results(isa, line),
                    #[inline(always)]
                    |y, z, value| {
                        let value = isa.add(value, added);
                        let first = first + (y * width + z) * outputs;
                        if whole {
                            isa.store(&mut out[first..], value);
                        } else if y < rows && z < count {
                            finish(isa, &[value], Onto::Nothing, &mut out[first..first + lanes]);
                        }
                    },
                );
            }
        }
    }
}
