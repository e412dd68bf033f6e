//! The blocking loops, once for all operands and instruction sets.

use std::ops::Range;

use super::left::Left;
use super::panels::Panels;
use super::tile::{DEPTH, Onto, Row, multiply_in_place, multiply_packed, next_rows};
use crate::simd::f32::{Float, MAX_ROWS};

/// Rows of the left operand packed at a time: `168·400·4` bytes, a part of every L2 cache.
const BLOCK_ROWS: usize = 168;

/// `out = left[rows] · panels (+ bias)`, for the panels of the range.
///
/// Row `i` of the range and column `j` of the first panel land at `out[place(i) + j]`. A left operand
/// that lies in place must go to evenly spaced places; for two panels it is not worth packing.
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
    if let Some((data, step)) = left.in_place(rows.start)
        && panels.len() <= 2
    {
        let pitch = place(1) - place(0);
        let mut row = 0;
        while row < rows.len() {
            let count = next_rows(rows.len() - row, I::ROWS);
            for i in panels.clone() {
                let (panel, weights) = right.get(i);
                let onto = bias.map_or(Onto::Nothing, |bias| Onto::Bias(&bias[panel.start..]));
                let out = &mut out[place(row) + panel.start - first_column..];
                let (data, width, columns) = (&data[row * step..], panel.width, panel.columns);
                multiply_in_place(
                    isa, data, step, count, weights, width, onto, out, pitch, columns,
                );
            }
            row += count;
        }
        return;
    }

    // Even tiles: 25 rows are 5·5, not 4·6 + 1.
    let tiles = rows.len().div_ceil(I::ROWS);
    let tile_rows = rows.len().div_ceil(tiles);
    // Few panels stay in L1 beside one tile; many are worth a block of tiles each.
    let block_tiles = if panels.len() <= 2 { 1 } else { (BLOCK_ROWS / tile_rows).min(tiles) };
    let mut block = vec![[0.0; size_of::<Row>() / 4]; block_tiles * I::ROWS];
    let depth_blocks = right.depth().div_ceil(DEPTH).max(1);
    let depth_step = right.depth().div_ceil(depth_blocks).max(1);

    for depth_block in 0..depth_blocks {
        let depth = depth_block * depth_step..right.depth().min((depth_block + 1) * depth_step);
        for first_tile in (0..tiles).step_by(block_tiles) {
            let tiles = first_tile..tiles.min(first_tile + block_tiles);
            for (packed, i) in block.chunks_exact_mut(I::ROWS).zip(tiles.clone()) {
                let tile = tile_range(i, tile_rows, rows.len());
                left.pack(isa, rows.start + tile.start, depth.clone(), &mut packed[..tile.len()]);
            }
            for i in panels.clone() {
                let (panel, data) = right.get(i);
                let data = &data[depth.start * panel.width..depth.end * panel.width];
                let column = panel.start - first_column;
                let onto = match (depth_block, bias) {
                    (0, Some(bias)) => Onto::Bias(&bias[panel.start..]),
                    (0, None) => Onto::Nothing,
                    _ => Onto::Output,
                };
                for (packed, i) in block.chunks_exact(I::ROWS).zip(tiles.clone()) {
                    let tile = tile_range(i, tile_rows, rows.len());
                    let mut places = [0; MAX_ROWS];
                    for (target, row) in places.iter_mut().zip(tile.clone()) {
                        *target = place(row) + column;
                    }
                    let places = &places[..tile.len()];
                    let (width, columns) = (panel.width, panel.columns);
                    multiply_packed(isa, packed, data, width, onto, out, places, columns);
                }
            }
        }
    }
}

/// The rows of tile `i`; the last tiles may be short, or empty.
#[inline(always)]
fn tile_range(i: usize, tile_rows: usize, rows: usize) -> Range<usize> {
    let start = (i * tile_rows).min(rows);
    start..rows.min(start + tile_rows)
}
