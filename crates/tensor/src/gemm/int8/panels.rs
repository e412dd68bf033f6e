//! Packed weights.
//!
//! A panel holds a tile's width of output columns: `[run][step][column][GROUP]`, read once from
//! front to back while a tile of rows is multiplied. A run is a stretch of `k` that lies contiguous
//! in the image (the whole of `k` for a GEMM, a kernel row for a convolution), padded with zero
//! weights to whole groups. All panels have `VECTORS · LANES` columns, the last as few vectors as
//! hold what is left.

use std::marker::PhantomData;

use bytemuck::Pod;

use crate::simd::int8::{Int8, Product};
use crate::storage::Storage;

/// The weights of one matrix (of one group of a convolution), ready for `Product::step`.
pub(crate) struct Panels<W> {
    /// The weights, as bytes at a 64-byte boundary.
    data: Storage<u8>,
    /// Output columns.
    pub(crate) columns: usize,
    /// Columns of a full panel.
    pub(crate) width: usize,
    lanes: usize,
    /// Steps of one run.
    pub(crate) steps: usize,
    /// Elements under one column, padding included.
    depth: usize,
    holds: PhantomData<W>,
}

impl<W: Pod> Panels<W> {
    /// Packs `weight(column, run, i)` for `runs` runs of `len` values each.
    pub(crate) fn pack<P: Product<W = W>>(
        _product: P,
        columns: usize,
        runs: usize,
        len: usize,
        weight: impl Fn(usize, usize, usize) -> W,
    ) -> Self {
        let lanes = <P::Isa as Int8>::LANES;
        let width = P::VECTORS * lanes;
        let steps = len.div_ceil(P::GROUP);
        let depth = runs * steps * P::GROUP;
        let bytes = columns.next_multiple_of(lanes) * depth * size_of::<W>();
        let mut data = Storage::<u8>::zeroed(bytes);
        let out: &mut [W] = bytemuck::cast_slice_mut(data.as_mut_slice());
        for column in 0..columns {
            let first = column / width * width;
            let panel_width = panel_width(columns - first, width, lanes);
            for run in 0..runs {
                for i in 0..len {
                    let row = run * steps + i / P::GROUP;
                    let at = (row * panel_width + column % width) * P::GROUP + i % P::GROUP;
                    out[first * depth + at] = weight(column, run, i);
                }
            }
        }
        Self { data, columns, width, lanes, steps, depth, holds: PhantomData }
    }

    /// How many panels there are.
    pub(crate) fn count(&self) -> usize {
        self.columns.div_ceil(self.width)
    }

    /// The columns of panel `index`, padded to whole vectors.
    pub(crate) fn panel_width(&self, index: usize) -> usize {
        panel_width(self.columns - index * self.width, self.width, self.lanes)
    }

    /// The weights of panel `index`.
    pub(crate) fn panel(&self, index: usize) -> &[W] {
        let start = index * self.width * self.depth;
        let weights: &[W] = bytemuck::cast_slice(self.data.as_slice());
        &weights[start..start + self.panel_width(index) * self.depth]
    }

    /// Memory the panels take.
    pub(crate) fn bytes(&self) -> usize {
        self.data.as_slice().len()
    }
}

/// The width of a panel when `left` columns are left.
fn panel_width(left: usize, width: usize, lanes: usize) -> usize {
    left.min(width).next_multiple_of(lanes)
}
