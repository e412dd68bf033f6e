//! Packed weights.
//!
//! A panel holds a tile's width of output columns: `[run][step][column][GROUP]`, read once from
//! front to back while a tile of rows is multiplied. A run is a stretch of `k` that lies contiguous
//! in the image (the whole of `k` for a GEMM, a kernel row for a convolution), padded with zero
//! weights to whole groups, and to as many of them as are multiplied together. All panels have
//! `VECTORS · LANES` columns, the last as few vectors as hold what is left.

use std::marker::PhantomData;

use bytemuck::Pod;

use crate::parallel;
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
    /// Values of a group.
    group: usize,
    /// Steps of one run.
    pub(crate) steps: usize,
    /// Elements under one column, padding included.
    depth: usize,
    holds: PhantomData<fn() -> W>,
}

impl<W: Pod> Panels<W> {
    /// Room for `runs` runs of `len` values under each of `columns` columns, all zero.
    pub(crate) fn zeroed<P: Product<W = W>>(
        _product: P,
        columns: usize,
        runs: usize,
        len: usize,
    ) -> Self {
        let lanes = <P::Isa as Int8>::LANES;
        let steps = len.div_ceil(P::GROUP).next_multiple_of(P::STEPS);
        let depth = runs * steps * P::GROUP;
        let bytes = columns.next_multiple_of(lanes) * depth * size_of::<W>();
        Self {
            data: Storage::zeroed(bytes),
            columns,
            width: P::VECTORS * lanes,
            lanes,
            group: P::GROUP,
            steps,
            depth,
            holds: PhantomData,
        }
    }

    /// Packs runs of `len` values: `read(column, run, values)` fills `values`.
    pub(crate) fn pack<P: Product<W = W>>(
        product: P,
        columns: usize,
        runs: usize,
        len: usize,
        read: impl Fn(usize, usize, &mut [W]) + Sync,
    ) -> Self {
        let mut panels = Self::zeroed(product, columns, runs, len);
        let mut data = std::mem::replace(&mut panels.data, Storage::zeroed(0));
        let bytes = panels.width * panels.depth * size_of::<W>();
        parallel::for_each_chunk(data.as_mut_slice(), bytes, |index, panel| {
            let panel: &mut [W] = bytemuck::cast_slice_mut(panel);
            let (first, mut values) = (index * panels.width, vec![W::zeroed(); len]);
            for column in first..columns.min(first + panels.width) {
                for run in 0..runs {
                    read(column, run, &mut values);
                    let (start, stride) = panels.place(column, run, 0);
                    let out = &mut panel[start - first * panels.depth..];
                    let groups = values.chunks_exact(P::GROUP);
                    let (rest, tail) = (groups.remainder(), groups.len() * stride);
                    // A loop of a constant length: a copy of a slice would be a call for every four bytes.
                    for (out, group) in out.chunks_mut(stride).zip(groups) {
                        let out = &mut out[..P::GROUP];
                        (0..P::GROUP).for_each(|i| out[i] = group[i]);
                    }
                    if !rest.is_empty() {
                        out[tail..][..rest.len()].copy_from_slice(rest);
                    }
                }
            }
        });
        panels.data = data;
        panels
    }

    /// Where a group of values lies, and how far the next group of its column.
    fn place(&self, column: usize, run: usize, step: usize) -> (usize, usize) {
        let first = column / self.width * self.width;
        let stride = panel_width(self.columns - first, self.width, self.lanes) * self.group;
        let row = run * self.steps + step;
        (first * self.depth + row * stride + (column - first) * self.group, stride)
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

    /// Weights under one column, padding included.
    pub(crate) fn depth(&self) -> usize {
        self.depth
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
