//! The one inner loop: a tile of rows times a panel.
//!
//! ```text
//! acc[rows][vectors] = 0
//! for each run, for each step:      the step loads `vectors` of weights and, for each row,
//!     acc += x · w                  broadcasts one group of activations
//! out = acc
//! ```

use crate::simd::Isa;
use crate::simd::int8::{Int8, Product};

/// Most rows a tile of any product may have.
pub(crate) const MAX_ROWS: usize = 16;
/// Most sums a tile of any product may have.
pub(crate) const MAX_SUMS: usize = 1024;

/// What a tile reads.
pub(crate) struct Tile<'a, P: Product> {
    /// The activations.
    pub(crate) image: &'a [P::X],
    /// Where each row starts in the image.
    pub(crate) rows: &'a [usize],
    /// Where each run starts, from the start of a row.
    pub(crate) runs: &'a [usize],
    /// Steps of a run.
    pub(crate) steps: usize,
    /// The weights: `runs · steps · width · GROUP`.
    pub(crate) panel: &'a [P::W],
    /// Columns of the panel, whole vectors.
    pub(crate) width: usize,
}

impl<P: Product> Tile<'_, P> {
    /// Writes the sums, row `i` at `out[i · stride..]`.
    pub(crate) fn multiply(&self, product: P, out: &mut [i32], stride: usize) {
        /// Calls the tile compiled for these numbers of rows and vectors.
        macro_rules! choose {
            ($($rows:literal)*) => {
                match (self.rows.len(), self.width / <P::Isa as Int8>::LANES) {
                    $(
                        ($rows, 1) if P::ROWS >= $rows => self.run::<$rows, 1>(product, out, stride),
                        ($rows, 2) if P::ROWS >= $rows && P::VECTORS >= 2 => self.run::<$rows, 2>(product, out, stride),
                        ($rows, 3) if P::ROWS >= $rows && P::VECTORS >= 3 => self.run::<$rows, 3>(product, out, stride),
                        ($rows, 4) if P::ROWS >= $rows && P::VECTORS >= 4 => self.run::<$rows, 4>(product, out, stride),
                    )*
                    (rows, vectors) => unreachable!("a tile of {rows} rows and {vectors} vectors"),
                }
            };
        }
        choose!(1 2 3 4 5 6 7 8)
    }

    /// A function of its own, compiled for the instruction set: every kernel shares this one copy.
    #[inline(never)]
    fn run<const MR: usize, const NV: usize>(&self, product: P, out: &mut [i32], stride: usize) {
        let isa = product.isa();
        isa.enter(
            #[inline(always)]
            || {
                let acc = self.sums::<MR, NV>(product);
                for (i, row) in acc.iter().enumerate() {
                    for (v, &sum) in row.iter().enumerate() {
                        isa.store(sum, &mut out[i * stride + v * <P::Isa as Int8>::LANES..]);
                    }
                }
            },
        );
    }

    #[inline(always)]
    fn sums<const MR: usize, const NV: usize>(
        &self,
        product: P,
    ) -> [[<P::Isa as Int8>::Acc; NV]; MR] {
        let lanes = <P::Isa as Int8>::LANES;
        let row_step = NV * lanes * P::GROUP;
        let rows: &[usize; MR] = self.rows.try_into().expect("MR is the number of rows");
        let last = rows.iter().max().unwrap_or(&0) + self.runs.iter().max().unwrap_or(&0);
        assert!(last + self.steps * P::GROUP <= self.image.len());
        assert!(self.runs.len() * self.steps * row_step <= self.panel.len());

        let mut acc = [[product.isa().zero(); NV]; MR];
        let mut w = self.panel.as_ptr();
        for &run in self.runs {
            let mut x = [self.image.as_ptr(); MR];
            for i in 0..MR {
                // SAFETY: the first assertion: no row and run start beyond the image.
                x[i] = unsafe { x[i].add(rows[i] + run) };
            }
            for step in 0..self.steps {
                // SAFETY: the first assertion leaves `steps` groups behind every start; the second
                // one `row_step` weights for each step of each run, which `w` counts.
                unsafe {
                    product.step(&mut acc, &x, step * P::GROUP, w);
                    w = w.add(row_step);
                }
            }
        }
        product.finish(&mut acc);
        acc
    }
}
