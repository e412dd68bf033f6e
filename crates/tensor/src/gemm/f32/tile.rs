//! The register tile: `R` rows of `V` vectors.

use crate::simd::f32::Float;

/// The most columns of the left operand that a tile holds at a time.
pub(crate) const DEPTH: usize = 512;

/// One row of a packed tile. One cache line longer than what it holds, so that the rows of a tile
/// do not fall into the same cache sets.
pub(crate) type Row = [f32; DEPTH + 16];

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

/// `R` rows of at least `count` values, `step` apart, read in place.
pub(crate) struct Strided<'a, const R: usize> {
    data: &'a [f32],
    step: usize,
    count: usize,
}

impl<'a, const R: usize> Strided<'a, R> {
    /// # Panics
    /// If the last row would end behind the data.
    #[inline(always)]
    pub(crate) fn new(data: &'a [f32], step: usize, count: usize) -> Self {
        let room = data.len().checked_sub(count).expect("a row in the data");
        assert!(R == 1 || step <= room / (R - 1).max(1), "all rows in the data");
        Self { data, step, count }
    }

    /// Element `k` of row `r`.
    #[inline(always)]
    pub(crate) fn at(&self, r: usize, k: usize) -> f32 {
        assert!(r < R && k < self.count, "row {r}, element {k}");
        // SAFETY: `new` has seen that `(R − 1)·step + count` is at most the length, and the
        // assertion that `r < R` and `k < count`: the index is below the length. Checked indexing
        // would test each row of each step, since the compiler cannot follow `r·step`.
        unsafe { *self.data.as_ptr().add(k).add(r * self.step) }
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

/// The rows of a panel, each asked for before it is due.
#[inline(always)]
pub(crate) fn asked_for<I: Float, const V: usize>(
    isa: I,
    panel: &[f32],
) -> impl Iterator<Item = &[f32]> {
    panel.chunks_exact(V * I::LANES).inspect(
        #[inline(always)]
        move |row| {
            if I::AHEAD > 0 {
                isa.prefetch(row, I::AHEAD);
            }
        },
    )
}

/// Multiplies rows where they lie by one panel and stores the first `width` columns of each at
/// `out`, `pitch` apart. Asks for the rows that lie `ahead` values behind them, unless that is zero.
#[inline(always)]
fn tile_in_place<I: Float, const R: usize, const V: usize>(
    isa: I,
    rows: &[f32],
    step: usize,
    ahead: usize,
    panel: &[f32],
    onto: Onto,
    out: &mut [f32],
    pitch: usize,
    width: usize,
) {
    let left = Strided::<R>::new(rows, step, panel.len() / (V * I::LANES));
    let mut acc = [[isa.splat(0.0); V]; R];
    accumulate(
        isa,
        &mut acc,
        #[inline(always)]
        |r, k| {
            if I::AHEAD > 0 && r == 0 && ahead > 0 {
                // A line of one of those rows.
                isa.prefetch(rows, ahead + k % 16 * step + k / 16 * 16);
            }
            left.at(r, k)
        },
        asked_for::<I, V>(isa, panel),
    );
    for r in 0..R {
        finish(isa, &acc[r], onto, &mut out[r * pitch..][..width]);
    }
}

/// Multiplies packed rows by one panel and stores the first `width` columns of each row at its
/// `place` in the output: one place for each row that exists.
#[inline(always)]
fn tile<I: Float, const R: usize, const V: usize>(
    isa: I,
    rows: &[Row],
    panel: &[f32],
    onto: Onto,
    out: &mut [f32],
    places: &[usize],
    width: usize,
) {
    let rows: &[Row; R] = rows[..R].try_into().expect("R rows");
    let mut acc = [[isa.splat(0.0); V]; R];
    accumulate(
        isa,
        &mut acc,
        #[inline(always)]
        |r, k| rows[r][k],
        asked_for::<I, V>(isa, panel),
    );
    for r in 0..R {
        if r < places.len() {
            finish(isa, &acc[r], onto, &mut out[places[r]..][..width]);
        }
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
                rows if rows <= $n && $n <= $most => {
                    const $R: usize = $n;
                    $crate::simd::Isa::enter($token, #[inline(always)] || $body)
                }
            )*
            rows => unreachable!("a tile of {rows} rows"),
        }
    };
}
pub(crate) use with_rows;

/// [`tile`] for as many rows as there are places, and a panel of one vector or two.
#[inline(always)]
pub(super) fn multiply_packed<I: Float>(
    isa: I,
    rows: &[Row],
    panel: &[f32],
    panel_width: usize,
    onto: Onto,
    out: &mut [f32],
    places: &[usize],
    width: usize,
) {
    let count = places.len();
    if panel_width == I::LANES {
        with_rows!(isa, I::ROWS, count, R => tile::<I, R, 1>(isa, rows, panel, onto, out, places, width))
    } else {
        with_rows!(isa, I::ROWS, count, R => tile::<I, R, 2>(isa, rows, panel, onto, out, places, width))
    }
}

/// [`tile_in_place`] for `count` rows, which [`next_rows`] gave, and a panel of one vector or two.
#[inline(always)]
pub(super) fn multiply_in_place<I: Float>(
    isa: I,
    rows: &[f32],
    step: usize,
    ahead: usize,
    count: usize,
    panel: &[f32],
    panel_width: usize,
    onto: Onto,
    out: &mut [f32],
    pitch: usize,
    width: usize,
) {
    if panel_width == I::LANES {
        with_rows!(isa, I::ROWS, count, R =>
            tile_in_place::<I, R, 1>(isa, rows, step, ahead, panel, onto, out, pitch, width))
    } else {
        with_rows!(isa, I::ROWS, count, R =>
            tile_in_place::<I, R, 2>(isa, rows, step, ahead, panel, onto, out, pitch, width))
    }
}
