//! The left operand: anything that can copy parts of its rows into a tile.

use std::ops::Range;

use super::tile::Row;
use crate::simd::f32::Float;

/// A left operand, read in tiles of rows.
pub(crate) trait Left: Sync {
    /// Copies the columns `depth` of `tile.len()` rows from `row` on to the start of each tile row.
    fn pack<I: Float>(&self, isa: I, row: usize, depth: Range<usize>, tile: &mut [Row]);

    /// The rows from `row` on and how far apart they are, if each lies in memory without gaps.
    fn in_place(&self, _row: usize) -> Option<(&[f32], usize)> {
        None
    }
}

/// A matrix in memory.
pub(crate) struct Matrix<'a> {
    /// From the first element on.
    pub(crate) data: &'a [f32],
    /// How far apart neighbours in a column and in a row are.
    pub(crate) strides: [usize; 2],
}

impl Left for Matrix<'_> {
    #[inline(always)]
    fn pack<I: Float>(&self, isa: I, row: usize, depth: Range<usize>, tile: &mut [Row]) {
        let [down, along] = self.strides;
        let start = row * down + depth.start * along;
        if along == 1 {
            for (r, target) in tile.iter_mut().enumerate() {
                let source = &self.data[start + r * down..][..depth.len()];
                copy(isa, source, &mut target[..depth.len()]);
            }
        } else {
            // Neighbours in a column are close, or nothing is: walk columns.
            for k in 0..depth.len() {
                for (r, target) in tile.iter_mut().enumerate() {
                    target[k] = self.data[start + k * along + r * down];
                }
            }
        }
    }

    #[inline(always)]
    fn in_place(&self, row: usize) -> Option<(&[f32], usize)> {
        let [down, along] = self.strides;
        (along == 1).then(|| (&self.data[row * down..], down))
    }
}

/// Copies as many values as there are, inline: runs are too short for a call of `memcpy`.
#[inline(always)]
pub(crate) fn copy<I: Float>(isa: I, source: &[f32], target: &mut [f32]) {
    debug_assert_eq!(source.len(), target.len());
    let len = source.len().min(target.len());
    if len < I::LANES {
        for (target, &value) in target.iter_mut().zip(source) {
            *target = value;
        }
        return;
    }
    let mut i = 0;
    while i + I::LANES <= len {
        isa.store(&mut target[i..], isa.load(&source[i..]));
        i += I::LANES;
    }
    // The last vector overlaps the one before it.
    let i = len - I::LANES;
    isa.store(&mut target[i..], isa.load(&source[i..]));
}
