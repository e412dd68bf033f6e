//! Packed weights.
//!
//! A panel holds a tile's width of output columns: `[run][step][column][GROUP]`, read once from
//! front to back while a tile of rows is multiplied; where several steps are multiplied together,
//! `[run][STEPS steps][vector][step][lane][GROUP]`. A run is a stretch of `k` that lies contiguous
//! in the image (the whole of `k` for a GEMM, a kernel row for a convolution), padded with zero
//! weights to whole groups, and to as many of them as are multiplied together, one at the least. All
//! panels have `VECTORS · LANES` columns, the last as few vectors as hold what is left.

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
    /// Elements of one run, as they were before they were padded to steps.
    pub(crate) len: usize,
    /// Steps of one run.
    pub(crate) steps: usize,
    /// Elements under one column, padding included.
    depth: usize,
    holds: PhantomData<fn() -> W>,
}

impl<W: Pod> Panels<W> {
    /// Room for `runs` runs of `len` values under each of `columns` columns, all zero.
    fn zeroed<P: Product<W = W>>(_product: P, columns: usize, runs: usize, len: usize) -> Self {
        let lanes = <P::Isa as Int8>::LANES;
        let steps = len.max(1).div_ceil(P::GROUP).next_multiple_of(P::STEPS);
        let depth = runs * steps * P::GROUP;
        let bytes = columns.next_multiple_of(lanes) * depth * size_of::<W>();
        Self {
            data: Storage::zeroed(bytes),
            columns,
            width: P::VECTORS * lanes,
            lanes,
            len,
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
            let first = index * panels.width;
            let filled = first..columns.min(first + panels.width);
            let width = panels.panel_width(index);
            // The groups under a column, those of a run: padded with zeros.
            let mut values = vec![W::zeroed(); filled.len() * panels.steps * P::GROUP];
            // Run by run: what all columns write of a run stays in an L1 cache.
            for (run, out) in panel.chunks_exact_mut(panel.len() / runs).enumerate() {
                let padded = values.chunks_exact_mut(panels.steps * P::GROUP);
                for (column, values) in filled.clone().zip(padded) {
                    read(column, run, &mut values[..len]);
                }
                let values: &[u8] = bytemuck::cast_slice(&values);
                match P::GROUP * size_of::<W>() {
                    1 => transpose::<P, [u8; 1]>(values, panels.steps, out, width),
                    2 => transpose::<P, [u8; 2]>(values, panels.steps, out, width),
                    4 => transpose::<P, [u8; 4]>(values, panels.steps, out, width),
                    8 => transpose::<P, [u8; 8]>(values, panels.steps, out, width),
                    bytes => unreachable!("a group of {bytes} bytes"),
                }
            }
        });
        panels.data = data;
        panels
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

/// `out[step][column] = values[column][step]` for rows of `width` columns, of which those that exist are
/// written; of [`Product::STEPS`] steps one vector after the other.
#[inline(always)]
fn transpose<P: Product, T: Pod>(values: &[u8], steps: usize, out: &mut [u8], width: usize) {
    let (values, out): (&[T], &mut [T]) =
        (bytemuck::cast_slice(values), bytemuck::cast_slice_mut(out));
    let lanes = <P::Isa as Int8>::LANES;
    // Of steps that stand alone a row is all vectors.
    let (row, steps_of_row) = if P::STEPS == 1 { (width, steps) } else { (lanes, P::STEPS) };
    for (column, values) in values.chunks_exact(steps).enumerate() {
        let (vector, lane) = (column / row, column % row);
        for (block, values) in values.chunks_exact(steps_of_row).enumerate() {
            let start = (block * width + vector * row) * steps_of_row + lane;
            // A distance that the compiler knows takes no instructions.
            let full = const { P::VECTORS * <P::Isa as Int8>::LANES };
            if row == full {
                spread(values, &mut out[start..], full);
            } else {
                spread(values, &mut out[start..], row);
            }
        }
    }
}

/// `out[distance·i] = values[i]`.
#[inline(always)]
fn spread<T: Pod>(values: &[T], out: &mut [T], distance: usize) {
    const MANY: usize = 8;
    let blocks = values.chunks_exact(MANY);
    let rest = blocks.remainder();
    for (i, values) in blocks.enumerate() {
        let out = &mut out[i * MANY * distance..][..(MANY - 1) * distance + 1];
        for (i, &value) in values.iter().enumerate() {
            out[i * distance] = value;
        }
    }
    for (i, &value) in (values.len() - rest.len()..).zip(rest) {
        out[i * distance] = value;
    }
}

/// The width of a panel when `left` columns are left.
fn panel_width(left: usize, width: usize, lanes: usize) -> usize {
    left.min(width).next_multiple_of(lanes)
}
