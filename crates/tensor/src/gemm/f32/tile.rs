//! The register tile: `R` rows of `V` vectors.

use std::array::from_fn;
use std::marker::PhantomData;

use crate::simd::f32::{Float, MAX_DEPTH};

/// One packed row. One cache line longer than what it holds, so that the rows of a tile do not fall into
/// the same cache sets.
pub(crate) type Row = [f32; ROW];

/// Values of a packed row.
pub(super) const ROW: usize = MAX_DEPTH + 16;

/// What a finished sum is added to.
#[derive(Clone, Copy)]
pub(crate) enum Onto<'a> {
    /// Nothing: the output is overwritten.
    Nothing,
    /// A value for each of the columns.
    Bias(&'a [f32]),
    /// What the output holds.
    Output,
}

/// `R` rows of `count` values, `step` apart, read in place.
pub(crate) struct Strided<'a, const R: usize> {
    starts: [*const f32; R],
    count: usize,
    data: PhantomData<&'a [f32]>,
}

impl<'a, const R: usize> Strided<'a, R> {
    /// # Panics
    /// If the last row would end behind the data.
    #[inline(always)]
    pub(crate) fn new(data: &'a [f32], step: usize, count: usize) -> Self {
        let room = data.len().checked_sub(count).expect("a row in the data");
        assert!(R == 1 || step <= room / (R - 1).max(1), "all rows in the data");
        let starts = from_fn(
            #[inline(always)]
            |r| data.as_ptr().wrapping_add(r * step),
        );
        Self { starts, count, data: PhantomData }
    }

    /// The same rows, each by a pointer of its own, if so few fit into registers. Left to itself, the compiler
    /// computes them anew from the step at each column: 43 instructions for 24 products instead of 38.
    #[inline(always)]
    fn held(mut self) -> Self {
        const REGISTERS: usize = 8;
        if R <= REGISTERS {
            self.starts = std::hint::black_box(self.starts);
        }
        self
    }

    /// The `count` columns from `first` on.
    ///
    /// # Panics
    /// If there are not so many.
    #[inline(always)]
    fn columns(&self, first: usize, count: usize) -> Self {
        let room = self.count.checked_sub(count).expect("columns in the rows");
        assert!(first <= room, "columns in the rows");
        let starts = from_fn(
            #[inline(always)]
            |r| self.starts[r].wrapping_add(first),
        );
        Self { starts, count, data: PhantomData }
    }

    /// Element `k` of row `r`.
    #[inline(always)]
    pub(crate) fn at(&self, r: usize, k: usize) -> f32 {
        assert!(r < R && k < self.count, "row {r}, element {k}");
        // Checked indexing would test each row of each step, since the compiler cannot follow `r·step`.
        // SAFETY: `new` has seen that all rows end within the data, which is borrowed as long as this lives;
        // `columns` takes no more than there were, and the assertion keeps to what it took.
        unsafe { *self.starts[r].add(k) }
    }
}

/// `acc[r][v] += Σₖ left(r, k) · row k, vector v`.
///
/// The left operand comes element by element, just before it is used: a column at a time would take
/// a register for each row.
#[inline(always)]
pub(crate) fn accumulate<'b, I: Float, const R: usize, const V: usize>(
    isa: I,
    acc: &mut [[I::Vector; V]; R],
    left: impl Fn(usize, usize) -> f32,
    rows: impl Iterator<Item = &'b [f32]>,
) {
    let mut sums = *acc;
    for (k, row) in rows.enumerate() {
        let mut b = [isa.splat(0.0); V];
        for v in 0..V {
            b[v] = isa.load(&row[v * I::LANES..]);
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            let a = isa.splat(left(r, k));
            for v in 0..V {
                sums[v] = isa.mul_add(a, b[v], sums[v]);
            }
        }
    }
    *acc = sums;
}

/// [`accumulate`] for rows in memory and a panel.
///
/// Several steps at a time share what a loop costs: 35 instructions for 24 products instead of 38. `due` sees each
/// row of the panel just before it is loaded.
#[inline(always)]
pub(crate) fn accumulate_rows<I: Float, const R: usize, const V: usize>(
    isa: I,
    acc: &mut [[I::Vector; V]; R],
    left: &Strided<R>,
    panel: &[f32],
    due: impl Fn(&[f32]),
) {
    const STEPS: usize = 4;
    let width = V * I::LANES;
    let mut sums = *acc;
    let mut k = 0;
    let mut together = panel.chunks_exact(STEPS * width);
    for rows in &mut together {
        let left = left.columns(k, STEPS);
        accumulate(
            isa,
            &mut sums,
            #[inline(always)]
            |r, k| left.at(r, k),
            rows.chunks_exact(width).inspect(
                #[inline(always)]
                |row| due(row),
            ),
        );
        k += STEPS;
    }
    accumulate(
        isa,
        &mut sums,
        #[inline(always)]
        |r, i| left.at(r, k + i),
        together.remainder().chunks_exact(width).inspect(
            #[inline(always)]
            |row| due(row),
        ),
    );
    *acc = sums;
}

/// Values that a prefetch asks for: two cache lines.
pub(crate) const ASKED: usize = 32;

/// What a tile asks for while it multiplies, a little at each stretch of steps: operands of tiles to come.
#[derive(Clone, Copy)]
pub(super) struct Ahead<'a> {
    /// Rows of the left operand, from the column on that the tile's own begin with.
    pub(super) rows: &'a [f32],
    /// How far apart they are.
    pub(super) step: usize,
    /// The first of them to ask for, and the one after the last.
    pub(super) range: [usize; 2],
    /// Weights.
    pub(super) weights: &'a [f32],
}

/// Multiplies `R` rows, `step` apart, by one panel and stores the first `width` columns of each at its place
/// in the output.
#[inline(always)]
fn tile<I: Float, const R: usize, const V: usize>(
    isa: I,
    rows: &[f32],
    step: usize,
    ahead: Ahead,
    panel: &[f32],
    onto: Onto,
    out: &mut [f32],
    places: &[usize],
    width: usize,
) {
    // Long: what a stretch costs beside its products is dozens of instructions.
    const STRETCH: usize = 128;
    let depth = panel.len() / (V * I::LANES);
    let left = Strided::<R>::new(rows, step, depth).held();
    let places: &[usize; R] = places.try_into().expect("a place for each row");
    for &place in places {
        for at in (0..width).step_by(ASKED) {
            isa.prefetch(out, place + at);
        }
    }
    let stretches = depth.div_ceil(STRETCH).max(1);
    let share = ahead.weights.len().div_ceil(stretches).next_multiple_of(ASKED);
    let mut weights = ahead.weights.chunks(share.max(1));
    let mut acc = [[isa.splat(0.0); V]; R];
    for (i, panel) in panel.chunks(STRETCH * V * I::LANES).enumerate() {
        for r in ahead.range[0]..ahead.range[1] {
            for at in (0..STRETCH).step_by(ASKED) {
                isa.prefetch_outer(ahead.rows, r * ahead.step + i * STRETCH + at);
            }
        }
        for lines in weights.next().unwrap_or_default().chunks(ASKED) {
            isa.prefetch_outer(lines, 0);
        }
        let left = left.columns(i * STRETCH, panel.len() / (V * I::LANES));
        accumulate_rows(
            isa,
            &mut acc,
            &left,
            panel,
            #[inline(always)]
            |_| (),
        );
    }
    for r in 0..R {
        finish(isa, &acc[r], onto, &mut out[places[r]..][..width]);
    }
}

/// Adds one row of sums onto what it belongs to.
#[inline(always)]
pub(crate) fn finish<I: Float, const V: usize>(
    isa: I,
    sums: &[I::Vector; V],
    onto: Onto,
    target: &mut [f32],
) {
    if target.len() == V * I::LANES {
        for v in 0..V {
            let target = &mut target[v * I::LANES..][..I::LANES];
            let sum = match onto {
                Onto::Nothing => sums[v],
                Onto::Bias(bias) => isa.add(sums[v], isa.load(&bias[v * I::LANES..])),
                Onto::Output => isa.add(sums[v], isa.load(target)),
            };
            isa.store(target, sum);
        }
    } else {
        let mut row = [0.0; 64];
        for v in 0..V {
            isa.store(&mut row[v * I::LANES..], sums[v]);
        }
        for (i, target) in target.iter_mut().enumerate() {
            *target = match onto {
                Onto::Nothing => row[i],
                Onto::Bias(bias) => row[i] + bias[i],
                Onto::Output => row[i] + *target,
            };
        }
    }
}

/// How many of `left` rows the next of about equal tiles of at most `most` rows takes: a number that
/// [`with_rows`] compiles, so that no row is computed in vain.
#[inline(always)]
pub(crate) fn next_rows(left: usize, most: usize) -> usize {
    let even = left.div_ceil(left.div_ceil(most));
    let up = if even > 8 { even.next_multiple_of(2) } else { even };
    if up <= left.min(most) { up } else { even & !1 }
}

/// Runs `$body`, in a function of its own, with `$R` the number of rows of the smallest compiled tile
/// that holds `$rows`, at most `$most`.
macro_rules! with_rows {
    ($token:expr, $most:expr, $rows:expr, $R:ident => $body:expr) => {
        with_rows!(@ $token, $most, $rows, $R => $body; 1 2 3 4 5 6 7 8 10 12 14 16)
    };
    (@ $token:expr, $most:expr, $rows:expr, $R:ident => $body:expr; $($n:literal)*) => {
        match $rows {
            $(
                rows if rows <= $n && const { $n <= $most } => {
                    const $R: usize = $n;
                    $crate::simd::Isa::enter($token, #[inline(always)] || $body)
                }
            )*
            rows => unreachable!("a tile of {rows} rows"),
        }
    };
}
pub(crate) use with_rows;

/// [`with_rows`] for a panel of `$width` values, with `$V` its vectors.
macro_rules! with_tile {
    ($I:ident, $token:expr, $width:expr, $rows:expr, ($R:ident, $V:ident) => $body:expr) => {
        match $width / $I::LANES {
            1 => with_tile!(@ $I, $token, $rows, ($R, $V) => $body; 1, NARROW_ROWS),
            2 => with_tile!(@ $I, $token, $rows, ($R, $V) => $body; 2, ROWS),
            4 if const { $I::WIDE_ROWS > 0 } =>
                with_tile!(@ $I, $token, $rows, ($R, $V) => $body; 4, WIDE_ROWS),
            vectors => unreachable!("a panel of {vectors} vectors"),
        }
    };
    (@ $I:ident, $token:expr, $rows:expr, ($R:ident, $V:ident) => $body:expr; $n:literal, $most:ident) => {{
        const $V: usize = $n;
        $crate::gemm::f32::with_rows!($token, $I::$most, $rows, $R => $body)
    }};
}

/// The most rows of a tile whose panel is `width` values wide.
#[inline(always)]
pub(crate) fn most_rows<I: Float>(_: I, width: usize) -> usize {
    match width / I::LANES {
        1 => I::NARROW_ROWS,
        2 => I::ROWS,
        _ => I::WIDE_ROWS,
    }
}

/// [`tile`] for as many rows as there are places, a number that [`next_rows`] gave.
#[inline(always)]
pub(super) fn multiply_tile<I: Float>(
    isa: I,
    rows: &[f32],
    step: usize,
    ahead: Ahead,
    panel: &[f32],
    panel_width: usize,
    onto: Onto,
    out: &mut [f32],
    places: &[usize],
    width: usize,
) {
    with_tile!(I, isa, panel_width, places.len(), (R, V) =>
        tile::<I, R, V>(isa, rows, step, ahead, panel, onto, out, places, width));
}
