//! A matrix on both sides of a tile, of a vector of channels at a time.
// Matrices are indexed as the formulas write them.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use super::super::strip::Strip;
use super::lines::Lines;
use super::variant::{MOST_REACH, Variant};
use crate::simd::f32::Float;

/// Calls `put(u, v, (M·x·Mᵀ)[u][v])` for an `OUT`×`IN` matrix `M` that `line` multiplies a line by:
/// columns first, then rows. The first `inner` of a line in and the first `outer` of a line out exist.
/// What `between` holds does not matter: it is there so that no tile has to clear it.
#[inline(always)]
pub(super) fn both_sides<I: Float, const IN: usize, const OUT: usize>(
    isa: I,
    [inner, outer]: [usize; 2],
    between: &mut [[I::Vector; IN]; OUT],
    x: impl Fn(usize, usize) -> I::Vector,
    line: impl Fn([I::Vector; IN]) -> [I::Vector; OUT],
    mut put: impl FnMut(usize, usize, I::Vector),
) {
    for v in 0..inner {
        let mut column = [isa.splat(0.0); IN];
        for u in 0..inner {
            column[u] = x(u, v);
        }
        let column = line(column);
        for u in 0..outer {
            between[u][v] = column[u];
        }
    }
    for u in 0..outer {
        let row = line(between[u]);
        for v in 0..outer {
            put(u, v, row[v]);
        }
    }
}

/// Transforms some channels of the tiles under a strip of windows, `inner` taps high and wide, into the
/// places of a tile. The vector from a channel on, counted from the first, goes to `at(tile, channel)`.
#[inline(always)]
pub(super) fn tiles<I: Float, W: Variant, const IN: usize>(
    isa: I,
    strip: &Strip,
    channels: Range<usize>,
    inner: usize,
    line: impl Fn([I::Vector; IN]) -> [I::Vector; MOST_REACH] + Copy,
    places: &mut Lines<&mut [f32]>,
    at: impl Fn(usize, usize) -> usize,
) {
    let columns = strip.windows().columns;
    let pixel = strip.windows().size[2];
    let mut between = [[isa.splat(0.0); IN]; MOST_REACH];
    for row in 0..strip.len() {
        let (data, [step, len]) = strip.lines(row);
        let pixels = Lines::new(data, step, inner, len);
        for x in 0..columns {
            let first = x * W::STEP * pixel + channels.start;
            for channel in (0..channels.len()).step_by(I::LANES) {
                let at = at(row * columns + x, channel);
                both_sides(
                    isa,
                    [inner, W::REACH],
                    &mut between,
                    #[inline(always)]
                    |u, v| pixels.load(isa, u, first + v * pixel + channel),
                    line,
                    #[inline(always)]
                    |u, v, value| places.store(isa, u * W::REACH + v, at, value),
                );
            }
        }
    }
}
