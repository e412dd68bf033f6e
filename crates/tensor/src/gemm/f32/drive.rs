//! The blocking loops, once for all operands and instruction sets.

use std::ops::Range;

use super::left::Left;
use super::panels::{Panel, Panels};
use super::tile::{DEPTH, Onto, Row, multiply_in_place, multiply_packed, next_rows};
use crate::simd::f32::{Float, MAX_ROWS};

/// Rows of the left operand packed at a time: `168·528·4` bytes, a part of every L2 cache.
const BLOCK_ROWS: usize = 168;

/// Values of the right operand that stay in an L2 cache while all tiles of a block go by.
const GROUP: usize = 96 << 10;

/// Values of a right operand that is read whole for every tile of rows that lie in place.
const WHOLE: usize = 256 << 10;

/// Whether rows `step` values apart can be read together: near a multiple of 4 KiB they share the
/// sets of an L1 cache and displace each other.
fn lie_well(step: usize) -> bool {
    const SETS: usize = 4096 / size_of::<f32>();
    let off = step % SETS;
    off.min(SETS - off) >= SETS / 32
}

/// `out = left[rows] · panels (+ bias)`, for the panels of the range.
///
/// Row `i` of the range and column `j` of the first panel land at `out[place(i) + j]`. A left operand
/// that lies in place must go to evenly spaced places. Either way an element is summed in one order:
/// blocks of the depth one after the other, each from zero on.
#[inline(always)]
pub(crate) fn multiply<I: Float, L: Left>(
    isa: I,
    left: &L,
    rows: Range<usize>,
    right: &Panels,
    panels: Range<usize>,
    bias: Option<&[f32]>,
    out: &mut [f32],
    place: impl Fn(usize) -> usize,
) {
    if rows.is_empty() || panels.is_empty() {
        return;
    }
    let first_column = right.get(panels.start).0.start;
    let depth_blocks = right.depth().div_ceil(DEPTH).max(1);
    let depth_step = right.depth().div_ceil(depth_blocks).max(1);
    let onto = |depth_block: usize, panel: Panel| match (depth_block, bias) {
        (0, Some(bias)) => Onto::Bias(&bias[panel.start..]),
        (0, None) => Onto::Nothing,
        _ => Onto::Output,
    };
    let few = panels.len() <= 2;
    if let Some((data, step)) = left.in_place(rows.start)
        && (few || panels.len() * 2 * I::LANES * right.depth() <= WHOLE && lie_well(step))
    {
        let pitch = place(1) - place(0);
        for depth_block in 0..depth_blocks {
            let depth = depth_block * depth_step..right.depth().min((depth_block + 1) * depth_step);
            let mut row = 0;
            while row < rows.len() {
                let count = next_rows(rows.len() - row, I::ROWS);
                // A panel or two are done before the next rows have come by themselves.
                let ahead = if few { count * step } else { 0 };
                let data = &data[row * step + depth.start..];
                for i in panels.clone() {
                    let (panel, weights) = right.get(i);
                    let weights = &weights[depth.start * panel.width..depth.end * panel.width];
                    let out = &mut out[place(row) + panel.start - first_column..];
                    let (onto, width, columns) =
                        (onto(depth_block, panel), panel.width, panel.columns);
                    multiply_in_place(
                        isa, data, step, ahead, count, weights, width, onto, out, pitch, columns,
                    );
                }
                row += count;
            }
        }
        return;
    }

    let tile_rows = tile_rows(rows.len(), I::ROWS);
    let tiles = rows.len().div_ceil(tile_rows);
    // Few panels stay in L1 beside one tile; many are worth a block of tiles each.
    let block_tiles = if few { 1 } else { (BLOCK_ROWS / tile_rows).min(tiles) };
    let mut block = vec![[0.0; size_of::<Row>() / 4]; block_tiles * I::ROWS];
    let group = (GROUP / (2 * I::LANES * depth_step)).max(1);

    for depth_block in 0..depth_blocks {
        let depth = depth_block * depth_step..right.depth().min((depth_block + 1) * depth_step);
        for first_tile in (0..tiles).step_by(block_tiles) {
            let tiles = first_tile..tiles.min(first_tile + block_tiles);
            for (packed, i) in block.chunks_exact_mut(I::ROWS).zip(tiles.clone()) {
                let tile = tile_range(i, tile_rows, rows.len());
                left.pack(isa, rows.start + tile.start, depth.clone(), &mut packed[..tile.len()]);
            }
            for first_panel in panels.clone().step_by(group) {
                let panels = first_panel..panels.end.min(first_panel + group);
                for (packed, i) in block.chunks_exact(I::ROWS).zip(tiles.clone()) {
                    let tile = tile_range(i, tile_rows, rows.len());
                    let mut places = [0; MAX_ROWS];
                    for (target, row) in places.iter_mut().zip(tile.clone()) {
                        *target = place(row);
                    }
                    let places = &places[..tile.len()];
                    for i in panels.clone() {
                        let (panel, data) = right.get(i);
                        let data = &data[depth.start * panel.width..depth.end * panel.width];
                        let out = &mut out[panel.start - first_column..];
                        let (onto, width, columns) =
                            (onto(depth_block, panel), panel.width, panel.columns);
                        multiply_packed(isa, packed, data, width, onto, out, places, columns);
                    }
                }
            }
        }
    }
}

/// Rows of about equal tiles of at most `most` rows, as [`with_rows`](super::tile::with_rows) compiles
/// them: 25 rows are 5·5, not 4·6 + 1, and no tile computes rows that are not there but the last.
#[inline(always)]
fn tile_rows(rows: usize, most: usize) -> usize {
    let even = rows.div_ceil(rows.div_ceil(most));
    if even > 8 { even.next_multiple_of(2).min(most) } else { even }
}

/// The rows of tile `i`; the last tile may be short.
#[inline(always)]
fn tile_range(i: usize, tile_rows: usize, rows: usize) -> Range<usize> {
    let start = i * tile_rows;
    start..rows.min(start + tile_rows)
}
