//! Blocks of rows, panels of columns: the loops around the tile, once for every instruction set.

use std::ops::Range;

use super::epilogue::{Epilogue, MAX_LANES};
use super::panels::Panels;
use super::tile::{Copies, Place, Strip};
use crate::parallel;
use crate::simd::int8::{Int8, Product};

/// Where the rows of a product lie in the image: pixels of rows of images, each at its stride.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowMap {
    /// Rows of the product (output pixels) in an image row.
    pub(crate) width: usize,
    /// Image rows in an image.
    pub(crate) height: usize,
    /// Elements from a pixel to the next.
    pub(crate) pixel: usize,
    /// Elements from an image row to the next.
    pub(crate) row: usize,
    /// Elements from an image to the next.
    pub(crate) image: usize,
    /// Elements before the first pixel.
    pub(crate) start: usize,
}

impl RowMap {
    /// The rows of a plain matrix.
    pub(crate) fn matrix(stride: usize) -> Self {
        Self { width: usize::MAX, height: 1, pixel: stride, row: 0, image: 0, start: 0 }
    }

    /// The same places in as few stretches as they are.
    fn joined(self) -> Self {
        let mut map = self;
        if map.height > 1 && map.row == map.width * map.pixel {
            (map.width, map.height) = (map.width * map.height, 1);
        }
        if map.height == 1 && map.image == map.width.wrapping_mul(map.pixel) {
            map.width = usize::MAX;
        }
        map
    }

    /// The offsets of `out.len()` rows from `first` on. The largest is returned.
    pub(crate) fn offsets(&self, first: usize, out: &mut [usize]) -> usize {
        let map = self.joined();
        let (mut x, rest) = (first % map.width, first / map.width);
        let (mut y, mut n) = (rest % map.height, rest / map.height);
        let (mut out, mut largest) = (out, 0);
        while !out.is_empty() {
            let (row, others) = out.split_at_mut(out.len().min(map.width - x));
            let mut offset = map.start + n * map.image + y * map.row + x * map.pixel;
            for out in row {
                *out = offset;
                offset += map.pixel;
            }
            // Behind the last, there being one.
            largest = largest.max(offset - map.pixel);
            (x, y, out) = (0, y + 1, others);
            if y == map.height {
                (y, n) = (0, n + 1);
            }
        }
        largest
    }
}

/// One product: rows of an image times packed weights.
pub(crate) struct Job<'a, P: Product> {
    pub(crate) image: &'a [P::X],
    pub(crate) map: RowMap,
    /// Where each run starts, from the start of a row.
    pub(crate) runs: &'a [usize],
    pub(crate) panels: &'a Panels<P::W>,
    /// Rows of the product.
    pub(crate) rows: usize,
    /// The output row of the first row, the output column of the first column.
    pub(crate) origin: [usize; 2],
}

impl<P: Product> Job<'_, P> {
    /// Multiplies everything, in parallel over blocks of rows and groups of panels.
    ///
    /// # Safety
    /// Nobody else touches the output rows and columns of this job meanwhile.
    pub(crate) unsafe fn run(&self, product: P, epilogue: &Epilogue) {
        let (depth, panels) = (self.panels.depth(), self.panels.count());
        let groups = panels.div_ceil(self.together());
        let width = self.panels.width * panels.div_ceil(groups.max(1));
        let macs = self.rows.saturating_mul(depth * self.panels.columns);
        let target = task::<P>(macs) / (depth * width).max(1);
        let units = self.rows.div_ceil(P::TASK_ROWS);
        let blocks = self.rows.div_ceil(target.max(2 * P::ROWS)).clamp(1, units.max(1));
        // Neighbouring tasks share what is larger: rows, which each block reads once for all panels, or
        // panels, which are then read once for all blocks. Alike, it is panels: tile after tile reads some new rows,
        // which come meanwhile, but all of a new panel.
        let image = size_of_val(self.image).max(1);
        let rows_first = blocks * self.panels.bytes() < groups * image;
        // Of more rows than a cache holds, some meet all panels before the next do.
        let near = if rows_first { 1 } else { (NEAR * blocks / image).clamp(1, blocks) };
        parallel::for_each(blocks * groups, |task| {
            let (first, rest) = (task / (near * groups) * near, task % (near * groups));
            let together = near.min(blocks - first);
            let (block, group) = (first + rest % together, rest / together);
            let units = part(units, blocks, block);
            let rows = units.start * P::TASK_ROWS..self.rows.min(units.end * P::TASK_ROWS);
            let panels = part(panels, groups, group);
            // SAFETY: tasks differ in rows or in columns; the rest is the caller's promise.
            unsafe { product.multiply(self, rows, panels, epilogue) };
        });
    }

    /// Multiplies everything on this thread.
    ///
    /// # Safety
    /// As [`Job::run`].
    pub(crate) unsafe fn run_here(&self, product: P, epilogue: &Epilogue) {
        let (panels, together) = (self.panels.count(), self.together());
        for first in (0..panels).step_by(together) {
            let panels = first..panels.min(first + together);
            // SAFETY: the caller's promise.
            unsafe { product.multiply(self, 0..self.rows, panels, epilogue) };
        }
    }

    /// How many panels a tile of rows meets before the next one.
    ///
    /// One if rows overlap, as those of a convolution do: they are so much less than weights that one panel had
    /// better stay in the L1 cache while they go by.
    fn together(&self) -> usize {
        let overlap = self.runs.len() * self.panels.len > self.map.pixel;
        let panel = self.panels.depth() * self.panels.width * size_of::<P::W>();
        if overlap { 1 } else { (GROUP / panel.max(1)).clamp(1, P::TOGETHER) }
    }

    /// Multiplies some rows with one panel after the other, sums being vectors in registers.
    ///
    /// # Safety
    /// As [`Job::run`], for these rows and the panels' columns.
    pub(crate) unsafe fn in_registers(
        &self,
        product: P,
        rows: Range<usize>,
        panels: Range<usize>,
        epilogue: &Epilogue,
    ) {
        for panel in panels {
            // SAFETY: the caller's promise.
            unsafe { self.meet(product, rows.clone(), panel, epilogue) };
        }
    }

    /// Multiplies some rows with one panel.
    ///
    /// # Safety
    /// As [`Job::in_registers`].
    unsafe fn meet(&self, product: P, rows: Range<usize>, panel: usize, epilogue: &Epilogue) {
        const { assert!(P::ROWS % P::ROW_STEP == 0) };
        const { assert!(P::VECTORS * <P::Isa as Int8>::LANES <= MAX_LANES) };
        let width = self.panels.panel_width(panel);
        let first = panel * self.panels.width;
        let strips = rows.len().div_ceil(STRIP);
        let reach = self.runs.iter().max().unwrap_or(&0);
        for strip in 0..strips {
            let part = part(rows.len(), strips, strip);
            let (start, len) = (rows.start + part.start, part.len());
            let mut offsets = [0; STRIP + MAX_ROW_STEP];
            let largest = self.map.offsets(start, &mut offsets[..len]);
            let padded = len.next_multiple_of(P::ROW_STEP);
            let last = offsets[len - 1];
            offsets[len..padded].fill(last);
            let strip = Strip::<P> {
                image: self.image,
                rows: &offsets[..padded],
                runs: self.runs,
                last: largest + reach,
                steps: self.panels.steps,
                once: self.panels.count() == 1,
                panel: self.panels.panel(panel),
                width,
                copies: Copies::ONE,
            };
            let place = Place {
                row: start + self.origin[0],
                rows: len,
                column: first + self.origin[1],
                columns: (self.panels.columns - first).min(width),
            };
            // SAFETY: the caller's promise.
            unsafe { strip.multiply(product, epilogue, place) };
        }
    }
}

/// Bytes of the panels that tiles of rows meet one after the other: half of an L2 cache, where more than one meet.
const GROUP: usize = 1 << 20;
/// Bytes of rows that an L2 cache holds beside panels.
const NEAR: usize = 1 << 18;
/// Rows whose places are worked out at a time: a multiple of every tile's height.
const STRIP: usize = 96;
/// No product has a larger `ROW_STEP`.
pub(crate) const MAX_ROW_STEP: usize = 8;

/// Multiply-accumulates of a task where there are so many in all: threads have something to share, unless all of it
/// is too little.
pub(crate) fn task<P: Product>(macs: usize) -> usize {
    (macs / TASKS).clamp(P::TASK / 8, P::TASK)
}

/// Tasks of a product at the least, if none is less than an eighth of a large one.
const TASKS: usize = 8;

/// Part `index` of `0..len` in `parts` parts that differ by one at most.
fn part(len: usize, parts: usize, index: usize) -> Range<usize> {
    len * index / parts..len * (index + 1) / parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Nothing, as often as something.
    fn gap() -> impl Strategy<Value = usize> {
        prop_oneof![Just(0), 1..=9usize]
    }

    proptest! {
        #[test]
        fn offsets_are_those_of_pixel_after_pixel(
            (images, height, width) in (1..=3usize, 1..=5usize, 1..=9usize),
            (pixel, start) in (1..=7usize, 0..=20usize),
            (behind_row, behind_image) in (gap(), gap()),
            (first, last) in any::<(prop::sample::Index, prop::sample::Index)>(),
        ) {
            let row = width * pixel + behind_row;
            let image = height * row + behind_image;
            let map = RowMap { width, height, pixel, row, image, start };
            let place = |n, y, x| start + n * image + y * row + x * pixel;
            let rows = (0..images).flat_map(|n| (0..height).map(move |y| (n, y)));
            let all: Vec<usize> =
                rows.flat_map(|(n, y)| (0..width).map(move |x| place(n, y, x))).collect();

            let first = first.index(all.len());
            let expected = &all[first..=first + last.index(all.len() - first)];
            let mut offsets = vec![0; expected.len()];
            let largest = map.offsets(first, &mut offsets);
            prop_assert_eq!(&offsets, expected);
            prop_assert_eq!(Some(&largest), expected.iter().max());
        }
    }
}
