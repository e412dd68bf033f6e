//! The transforms, of a vector of channels at a time.
// Matrices are indexed as the formulas write them.
#![allow(clippy::needless_range_loop)]

use super::{PLACES, REACH, STEP};
use crate::simd::f32::Float;

/// `Bᵀ·d·B`: `tile(u, v)` is the pixel at row `u`, column `v`.
#[inline(always)]
pub(super) fn pixels<I: Float>(
    isa: I,
    tile: impl Fn(usize, usize) -> I::Vector,
) -> [I::Vector; PLACES] {
    let mut rows = [[isa.splat(0.0); REACH]; REACH];
    for v in 0..REACH {
        let column = differences(isa, [tile(0, v), tile(1, v), tile(2, v), tile(3, v)]);
        for u in 0..REACH {
            rows[u][v] = column[u];
        }
    }
    let mut places = [isa.splat(0.0); PLACES];
    for u in 0..REACH {
        places[u * REACH..][..REACH].copy_from_slice(&differences(isa, rows[u]));
    }
    places
}

/// `Bᵀ·d`.
#[inline(always)]
fn differences<I: Float>(isa: I, d: [I::Vector; REACH]) -> [I::Vector; REACH] {
    [isa.sub(d[0], d[2]), isa.add(d[1], d[2]), isa.sub(d[2], d[1]), isa.sub(d[1], d[3])]
}

/// `Aᵀ·m·A`: the results of a tile, row by row.
#[inline(always)]
pub(super) fn results<I: Float>(
    isa: I,
    place: impl Fn(usize) -> I::Vector,
) -> [I::Vector; STEP * STEP] {
    let mut rows = [[isa.splat(0.0); REACH]; STEP];
    for v in 0..REACH {
        let [first, second] =
            sums(isa, [place(v), place(REACH + v), place(2 * REACH + v), place(3 * REACH + v)]);
        rows[0][v] = first;
        rows[1][v] = second;
    }
    let ([a, b], [c, d]) = (sums(isa, rows[0]), sums(isa, rows[1]));
    [a, b, c, d]
}

/// `Aᵀ·m`.
#[inline(always)]
fn sums<I: Float>(isa: I, m: [I::Vector; REACH]) -> [I::Vector; STEP] {
    let (sum, difference) = (isa.add(m[1], m[2]), isa.sub(m[1], m[2]));
    [isa.add(m[0], sum), isa.sub(difference, m[3])]
}

/// `A·dy·Aᵀ`: the gradients of a tile's results.
#[inline(always)]
pub(super) fn gradients<I: Float>(
    isa: I,
    result: impl Fn(usize, usize) -> I::Vector,
) -> [I::Vector; PLACES] {
    let left = spread(isa, [result(0, 0), result(1, 0)]);
    let right = spread(isa, [result(0, 1), result(1, 1)]);
    let mut places = [isa.splat(0.0); PLACES];
    for u in 0..REACH {
        places[u * REACH..][..REACH].copy_from_slice(&spread(isa, [left[u], right[u]]));
    }
    places
}

/// `A·dy`.
#[inline(always)]
fn spread<I: Float>(isa: I, y: [I::Vector; STEP]) -> [I::Vector; REACH] {
    [y[0], isa.add(y[0], y[1]), isa.sub(y[0], y[1]), isa.sub(isa.splat(0.0), y[1])]
}

/// `G·w·Gᵀ`: `tap(u, v)` of a filter.
#[inline(always)]
pub(super) fn filter<I: Float>(
    isa: I,
    tap: impl Fn(usize, usize) -> I::Vector,
) -> [I::Vector; PLACES] {
    let mut rows = [[isa.splat(0.0); 3]; REACH];
    for v in 0..3 {
        let column = means(isa, [tap(0, v), tap(1, v), tap(2, v)]);
        for u in 0..REACH {
            rows[u][v] = column[u];
        }
    }
    let mut places = [isa.splat(0.0); PLACES];
    for u in 0..REACH {
        places[u * REACH..][..REACH].copy_from_slice(&means(isa, rows[u]));
    }
    places
}

/// `G·w`.
#[inline(always)]
fn means<I: Float>(isa: I, w: [I::Vector; 3]) -> [I::Vector; REACH] {
    let [outer, middle] = [isa.add(w[0], w[2]), w[1]].map(
        #[inline(always)]
        |x| half(isa, x),
    );
    [w[0], isa.add(outer, middle), isa.sub(outer, middle), w[2]]
}

/// `Gᵀ·s·G`: the gradient of a filter, row by row, from the sums of its places.
#[inline(always)]
pub(super) fn filter_gradient<I: Float>(
    isa: I,
    place: impl Fn(usize) -> I::Vector,
) -> [I::Vector; 9] {
    let mut rows = [[isa.splat(0.0); REACH]; 3];
    for v in 0..REACH {
        let column =
            gather(isa, [place(v), place(REACH + v), place(2 * REACH + v), place(3 * REACH + v)]);
        for u in 0..3 {
            rows[u][v] = column[u];
        }
    }
    let mut taps = [isa.splat(0.0); 9];
    for u in 0..3 {
        taps[u * 3..][..3].copy_from_slice(&gather(isa, rows[u]));
    }
    taps
}

/// `Gᵀ·s`.
#[inline(always)]
fn gather<I: Float>(isa: I, s: [I::Vector; REACH]) -> [I::Vector; 3] {
    let sum = half(isa, isa.add(s[1], s[2]));
    let difference = half(isa, isa.sub(s[1], s[2]));
    [isa.add(s[0], sum), difference, isa.add(sum, s[3])]
}

#[inline(always)]
fn half<I: Float>(isa: I, x: I::Vector) -> I::Vector {
    isa.mul_add(isa.splat(0.5), x, isa.splat(0.0))
}
