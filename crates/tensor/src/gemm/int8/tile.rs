//! The one inner loop: a tile of rows times a panel.
//!
//! ```text
//! acc[rows][vectors] = bias
//! for each run, for each step:      the step loads `vectors` of weights and, for each row,
//!     acc += x · w                  broadcasts one group of activations
//! epilogue(acc)                     from registers when the tile's columns are whole vectors
//! ```

use super::epilogue::Epilogue;
use crate::simd::Isa;
use crate::simd::int8::{Int8, Product};

/// Most rows a tile of any product may have.
pub(crate) const MAX_ROWS: usize = 8;

/// What a tile reads.
pub(crate) struct Tile<'a, P: Product> {
    /// The activations.
    pub(crate) image: &'a [P::X],
    /// Where each row starts in the image.
    pub(crate) rows: &'a [usize],
    /// Where each run starts, from the start of a row.
    pub(crate) runs: &'a [usize],
    /// The largest of them.
    pub(crate) last_run: usize,
    /// Steps of a run.
    pub(crate) steps: usize,
    /// The weights: `runs · steps · width · GROUP`.
    pub(crate) panel: &'a [P::W],
    /// Columns of the panel, whole vectors.
    pub(crate) width: usize,
}

/// Where a tile's sums belong in the output.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// The first row.
    pub(crate) row: usize,
    /// Rows that exist: a tile may have computed more.
    pub(crate) rows: usize,
    /// The first column.
    pub(crate) column: usize,
    /// Columns that exist.
    pub(crate) columns: usize,
}

impl<P: Product> Tile<'_, P> {
    /// Multiplies, and finishes the output rows from `place[0]` on, columns from `place[1]` on.
    ///
    /// # Safety
    /// While this runs nobody else touches these rows and columns of the output.
    pub(crate) unsafe fn multiply(&self, product: P, epilogue: &Epilogue, place: Place) {
        /// Calls the tile compiled for these numbers of rows and vectors.
        macro_rules! choose {
            ($($rows:literal)*) => {
                match (self.rows.len(), self.width / <P::Isa as Int8>::LANES) {
                    $(
                        ($rows, 1) if P::ROWS >= $rows => self.run::<$rows, 1>(product, epilogue, place),
                        ($rows, 2) if P::ROWS >= $rows && P::VECTORS >= 2 => self.run::<$rows, 2>(product, epilogue, place),
                        ($rows, 3) if P::ROWS >= $rows && P::VECTORS >= 3 => self.run::<$rows, 3>(product, epilogue, place),
                        ($rows, 4) if P::ROWS >= $rows && P::VECTORS >= 4 => self.run::<$rows, 4>(product, epilogue, place),
                    )*
                    (rows, vectors) => unreachable!("a tile of {rows} rows and {vectors} vectors"),
                }
            };
        }
        const { assert!(P::ROWS <= MAX_ROWS && P::VECTORS <= 4) };
        // SAFETY: the caller's promise.
        unsafe { choose!(1 2 3 4 5 6 7 8) }
    }

    /// A function of its own, compiled for the instruction set: every kernel shares this one copy.
    ///
    /// # Safety
    /// As [`Tile::multiply`].
    #[inline(never)]
    unsafe fn run<const MR: usize, const NV: usize>(
        &self,
        product: P,
        epilogue: &Epilogue,
        place: Place,
    ) {
        let isa = product.isa();
        isa.enter(
            #[inline(always)]
            || {
                let lanes = <P::Isa as Int8>::LANES;
                let mut bias = [isa.zero(); NV];
                for (v, bias) in bias.iter_mut().enumerate() {
                    *bias = isa.load(&epilogue.bias[place.column + v * lanes..]);
                }
                let acc = self.sums::<MR, NV>(product, bias);
                // SAFETY: the caller's promise.
                unsafe {
                    if MR == place.rows && NV * lanes == place.columns {
                        epilogue.whole(isa, &acc, place);
                    } else {
                        epilogue.ragged(isa, &acc, place);
                    }
                }
            },
        );
    }

    #[inline(always)]
    fn sums<const MR: usize, const NV: usize>(
        &self,
        product: P,
        bias: [<P::Isa as Int8>::Acc; NV],
    ) -> [[<P::Isa as Int8>::Acc; NV]; MR] {
        let lanes = <P::Isa as Int8>::LANES;
        let row_step = NV * lanes * P::GROUP;
        let rows: &[usize; MR] = self.rows.try_into().expect("MR is the number of rows");
        let last = rows.iter().max().unwrap_or(&0) + self.last_run;
        assert!(last + self.steps * P::GROUP <= self.image.len());
        assert!(self.runs.len() * self.steps * row_step <= self.panel.len());

        let mut acc = product.start::<MR, NV>(bias);
        let mut w = self.panel.as_ptr();
        for &run in self.runs {
            assert!(run <= self.last_run);
            let mut x = [self.image.as_ptr(); MR];
            for i in 0..MR {
                // SAFETY: the assertions: no row and run start beyond the image.
                x[i] = unsafe { x[i].add(rows[i] + run) };
            }
            for step in 0..self.steps {
                // SAFETY: the assertions leave `steps` groups behind every start, and `row_step`
                // weights for each step of each run, which `w` counts.
                unsafe {
                    product.step(&mut acc, &x, step * P::GROUP, w);
                    w = w.add(row_step);
                }
            }
        }
        product.finish(acc, bias)
    }
}
