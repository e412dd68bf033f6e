//! The one inner loop: tiles of rows times a panel.
//!
//! ```text
//! for each tile of rows:
//!     acc[rows][vectors] = bias
//!     for each run, for each step:      the step loads `vectors` of weights and, for each row,
//!         acc += x · w                  broadcasts one group of activations; now and then memory
//!                                       is asked for a row of the next tile and a row of this output
//!     finish(acc)                       from registers when the tile's columns are whole vectors
//! ```

use std::ops::Range;

use super::epilogue::Finish;
use crate::simd::Isa;
use crate::simd::int8::{Int8, Product};

/// Bytes of a row after which the hardware needs no more hints.
const SEEN: usize = 1024;

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
    /// Whether the rows meet this panel alone.
    pub(crate) once: bool,
    /// The weights: `runs · steps · width · GROUP`.
    pub(crate) panel: &'a [P::W],
    /// Columns of the panel, whole vectors.
    pub(crate) width: usize,
    /// How often this is done: products that differ in where their operands lie alone.
    pub(crate) copies: Copies,
}

/// Products of one shape. If there is more than one, rows follow each other in the image.
#[derive(Clone, Copy)]
pub(crate) struct Copies {
    /// How many products.
    pub(crate) count: usize,
    /// Elements of the image from a product to the next.
    pub(crate) image: usize,
    /// Elements of the panel from a product to the next.
    pub(crate) panel: usize,
    /// Columns of sums from a product to the next.
    pub(crate) columns: usize,
}

impl Copies {
    /// A product alone.
    pub(crate) const ONE: Self = Self { count: 1, image: 0, panel: 0, columns: 0 };
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
        let Self { image, rows: all, runs, steps, once, panel, copies, .. } = *self;
        let panel_len = runs.len() * steps * NV * lanes * P::GROUP;
        let last = self.last + steps * P::GROUP;
        assert!((copies.count - 1) * copies.image + last <= image.len());
        assert!((copies.count - 1) * copies.panel + panel_len <= panel.len());
        let limit = place.rows;
        // Tiles that are finished from registers end before this row.
        let whole = if NV * lanes == place.columns { place.rows } else { 0 };
        // The last tile asks for its own rows again.
        let ahead = all.len() - MR;
        let isa = product.isa();
        // By value: behind a reference, every store of sums might have changed them.
        isa.enter(
            #[inline(always)]
            move || {
                // What `Product::steps` asks for. Known here, it also keeps the compiler from beginning sums three
                // times, for no runs and for no steps too.
                assert!(!runs.is_empty() && steps > 0);
                // Misses of a whole tile at once would leave no room for those of its loads: of a far output it asks
                // for a row at a time, between stretches of its steps.
                let far = finish.far();
                let stretches = if far { MR.div_ceil(runs.len()) } else { 1 };
                let stretch = steps.div_ceil(stretches).next_multiple_of(P::STEPS);
                // Rows that come from afar: the hardware sees that all of a row will be read when it has seen some of it.
                let bytes = steps * P::GROUP * size_of::<P::X>();
                let asked = if once && runs.len() == 1 { bytes.min(SEEN) } else { 1 };
                for copy in 0..copies.count {
                    let image = &image[copy * copies.image..];
                    let panel = &panel[copy * copies.panel..];
                    let column = place.column + copy * copies.columns;
                    let bias = finish.bias(isa, column);
                    let mut row = rows.start;
                    for tile in all[rows.clone()].as_chunks::<MR>().0 {
                        let end = row + MR;
                        let place = Place { row: place.row + row, rows: MR, column, ..place };
                        let next = &all[ahead.min(end)..][..MR];
                        // The rows of the next tile of a product alone begin anywhere: nothing else foretells it.
                        let ask = |i: usize, bytes: usize| {
                            let start = image.as_ptr().wrapping_add(next[i] + runs[0]);
                            isa.prefetch_bytes(start, bytes);
                        };
                        if copies.count == 1 && !far {
                            (0..MR).for_each(|i| ask(i, 1));
                        }
                        let x = starts(image, tile);
                        // SAFETY: the three assertions above, what `last` is, and how panels are padded.
                        let acc = unsafe {
                            sums::<P, MR, NV>(
                                product,
                                &x,
                                runs,
                                [steps, stretch],
                                panel,
                                bias,
                                #[inline(always)]
                                |i| {
                                    if far {
                                        ask(i, asked);
                                        if end <= whole {
                                            let row = Place { row: place.row + i, ..place };
                                            finish.ask::<_, NV>(isa, row);
                                        }
                                    }
                                },
                            )
                        };
                        // SAFETY: the caller's promise.
                        unsafe {
                            if end <= whole {
                                finish.whole(isa, &acc, place);
                            } else {
                                let rows = MR.min(limit - row);
                                // A copy: what a function is lent lies in memory, here and for whole tiles alike.
                                ragged(isa, finish, &{ acc }, Place { rows, ..place });
                            }
                        }
                        row = end;
                    }
                }
            },
        );
    }
}

/// [`Finish::ragged`], out of the way of the tiles that are whole.
///
/// # Safety
/// As there.
#[inline(never)]
unsafe fn ragged<F: Finish, I: Int8, const MR: usize, const NV: usize>(
    isa: I,
    finish: &F,
    acc: &[[I::Acc; NV]; MR],
    place: Place,
) {
    isa.enter(
        #[inline(always)]
        // SAFETY: the caller's promise.
        || unsafe { finish.ragged(isa, acc, place) },
    );
}

/// Where rows start. A row is read behind the start of a run alone: it need not be in the image.
#[inline(always)]
fn starts<X, const MR: usize>(image: &[X], rows: &[usize; MR]) -> [*const X; MR] {
    let mut x = [image.as_ptr(); MR];
    for (x, row) in x.iter_mut().zip(rows) {
        *x = x.wrapping_add(*row);
    }
    x
}

/// The sums of the rows that start at `x`. The steps of a run are multiplied a stretch after the other; `due` is
/// told a row of the tile before each, the first ones if there are fewer stretches than rows.
///
/// # Safety
/// Every row plus every run leaves so many groups in the image; the panel holds `NV` vectors of groups for each step
/// of each run. The steps of a run and of a stretch are multiples of [`Product::STEPS`], one at the least.
#[inline(always)]
unsafe fn sums<P: Product, const MR: usize, const NV: usize>(
    product: P,
    x: &[*const P::X; MR],
    runs: &[usize],
    [steps, stretch]: [usize; 2],
    panel: &[P::W],
    bias: [<P::Isa as Int8>::Acc; NV],
    due: impl Fn(usize),
) -> [[<P::Isa as Int8>::Acc; NV]; MR] {
    let mut acc = product.start::<MR, NV>(bias);
    let mut w = panel.as_ptr();
    let mut row = 0;
    for &run in runs {
        let mut at = 0;
        loop {
            if row < MR {
                due(row);
                row += 1;
            }
            let len = stretch.min(steps - at);
            // SAFETY: the caller's promise; `w` counts the weights of the steps so far.
            unsafe {
                product.steps(&mut acc, x, run + at * P::GROUP, w, len);
                w = w.add(len * NV * <P::Isa as Int8>::LANES * P::GROUP);
            }
            at += len;
            if at >= steps {
                break;
            }
        }
    }
    product.finish(acc, bias)
}
