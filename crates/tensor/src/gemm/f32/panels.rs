//! The right operand, packed whole before anything is multiplied.

use crate::simd::f32::Float;
use crate::simd::f32::dispatch_f32;
use crate::storage::Storage;
use crate::{Level, Tensor, parallel};

/// A `[depth, columns]` matrix in panels of two vectors' width, the last one of one vector if
/// that is enough: each panel holds its part of row 0, of row 1, … A panel is a multiple of the
/// vector wide; columns that do not exist are zero.
pub(crate) struct Panels {
    data: Storage<f32>,
    depth: usize,
    columns: usize,
    lanes: usize,
}

/// One panel: where its columns start, how many exist, how wide it is stored.
#[derive(Clone, Copy)]
pub(crate) struct Panel {
    pub(crate) start: usize,
    pub(crate) columns: usize,
    pub(crate) width: usize,
}

impl Panels {
    /// Packs a matrix whose rows are contiguous: `row(k)` starts with `columns` values.
    pub(crate) fn from_rows<'a>(
        level: Level,
        depth: usize,
        columns: usize,
        row: impl Fn(usize) -> &'a [f32] + Sync + Send,
    ) -> Self {
        Self::pack(level, depth, columns, |panel, target| {
            let Panel { start, columns, width } = panel;
            for (k, target) in target.chunks_exact_mut(width).enumerate() {
                target[..columns].copy_from_slice(&row(k)[start..start + columns]);
            }
        })
    }

    /// Packs a matrix whose columns are contiguous: `column(j)` starts with `depth` values.
    pub(crate) fn from_columns<'a>(
        level: Level,
        depth: usize,
        columns: usize,
        column: impl Fn(usize) -> &'a [f32] + Sync + Send,
    ) -> Self {
        // A cache line of each column at a time: the lines written stay in the cache meanwhile.
        const RUN: usize = 16;
        Self::pack(level, depth, columns, |panel, target| {
            let Panel { start, columns, width } = panel;
            for (block, target) in target.chunks_mut(RUN * width).enumerate() {
                for j in 0..columns {
                    let source = &column(start + j)[block * RUN..depth.min((block + 1) * RUN)];
                    for (target, &value) in target[j..].iter_mut().step_by(width).zip(source) {
                        *target = value;
                    }
                }
            }
        })
    }

    /// Packs a matrix of any strides.
    pub(crate) fn from_matrix(level: Level, matrix: &Tensor<f32>) -> Self {
        let &[depth, columns] = matrix.shape() else {
            unreachable!("callers have checked the rank");
        };
        let &[down, along] = matrix.strides() else {
            unreachable!("callers have checked the rank");
        };
        if along == 1 || columns <= 1 {
            let data = matrix.memory();
            Self::from_rows(level, depth, columns, |k| &data[k * down..])
        } else if down == 1 || depth <= 1 {
            let data = matrix.memory();
            Self::from_columns(level, depth, columns, |j| &data[j * along..])
        } else {
            Self::from_matrix(level, &matrix.contiguous())
        }
    }

    /// Packs whatever `fill` writes: each panel's existing columns, row after row of its width.
    pub(crate) fn pack(
        level: Level,
        depth: usize,
        columns: usize,
        fill: impl Fn(Panel, &mut [f32]) + Sync + Send,
    ) -> Self {
        let lanes = dispatch_f32!(level, isa => lanes(isa));
        let mut data = Storage::recycled(depth * columns.next_multiple_of(lanes));
        let full = depth * 2 * lanes;
        parallel::for_each_chunk(data.as_mut_slice(), full.max(1), |i, target| {
            let panel = Self::panel(i, columns, lanes);
            if panel.columns < panel.width {
                target.fill(0.0);
            }
            dispatch_f32!(level, _isa => fill(panel, target));
        });
        Self { data, depth, columns, lanes }
    }

    fn panel(i: usize, columns: usize, lanes: usize) -> Panel {
        let start = i * 2 * lanes;
        let columns = (columns - start).min(2 * lanes);
        Panel { start, columns, width: columns.next_multiple_of(lanes) }
    }

    /// Rows of the matrix.
    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    /// Columns of the matrix.
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// How many panels there are.
    pub(crate) fn count(&self) -> usize {
        self.columns.div_ceil(2 * self.lanes)
    }

    /// Panel `i`, and its packed rows.
    pub(crate) fn get(&self, i: usize) -> (Panel, &[f32]) {
        let panel = Self::panel(i, self.columns, self.lanes);
        (panel, &self.data.as_slice()[panel.start * self.depth..][..panel.width * self.depth])
    }
}

#[inline(always)]
fn lanes<I: Float>(_: I) -> usize {
    I::LANES
}
