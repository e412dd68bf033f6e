//! The transforms of tiles and filters, a vector of channels at a time: one dimension, then the other.
//!
//! Places are asked of the caller by position, so that what lies where, and why it is in bounds, is
//! said once, where memory is laid out.
// Matrices are indexed as the formulas write them.
#![allow(clippy::needless_range_loop)]

use super::variant::{ONE, Variant};
use crate::simd::int8::Int8;

/// `f(0)` to `f(3)` or to `f(5)`, written out: arrays indexed by a constant live in registers.
#[inline(always)]
fn unrolled<V: Variant>(mut f: impl FnMut(usize)) {
    f(0);
    f(1);
    f(2);
    f(3);
    if V::TILE > 4 {
        f(4);
        f(5);
    }
}

/// `body` with a constant for a number of points: each is code of its own.
macro_rules! with_points {
    ($variant:ty, $number:expr, $points:ident => $body:expr) => {
        match $number {
            5 if <$variant>::TILE > 4 => {
                const $points: usize = 5;
                $body
            }
            6 if <$variant>::TILE > 4 => {
                const $points: usize = 6;
                $body
            }
            _ => {
                const $points: usize = 4;
                $body
            }
        }
    };
}

/// `V = Bᵀ d B` for `2 · LANES` channels of one tile, whose rows and columns have so many points:
/// `load(y, x)` is a pixel, `store(t, v)` takes a position. Positions that the tile lacks are zero.
#[inline(always)]
pub(crate) fn input_tile<I: Int8, V: Variant>(
    isa: I,
    points: [usize; 2],
    load: impl Fn(usize, usize) -> I::Half,
    mut store: impl FnMut(usize, I::Half),
) {
    let mut rows = [[load(0, 0); 6]; 6];
    with_points!(V, points[0], POINTS => unrolled::<V>(
        #[inline(always)]
        |x| {
            let mut d = [load(0, x); 6];
            unrolled::<V>(
                #[inline(always)]
                |y| d[y] = load(y, x),
            );
            let column = V::input::<I, POINTS>(isa, d);
            unrolled::<V>(
                #[inline(always)]
                |y| rows[y][x] = column[y],
            );
        },
    ));
    with_points!(V, points[1], POINTS => unrolled::<V>(
        #[inline(always)]
        |y| {
            let row = V::input::<I, POINTS>(isa, rows[y]);
            unrolled::<V>(
                #[inline(always)]
                |x| store(y * V::TILE + x, row[x]),
            );
        },
    ));
}

/// A row of `U = G g Gᵀ` for `2 · LANES` pairs of channels: `load(tap)` is a weight, `store(x, u)` takes a position.
#[inline(always)]
pub(crate) fn filter_row<I: Int8, V: Variant, const ROW: usize>(
    isa: I,
    load: impl Fn(usize) -> I::Half,
    mut store: impl FnMut(usize, I::Half),
) {
    let columns = [
        V::filter_part::<I, ROW>(isa, [load(0), load(3), load(6)]),
        V::filter_part::<I, ROW>(isa, [load(1), load(4), load(7)]),
        V::filter_part::<I, ROW>(isa, [load(2), load(5), load(8)]),
    ];
    let row = V::filter(isa, columns);
    unrolled::<V>(
        #[inline(always)]
        |x| store(x, row[x]),
    );
}

/// The columns of `Aᵀ M`, by rows, for `LANES` channels of one tile, whose rows have so many points: `load(t)` is a
/// position, of which the one of the points 1 has `centre` too much.
#[inline(always)]
pub(crate) fn output_columns<I: Int8, V: Variant>(
    isa: I,
    points: usize,
    load: impl Fn(usize) -> I::Acc,
    centre: I::Acc,
) -> [[I::Acc; 6]; 4] {
    let mut rows = [[isa.zero(); 6]; 4];
    with_points!(V, points, POINTS => unrolled::<V>(
        #[inline(always)]
        |x| {
            let mut m = [isa.zero(); 6];
            unrolled::<V>(
                #[inline(always)]
                |y| m[y] = load(y * V::TILE + x),
            );
            if x == ONE {
                m[ONE] = isa.sub(m[ONE], centre);
            }
            let column = V::output::<I, POINTS>(isa, m);
            for y in 0..V::OUT {
                rows[y][x] = column[y];
            }
        },
    ));
    rows
}

/// The rows of `((Aᵀ M A) · q⁻¹) >> 2v, + bias` from [`output_columns`], which have so many points. `centre` was so
/// many [`Variant::raised`] of what `bias` adds back.
#[inline(always)]
pub(crate) fn output_rows<I: Int8, V: Variant>(
    isa: I,
    points: usize,
    columns: [[I::Acc; 6]; 4],
    bias: I::Acc,
) -> impl Fn(usize) -> [[I::Acc; 1]; 4] {
    #[inline(always)]
    move |y| {
        let row = columns[y];
        let sums = with_points!(V, points, POINTS => V::output::<I, POINTS>(isa, row));
        let mut out = [[isa.zero()]; 4];
        for x in 0..V::OUT {
            let scaled = if V::INVERSE == 1 { sums[x] } else { isa.scale(sums[x], V::INVERSE) };
            out[x] = [isa.add(isa.shift_right(scaled, V::SHIFT), bias)];
        }
        out
    }
}
