//! The right operand, packed whole before anything is multiplied.

use crate::simd::f32::Float;
use crate::simd::f32::dispatch_f32;
use crate::storage::Storage;
use crate::{Level, Tensor, parallel};

/// A `[depth, columns]` matrix in panels of `widest` columns, a power of two of vectors, and narrower ones for
/// the rest, each half as wide as the one before or narrower: each panel holds its part of row 0, of
/// row 1, … Columns that do not exist are zero.
pub(crate) struct Panels {
    data: Storage<f32>,
    depth: usize,
    shape: Shape,
}

/// How wide panels are at the most.
#[derive(Clone, Copy)]
pub(crate) enum Widest {
    /// As wide as the widest tile of the instruction set.
    Any,
    /// Two vectors.
    Two,
}

/// One panel: where its columns start, how many exist, how wide it is stored.
#[derive(Clone, Copy)]
pub(crate) struct Panel {
    pub(crate) start: usize,
    pub(crate) columns: usize,
    pub(crate) width: usize,
}

impl Panels {
    /// Columns that the last panel has beyond the matrix, at most: less than a vector.
    pub(crate) const SLACK: usize = 16;

    /// Packs a matrix whose rows are contiguous: `row(k)` starts with `columns` values.
    pub(crate) fn from_rows<'a>(
        level: Level,
        depth: usize,
        columns: usize,
        row: impl Fn(usize) -> &'a [f32] + Sync + Send,
    ) -> Self {
        Self::pack(level, Widest::Any, depth, columns, |panel, target| {
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
        Self::pack(level, Widest::Any, depth, columns, |panel, target| {
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
        widest: Widest,
        depth: usize,
        columns: usize,
        fill: impl Fn(Panel, &mut [f32]) + Sync + Send,
    ) -> Self {
        let [lanes, most] = dispatch_f32!(level, isa => vectors(isa));
        let widest = match widest {
            Widest::Any => most * lanes,
            Widest::Two => 2 * lanes,
        };
        let shape = Shape::new(columns, widest, lanes);
        let mut data = Storage::recycled(depth * columns.next_multiple_of(lanes));
        let mut rest = data.as_mut_slice();
        let tasks = Vec::from_iter((0..shape.count()).map(|i| {
            let panel = shape.panel(i);
            let (target, later) = std::mem::take(&mut rest).split_at_mut(panel.width * depth);
            rest = later;
            (panel, target)
        }));
        parallel::for_each_item(tasks, |_, (panel, target)| {
            if panel.columns < panel.width {
                target.fill(0.0);
            }
            dispatch_f32!(level, _isa => fill(panel, target));
        });
        Self { data, depth, shape }
    }

    /// Rows of the matrix.
    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    /// Columns of the matrix.
    pub(crate) fn columns(&self) -> usize {
        self.shape.columns
    }

    /// How many panels there are.
    pub(crate) fn count(&self) -> usize {
        self.shape.count()
    }

    /// Memory it takes.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(self.data.as_slice())
    }

    /// Panel `i`, and its packed rows.
    #[inline]
    pub(crate) fn get(&self, i: usize) -> (Panel, &[f32]) {
        let panel = self.shape.panel(i);
        (panel, &self.data.as_slice()[panel.start * self.depth..][..panel.width * self.depth])
    }
}

/// How columns are divided: into panels of `widest`, and behind them one for each bit of the number of vectors
/// that are left, the widest first.
#[derive(Clone, Copy)]
struct Shape {
    columns: usize,
    widest: usize,
    lanes: usize,
    /// Panels of full width.
    full: usize,
    /// Vectors behind them.
    rest: usize,
}

impl Shape {
    fn new(columns: usize, widest: usize, lanes: usize) -> Self {
        let (vectors, widest_vectors) = (columns.div_ceil(lanes), widest / lanes);
        let (full, rest) = (vectors / widest_vectors, vectors % widest_vectors);
        Self { columns, widest, lanes, full, rest }
    }

    fn count(self) -> usize {
        self.full + self.rest.count_ones() as usize
    }

    #[inline]
    fn panel(self, i: usize) -> Panel {
        let (mut start, mut width) = (i * self.widest, self.widest);
        if i >= self.full {
            start = self.full * self.widest;
            let mut rest = self.rest;
            for _ in self.full..i {
                start += (1 << rest.ilog2()) * self.lanes;
                rest -= 1 << rest.ilog2();
            }
            width = (1 << rest.ilog2()) * self.lanes;
        }
        Panel { start, columns: (self.columns - start).min(width), width }
    }
}

/// Values of a vector, and vectors of the widest tile.
#[inline(always)]
fn vectors<I: Float>(_: I) -> [usize; 2] {
    [I::LANES, if I::WIDE_ROWS > 0 { 4 } else { 2 }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_cover_each_column_once() {
        let lanes = 4;
        for widest in [2 * lanes, 4 * lanes] {
            for columns in 0..70 {
                let shape = Shape::new(columns, widest, lanes);
                let mut next = 0;
                for i in 0..shape.count() {
                    let panel = shape.panel(i);
                    assert_eq!(panel.start, next);
                    assert!(panel.width - panel.columns < lanes, "a vector in vain");
                    assert!(panel.width == widest || i + 3 > shape.count());
                    next += panel.columns;
                }
                assert_eq!(next, columns);
            }
        }
    }
}
