//! The matrices of each tile size, as what they do to a line of a tile.

use crate::simd::f32::Float;

/// The most pixels of a line.
pub(super) const MOST_REACH: usize = 6;

/// The most results of a line.
pub(super) const MOST_STEP: usize = 4;

/// A line of pixels or of places, padded with what nobody reads.
type Long<I> = [<I as Float>::Vector; MOST_REACH];

/// A line of results, padded likewise.
type Short<I> = [<I as Float>::Vector; MOST_STEP];

/// A line of a filter.
type Taps<I> = [<I as Float>::Vector; 3];

/// Winograd's algorithm for one tile size.
pub(super) trait Variant: Copy + Send + Sync + 'static {
    /// Rows and columns of results of a tile.
    const STEP: usize;
    /// Rows and columns of pixels of a tile.
    const REACH: usize;
    /// Places of a transformed tile.
    const PLACES: usize = Self::REACH * Self::REACH;
    /// Input channels to sum at a time: those of a panel stay in the L1 cache beside a tile, and longer sums
    /// round more.
    const DEPTH: usize;
    /// Tiles to use a panel of weights for, at the least.
    const TILES: usize;
    /// Tiles to sum before sums are added to those of others, at the least.
    const SUMMED: usize;

    /// `Bᵀ·d`.
    fn pixels<I: Float>(isa: I, d: Long<I>) -> Long<I>;
    /// `Aᵀ·m`.
    fn results<I: Float>(isa: I, m: Long<I>) -> Short<I>;
    /// `A·y`.
    fn spread<I: Float>(isa: I, y: Short<I>) -> Long<I>;
    /// `G·w`.
    fn filter<I: Float>(isa: I, w: Taps<I>) -> Long<I>;
    /// `Gᵀ·s`.
    fn gather<I: Float>(isa: I, s: Long<I>) -> Taps<I>;
}

/// F(2×2): points 0, ±1, ∞. The matrices hold 0, ±1 and ½ alone: the result is rounded like a sum taken
/// in another order.
#[derive(Clone, Copy)]
pub(super) struct F2x2;

impl Variant for F2x2 {
    const STEP: usize = 2;
    const REACH: usize = 4;
    const DEPTH: usize = 256;
    const TILES: usize = 64;
    const SUMMED: usize = 96;

    #[inline(always)]
    fn pixels<I: Float>(isa: I, [d0, d1, d2, d3, ..]: Long<I>) -> Long<I> {
        let none = isa.splat(0.0);
        [isa.sub(d0, d2), isa.add(d1, d2), isa.sub(d2, d1), isa.sub(d1, d3), none, none]
    }

    #[inline(always)]
    fn results<I: Float>(isa: I, [m0, m1, m2, m3, ..]: Long<I>) -> Short<I> {
        let none = isa.splat(0.0);
        let (sum, difference) = (isa.add(m1, m2), isa.sub(m1, m2));
        [isa.add(m0, sum), isa.sub(difference, m3), none, none]
    }

    #[inline(always)]
    fn spread<I: Float>(isa: I, [y0, y1, ..]: Short<I>) -> Long<I> {
        let none = isa.splat(0.0);
        [y0, isa.add(y0, y1), isa.sub(y0, y1), isa.sub(none, y1), none, none]
    }

    #[inline(always)]
    fn filter<I: Float>(isa: I, [w0, w1, w2]: Taps<I>) -> Long<I> {
        let none = isa.splat(0.0);
        let (outer, middle) = (times(isa, 0.5, isa.add(w0, w2)), times(isa, 0.5, w1));
        [w0, isa.add(outer, middle), isa.sub(outer, middle), w2, none, none]
    }

    #[inline(always)]
    fn gather<I: Float>(isa: I, [s0, s1, s2, s3, ..]: Long<I>) -> Taps<I> {
        let sum = times(isa, 0.5, isa.add(s1, s2));
        let difference = times(isa, 0.5, isa.sub(s1, s2));
        [isa.add(s0, sum), difference, isa.add(sum, s3)]
    }
}

/// F(4×4): points 0, ±¾, ±3⁄2, ∞, so that powers of no point grow or shrink much, and all coefficients
/// but those of the filter are exact. Rounding errors are one and a half to three times a direct sum's;
/// those of the usual points 0, ±1, ±2 five to eight times.
#[derive(Clone, Copy)]
pub(super) struct F4x4;

/// The points, and their squares.
const A: f32 = 0.75;
const B: f32 = 1.5;
const A2: f32 = A * A;
const B2: f32 = B * B;

/// The reciprocal of each point's distances to the others, multiplied.
const SCALE_0: f32 = 1.0 / (A2 * B2);
const SCALE_A: f32 = 1.0 / (2.0 * A2 * (A2 - B2));
const SCALE_B: f32 = 1.0 / (2.0 * B2 * (B2 - A2));

impl Variant for F4x4 {
    const STEP: usize = 4;
    const REACH: usize = 6;
    const DEPTH: usize = 64;
    const TILES: usize = 42;
    const SUMMED: usize = 42;

    #[inline(always)]
    fn pixels<I: Float>(isa: I, [d0, d1, d2, d3, d4, d5]: Long<I>) -> Long<I> {
        let [a, minus_a] = pair(isa, A, plus(isa, d4, -B2, d2), plus(isa, d3, -B2, d1));
        let [b, minus_b] = pair(isa, B, plus(isa, d4, -A2, d2), plus(isa, d3, -A2, d1));
        let first = plus(isa, plus(isa, d4, -A2 - B2, d2), A2 * B2, d0);
        let last = plus(isa, plus(isa, d5, -A2 - B2, d3), A2 * B2, d1);
        [first, a, minus_a, b, minus_b, last]
    }

    #[inline(always)]
    fn results<I: Float>(isa: I, [m0, m1, m2, m3, m4, m5]: Long<I>) -> Short<I> {
        let (even_a, odd_a) = (isa.add(m1, m2), isa.sub(m1, m2));
        let (even_b, odd_b) = (isa.add(m3, m4), isa.sub(m3, m4));
        [
            isa.add(isa.add(m0, even_a), even_b),
            plus(isa, times(isa, A, odd_a), B, odd_b),
            plus(isa, times(isa, A2, even_a), B2, even_b),
            plus(isa, plus(isa, m5, A * A2, odd_a), B * B2, odd_b),
        ]
    }

    #[inline(always)]
    fn spread<I: Float>(isa: I, [y0, y1, y2, y3]: Short<I>) -> Long<I> {
        let [a, minus_a] = pair(isa, A, plus(isa, y0, A2, y2), plus(isa, y1, A2, y3));
        let [b, minus_b] = pair(isa, B, plus(isa, y0, B2, y2), plus(isa, y1, B2, y3));
        [y0, a, minus_a, b, minus_b, y3]
    }

    #[inline(always)]
    fn filter<I: Float>(isa: I, [w0, w1, w2]: Taps<I>) -> Long<I> {
        let [even_a, even_b] = [plus(isa, w0, A2, w2), plus(isa, w0, B2, w2)];
        let [a, minus_a] = pair(isa, SCALE_A * A, times(isa, SCALE_A, even_a), w1);
        let [b, minus_b] = pair(isa, SCALE_B * B, times(isa, SCALE_B, even_b), w1);
        [times(isa, SCALE_0, w0), a, minus_a, b, minus_b, w2]
    }

    #[inline(always)]
    fn gather<I: Float>(isa: I, [s0, s1, s2, s3, s4, s5]: Long<I>) -> Taps<I> {
        let (even_a, even_b) =
            (times(isa, SCALE_A, isa.add(s1, s2)), times(isa, SCALE_B, isa.add(s3, s4)));
        let (odd_a, odd_b) =
            (times(isa, SCALE_A, isa.sub(s1, s2)), times(isa, SCALE_B, isa.sub(s3, s4)));
        [
            plus(isa, isa.add(even_a, even_b), SCALE_0, s0),
            plus(isa, times(isa, A, odd_a), B, odd_b),
            plus(isa, plus(isa, s5, A2, even_a), B2, even_b),
        ]
    }
}

/// `factor·x`.
#[inline(always)]
fn times<I: Float>(isa: I, factor: f32, x: I::Vector) -> I::Vector {
    plus(isa, isa.splat(0.0), factor, x)
}

/// `sum + factor·x`.
#[inline(always)]
fn plus<I: Float>(isa: I, sum: I::Vector, factor: f32, x: I::Vector) -> I::Vector {
    isa.mul_add(isa.splat(factor), x, sum)
}

/// What even and odd powers make of a point and of its opposite: `even ± point·odd`.
#[inline(always)]
fn pair<I: Float>(isa: I, point: f32, even: I::Vector, odd: I::Vector) -> [I::Vector; 2] {
    [plus(isa, even, point, odd), plus(isa, even, -point, odd)]
}
