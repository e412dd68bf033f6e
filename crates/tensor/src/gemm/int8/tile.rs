//! The one inner loop: tiles of rows times a panel.
//!
//! ```text
//! for each tile of rows:
//!     acc[rows][vectors] = bias
//!     for each run, for each step:      the step loads `vectors` of weights and, for each row,
//!         acc += x · w                  broadcasts one group of activations
//!     finish(acc)                       from registers when the tile's columns are whole vectors
//! ```

use std::ops::Range;

use super::epilogue::Finish;
use crate::simd::Isa;
use crate::simd::int8::{Int8, Product};

/// Rows of an image times a panel.
pub(crate) struct Strip<'a, P: Product> {
    /// The activations.
    pub(crate) image: &'a [P::X],
    /// Where each row starts in the image; a multiple of `ROW_STEP` rows.
    pub(crate) rows: &'a [usize],
    /// Where each run starts, from the start of a row.
    pub(crate) runs: &'a [usize],
    /// At least the start of the last run of any row.
    pub(crate) last: usize,
    /// Steps of a run.
    pub(crate) steps: usize,
    /// The weights: `runs · steps · width · GROUP`.
    pub(crate) panel: &'a [P::W],
    /// Columns of the panel, whole vectors.
    pub(crate) width: usize,
    /// How often this is done: products that differ in where their operands lie alone.
    pub(crate) copies: Copies,
}

/// Products of one shape. The sums of each are `width` columns behind those of the one before.
#[derive(Clone, Copy)]
pub(crate) struct Copies {
    /// How many products.
    pub(crate) count: usize,
    /// Elements of the image from a product to the next.
    pub(crate) image: usize,
    /// Elements of the panel from a product to the next.
    pub(crate) panel: usize,
}

impl Copies {
    /// A product alone.
    pub(crate) const ONE: Self = Self { count: 1, image: 0, panel: 0 };
}

/// Where sums belong in the output.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// The first row.
    pub(crate) row: usize,
    /// Rows that exist: more may have been computed.
    pub(crate) rows: usize,
    /// The first column.
    pub(crate) column: usize,
    /// Columns that exist.
    pub(crate) columns: usize,
}

impl<P: Product> Strip<'_, P> {
    /// Multiplies, and finishes the sums at `place`.
    ///
    /// Tiles are even: 25 rows are five times five, not four times six and a slow one.
    ///
    /// # Safety
    /// While this runs nobody else touches this place of the output. `last` is what it says.
    pub(crate) unsafe fn multiply<F: Finish>(&self, product: P, finish: &F, place: Place) {
        let units = self.rows.len() / P::ROW_STEP;
        let tiles = units.div_ceil(P::ROWS / P::ROW_STEP);
        if tiles == 0 {
            return;
        }
        let (small, larger) = (units / tiles, units % tiles);
        let split = larger * (small + 1) * P::ROW_STEP;
        // SAFETY: the caller's promise, for each half of the rows.
        unsafe {
            if split > 0 {
                self.tiles((small + 1) * P::ROW_STEP, 0..split, product, finish, place);
            }
            self.tiles(small * P::ROW_STEP, split..self.rows.len(), product, finish, place);
        }
    }

    /// Calls the loop compiled for tiles of this height and the panel's number of vectors.
    ///
    /// # Safety
    /// As [`Strip::multiply`].
    unsafe fn tiles<F: Finish>(
        &self,
        height: usize,
        rows: Range<usize>,
        product: P,
        finish: &F,
        place: Place,
    ) {
        let vectors = self.width / <P::Isa as Int8>::LANES;
        // The constant conditions keep tiles that a product does not have from being compiled.
        macro_rules! choose {
            ($($height:literal)*) => {{
                $(if const { P::ROWS >= $height && $height % P::ROW_STEP == 0 } && height == $height {
                    return choose!($height, vectors 1 2 3 4);
                })*
            }};
            ($height:literal, vectors $($vectors:literal)*) => {{
                $(if const { P::VECTORS >= $vectors } && vectors == $vectors {
                    return self.run::<$height, $vectors, F>(rows, product, finish, place);
                })*
            }};
        }
        const { assert!(P::ROWS <= 8 && P::VECTORS <= 4) };
        // SAFETY: the caller's promise.
        unsafe { choose!(1 2 3 4 5 6 7 8) }
        unreachable!("a tile of {height} rows and {vectors} vectors")
    }

    /// A function of its own, compiled for the instruction set: every kernel shares this one copy.
    ///
    /// # Safety
    /// As [`Strip::multiply`].
    #[inline(never)]
    unsafe fn run<const MR: usize, const NV: usize, F: Finish>(
        &self,
        rows: Range<usize>,
        product: P,
        finish: &F,
        place: Place,
    ) {
        let lanes = <P::Isa as Int8>::LANES;
        let Copies { count, image: next_image, panel: next_panel } = self.copies;
        let panel = self.runs.len() * self.steps * NV * lanes * P::GROUP;
        let last = self.last + self.steps * P::GROUP;
        assert!((count - 1) * next_image + last <= self.image.len());
        assert!((count - 1) * next_panel + panel <= self.panel.len());
        product.isa().enter(
            #[inline(always)]
            || {
                for copy in 0..count {
                    let image = &self.image[copy * next_image..];
                    let panel = &self.panel[copy * next_panel..];
                    let column = place.column + copy * self.width;
                    let bias = finish.bias(product.isa(), column);
                    for row in rows.clone().step_by(MR) {
                        // The next tile's rows begin anywhere: nothing else foretells it.
                        for next in self.rows[row + MR..].iter().take(MR) {
                            product.isa().prefetch(image, next + self.runs[0]);
                        }
                        let tile = self.rows[row..row + MR].try_into().expect("MR rows");
                        // SAFETY: the assertions above, and what `last` is.
                        let acc = unsafe { self.sums::<MR, NV>(product, image, panel, tile, bias) };
                        let rows = MR.min(place.rows - row);
                        let place = Place { row: place.row + row, rows, column, ..place };
                        // SAFETY: the caller's promise.
                        unsafe {
                            if MR == place.rows && NV * lanes == place.columns {
                                finish.whole(product.isa(), &acc, place);
                            } else {
                                finish.ragged(product.isa(), &acc, place);
                            }
                        }
                    }
                }
            },
        );
    }

    /// # Safety
    /// Every row plus every run leaves `steps` groups in the image; the panel holds `NV` vectors of
    /// groups for each step of each run.
    #[inline(always)]
    unsafe fn sums<const MR: usize, const NV: usize>(
        &self,
        product: P,
        image: &[P::X],
        panel: &[P::W],
        rows: &[usize; MR],
        bias: [<P::Isa as Int8>::Acc; NV],
    ) -> [[<P::Isa as Int8>::Acc; NV]; MR] {
        let mut acc = product.start::<MR, NV>(bias);
        let mut w = panel.as_ptr();
        let mut x = [image.as_ptr(); MR];
        for (x, row) in x.iter_mut().zip(rows) {
            // SAFETY: the caller's promise.
            *x = unsafe { x.add(*row) };
        }
        for &run in self.runs {
            // SAFETY: the caller's promise; `w` counts the weights of the runs so far.
            unsafe {
                product.steps(&mut acc, &x, run, w, self.steps);
                w = w.add(self.steps * NV * <P::Isa as Int8>::LANES * P::GROUP);
            }
        }
        product.finish(acc, bias)
    }
}
