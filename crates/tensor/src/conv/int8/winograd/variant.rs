//! The matrices, and when each is exact.
//!
//! `s²·Y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A` with integer matrices. Additions and multiplications may wrap:
//! everything holds modulo 2³². With `s² = q · 2^{2v}`, `q` odd, the product with `q⁻¹` modulo 2³² is
//! `2^{2v}·Y`, and a shift to the right gives `Y` if `−2^{31−2v} ≤ Y < 2^{31−2v}`. The operands of the
//! word product must fit `i16`: `|V| ≤ max(P, M) · 255` for the sums `P`, `M` of positive and negative
//! coefficients of two rows of `Bᵀ`, and `|U| ≤ 128 · ‖gᵢ‖₁ ‖gⱼ‖₁`. `d` are raw codes: the zero-point is
//! taken out of the sums, by the bias.
//!
//! A tile of fewer outputs needs fewer points: with `n` outputs, any `n + 2` of them. The factors of `G` are those of
//! all points, so that filters are transformed once, and the same `s` stands before `Y`: what a point's weight
//! `s / Π(p − q)` over the other points `q` has more then, `Aᵀ` brings. So points are ordered 0, 1, −1, ∞ and then what
//! more outputs need.

use crate::simd::int8::Int8;

/// Points of the smallest tile, of two outputs.
pub(crate) const FEWEST: usize = 4;

/// The row and the column of the point 1, whose powers are all 1: it has one weight in all outputs.
pub(crate) const ONE: usize = 1;

/// The matrices that transform the input, for 4, 5 and 6 points.
type Inputs = [[[i16; 6]; 6]; 3];

/// The matrices that transform the products, for 4, 5 and 6 points.
type Outputs = [[[i32; 6]; 4]; 3];

/// One set of points. Matrices are padded with zeros to six rows and columns.
pub(crate) trait Variant: Copy + Send + Sync + 'static {
    /// Rows and columns of an output tile.
    const OUT: usize;
    /// Rows and columns of an input tile.
    const TILE: usize;
    /// Whether tiles of fewer outputs have fewer points.
    const TRIMMED: bool = Self::TILE > FEWEST;
    /// Transforms the input.
    const BT: Inputs;
    /// Transforms the weights.
    const G: [[i16; 3]; 6];
    /// Transforms the products.
    const AT: Outputs;
    /// `q⁻¹` modulo 2³².
    const INVERSE: i32;
    /// `2v`.
    const SHIFT: u32;

    /// `G g` of a column or a row of a filter.
    #[inline(always)]
    fn filter<I: Int8>(isa: I, g: [I::Half; 3]) -> [I::Half; 6] {
        half_product(isa, &Self::G, &g)
    }

    /// One value of [`filter`](Self::filter).
    #[inline(always)]
    fn filter_part<I: Int8, const ROW: usize>(isa: I, g: [I::Half; 3]) -> I::Half {
        // Multiplied at the end by what all coefficients have in common.
        let common = const { common(Self::G[ROW]) };
        let sum = half_sum(isa, const { &divided(Self::G[ROW]) }, &g);
        if common == 1 { sum } else { isa.scale_half(sum, common) }
    }

    /// `Bᵀ d` of a column or a row of an input tile.
    #[inline(always)]
    fn input<I: Int8, const POINTS: usize>(isa: I, d: [I::Half; 6]) -> [I::Half; 6] {
        half_product(isa, const { &Self::BT[POINTS - FEWEST] }, &d)
    }

    /// `Aᵀ m` of a column or a row of products.
    #[inline(always)]
    fn output<I: Int8, const POINTS: usize>(isa: I, m: [I::Acc; 6]) -> [I::Acc; 4] {
        product(isa, const { &Self::AT[POINTS - FEWEST] }, &m)
    }

    /// What the position of the points 1 needs for every output to have one more before its division by
    /// `q` and by 2^{2v}, modulo 2³².
    #[inline(always)]
    fn raised(points: [usize; 2]) -> i32 {
        let weights = points.map(|points| Self::AT[points - FEWEST][0][ONE]);
        let whole = inverse(Self::INVERSE as u32) << Self::SHIFT;
        weights.iter().fold(whole, |raised, &weight| raised.wrapping_mul(inverse(weight as u32)))
    }

    /// Whether the outputs of these OIHW weights, each centred in the interval that 8-bit codes let it
    /// reach, fit what the shift leaves.
    fn holds(weights: &[i8], shape: [usize; 4]) -> bool {
        let terms = shape[1] * shape[2] * shape[3];
        // The half of an interval of length 255·Σ|w| must stay below 2^{31−2v}.
        let limit = (1u64 << (32 - Self::SHIFT)) / 255;
        terms == 0
            || weights.chunks_exact(terms).all(|filter| {
                filter.iter().map(|w| u64::from(w.unsigned_abs())).sum::<u64>() < limit
            })
    }
}

/// A matrix times a vector.
#[inline(always)]
fn half_product<I: Int8, const N: usize>(
    isa: I,
    matrix: &[[i16; N]; 6],
    x: &[I::Half; N],
) -> [I::Half; 6] {
    let mut out = [x[0]; 6];
    for (sum, row) in out.iter_mut().zip(matrix) {
        *sum = half_sum(isa, row, x);
    }
    out
}

/// A row of a matrix times a vector: after unrolling, zeros vanish and small factors become shifts. (Loops, not
/// `map`: a closure that the standard library calls is not compiled for the instruction set.)
#[inline(always)]
fn half_sum<I: Int8, const N: usize>(isa: I, row: &[i16; N], x: &[I::Half; N]) -> I::Half {
    let mut sum = isa.widen_codes(&[0; 128]);
    for (&k, &x) in row.iter().zip(x) {
        sum = match k {
            0 => sum,
            1 => isa.add_half(sum, x),
            -1 => isa.sub_half(sum, x),
            k if k < 0 => isa.sub_half(sum, isa.scale_half(x, -k)),
            k => isa.add_half(sum, isa.scale_half(x, k)),
        };
    }
    sum
}

/// As [`half_product`], of sums.
#[inline(always)]
fn product<I: Int8>(isa: I, matrix: &[[i32; 6]; 4], x: &[I::Acc; 6]) -> [I::Acc; 4] {
    let mut out = [isa.zero(); 4];
    for (sum, row) in out.iter_mut().zip(matrix) {
        for (&k, &x) in row.iter().zip(x) {
            *sum = match k {
                0 => *sum,
                1 => isa.add(*sum, x),
                -1 => isa.sub(*sum, x),
                k if k < 0 => isa.sub(*sum, isa.scale(x, -k)),
                k => isa.add(*sum, isa.scale(x, k)),
            };
        }
    }
    out
}

/// The largest number that divides all coefficients.
const fn common(row: [i16; 3]) -> i16 {
    let mut divisor = 0;
    let mut i = 0;
    while i < row.len() {
        let (mut a, mut b) = (divisor, row[i].abs());
        while b != 0 {
            (a, b) = (b, a % b);
        }
        divisor = a;
        i += 1;
    }
    if divisor == 0 { 1 } else { divisor }
}

/// Coefficients divided by what they have in common.
const fn divided([a, b, c]: [i16; 3]) -> [i16; 3] {
    let common = common([a, b, c]);
    [a / common, b / common, c / common]
}

/// `Bᵀ` of the points 0, ±1, ∞.
const BT4: [[i16; 6]; 6] = [
    [1, 0, -1, 0, 0, 0],
    [0, 1, 1, 0, 0, 0],
    [0, -1, 1, 0, 0, 0],
    [0, -1, 0, 1, 0, 0],
    [0; 6],
    [0; 6],
];

/// `Bᵀ` of the points 0, ±1, ∞, 2.
const BT5: [[i16; 6]; 6] = [
    [2, -1, -2, 1, 0, 0],
    [0, 2, 1, -1, 0, 0],
    [0, -2, 3, -1, 0, 0],
    [0, 2, -1, -2, 1, 0],
    [0, -1, 0, 1, 0, 0],
    [0; 6],
];

/// F(2×2): points 0, ±1, ∞; `s = 2`, so `q = 1`, `v = 1`. |V| ≤ 1 020, |U| ≤ 1 152.
#[derive(Clone, Copy)]
pub(crate) struct F2x2;

impl Variant for F2x2 {
    const OUT: usize = 2;
    const TILE: usize = 4;
    const BT: Inputs = [BT4, [[0; 6]; 6], [[0; 6]; 6]];
    const G: [[i16; 3]; 6] = [[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2], [0; 3], [0; 3]];
    const AT: Outputs =
        [[[1, 1, 1, 0, 0, 0], [0, 1, -1, 1, 0, 0], [0; 6], [0; 6]], [[0; 6]; 4], [[0; 6]; 4]];
    const INVERSE: i32 = inverse(1);
    const SHIFT: u32 = 2;
}

/// F(4×4): points 0, ±1, ∞, ±2; `s = 24`, so `q = 9`, `v = 3`. |V| ≤ 17 340, |U| ≤ 18 432. Exact for
/// `Σ|w| < 263 172`, which trained weights are far below.
#[derive(Clone, Copy)]
pub(crate) struct F4x4;

impl Variant for F4x4 {
    const OUT: usize = 4;
    const TILE: usize = 6;
    const BT: Inputs = [
        BT4,
        BT5,
        [
            [4, 0, -5, 0, 1, 0],
            [0, 4, 4, -1, -1, 0],
            [0, -4, 4, 1, -1, 0],
            [0, 4, 0, -5, 0, 1],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
        ],
    ];
    const G: [[i16; 3]; 6] = [[6, 0, 0], [4, 4, 4], [4, -4, 4], [0, 0, 12], [1, 2, 4], [1, -2, 4]];
    const AT: Outputs = [
        [[4, 3, 3, 0, 0, 0], [0, 3, -3, 2, 0, 0], [0; 6], [0; 6]],
        [[2, 3, 1, 0, 4, 0], [0, 3, -1, 0, 8, 0], [0, 3, 1, 2, 16, 0], [0; 6]],
        [[1, 1, 1, 0, 1, 1], [0, 1, -1, 0, 2, -2], [0, 1, 1, 0, 4, 4], [0, 1, -1, 2, 8, -8]],
    ];
    const INVERSE: i32 = inverse(9);
    const SHIFT: u32 = 6;

    // The points are ± pairs: sums of even and of odd coefficients serve two rows each. The tests hold
    // these to the matrices.

    #[inline(always)]
    fn filter<I: Int8>(isa: I, [g0, g1, g2]: [I::Half; 3]) -> [I::Half; 6] {
        let even = isa.add_half(g0, g2);
        let even2 = isa.add_half(g0, isa.scale_half(g2, 4));
        let odd2 = isa.add_half(g1, g1);
        [
            isa.scale_half(g0, 6),
            isa.scale_half(isa.add_half(even, g1), 4),
            isa.scale_half(isa.sub_half(even, g1), 4),
            isa.scale_half(g2, 12),
            isa.add_half(even2, odd2),
            isa.sub_half(even2, odd2),
        ]
    }

    #[inline(always)]
    fn input<I: Int8, const POINTS: usize>(isa: I, d: [I::Half; 6]) -> [I::Half; 6] {
        if POINTS < Self::TILE {
            return half_product(isa, const { &Self::BT[POINTS - FEWEST] }, &d);
        }
        let [d0, d1, d2, d3, d4, d5] = d;
        let even = isa.sub_half(isa.scale_half(d2, 4), d4);
        let odd = isa.sub_half(isa.scale_half(d1, 4), d3);
        let even2 = isa.sub_half(d4, d2);
        let odd2 = isa.scale_half(isa.sub_half(d3, d1), 2);
        [
            isa.add_half(isa.scale_half(isa.sub_half(d0, d2), 4), even2),
            isa.add_half(even, odd),
            isa.sub_half(even, odd),
            isa.sub_half(isa.sub_half(d5, d3), isa.scale_half(odd2, 2)),
            isa.add_half(even2, odd2),
            isa.sub_half(even2, odd2),
        ]
    }

    #[inline(always)]
    fn output<I: Int8, const POINTS: usize>(isa: I, m: [I::Acc; 6]) -> [I::Acc; 4] {
        if POINTS < Self::TILE {
            return product(isa, const { &Self::AT[POINTS - FEWEST] }, &m);
        }
        let [m0, m1, m2, far, m3, m4] = m;
        let (even, odd) = (isa.add(m1, m2), isa.sub(m1, m2));
        let (even2, odd2) = (isa.add(m3, m4), isa.sub(m3, m4));
        [
            isa.add(isa.add(m0, even), even2),
            isa.add(odd, isa.scale(odd2, 2)),
            isa.add(even, isa.scale(even2, 4)),
            isa.add(isa.add(odd, isa.scale(far, 2)), isa.scale(odd2, 8)),
        ]
    }
}

/// F(4×4): points 0, ±1, ∞, 2, −½, no three of which agree modulo 2; `s = 30`, so `q = 225`, `v = 1`.
/// |V| ≤ 24 990, |U| ≤ 28 800.
#[derive(Clone, Copy)]
pub(crate) struct F4x4Wide;

impl Variant for F4x4Wide {
    const OUT: usize = 4;
    const TILE: usize = 6;
    const BT: Inputs = [
        BT4,
        BT5,
        [
            [2, 3, -4, -3, 2, 0],
            [0, 2, 5, 1, -2, 0],
            [0, 2, 1, -5, 2, 0],
            [0, 2, 3, -4, -3, 2],
            [0, -1, -2, 1, 2, 0],
            [0, -2, 1, 2, -1, 0],
        ],
    ];
    const G: [[i16; 3]; 6] = [[15, 0, 0], [5, 5, 5], [5, -5, 5], [0, 0, 15], [1, 2, 4], [4, -2, 1]];
    const AT: Outputs = [
        [[2, 3, 3, 0, 0, 0], [0, 3, -3, 2, 0, 0], [0; 6], [0; 6]],
        [[1, 3, 1, 0, 5, 0], [0, 3, -1, 0, 10, 0], [0, 3, 1, 2, 20, 0], [0; 6]],
        [[1, 1, 1, 0, 1, 8], [0, 1, -1, 0, 2, -4], [0, 1, 1, 0, 4, 2], [0, 1, -1, 1, 8, -1]],
    ];
    const INVERSE: i32 = inverse(225);
    const SHIFT: u32 = 2;
}

/// `q⁻¹` modulo 2³², `q` odd, by Newton's iteration, which doubles the correct bits.
const fn inverse(q: u32) -> i32 {
    let mut x = q; // right modulo 8 for every odd q
    let mut i = 0;
    while i < 4 {
        x = x.wrapping_mul(2u32.wrapping_sub(q.wrapping_mul(x)));
        i += 1;
    }
    x as i32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Isa, Scalar};

    /// `s · y = Aᵀ[(G g) ⊙ (Bᵀ d)]` for any number of points, whatever lies behind their pixels; and no transformed
    /// tile leaves `i16`.
    fn check_identity<V: Variant>(s: i64) {
        for points in FEWEST..=V::TILE {
            let (bt, at) = (V::BT[points - FEWEST], V::AT[points - FEWEST]);
            for i in 0..100 {
                let d: [i64; 6] = std::array::from_fn(|j| (i * 37 + j as i64 * 91) % 256);
                let g: [i64; 3] = std::array::from_fn(|j| (i * 53 + j as i64 * 17) % 256 - 128);
                let m: [i64; 6] = std::array::from_fn(|p| {
                    let u: i64 = V::G[p].iter().zip(g).map(|(&k, g)| i64::from(k) * g).sum();
                    u * bt[p].iter().zip(d).map(|(&k, d)| i64::from(k) * d).sum::<i64>()
                });
                for (y, row) in at.iter().enumerate().take(points - 2) {
                    let scaled: i64 = row.iter().zip(m).map(|(&k, m)| i64::from(k) * m).sum();
                    let sum: i64 = g.iter().zip(&d[y..]).map(|(g, d)| g * d).sum();
                    assert_eq!(scaled, s * sum, "output {y} of {points} points");
                }
            }
            let part = |row: [i16; 6], sign: i64| -> i64 {
                row.iter().map(|&k| (sign * i64::from(k)).max(0)).sum()
            };
            for (a, b) in bt.iter().flat_map(|&a| bt.map(|b| (a, b))) {
                for sign in [1, -1] {
                    let sum = part(a, 1) * part(b, sign) + part(a, -1) * part(b, -sign);
                    assert!(255 * sum <= i16::MAX.into(), "{points} points: {sum}");
                }
            }
        }
    }

    #[test]
    fn every_number_of_points_is_exact() {
        check_identity::<F2x2>(2);
        check_identity::<F4x4>(24);
        check_identity::<F4x4Wide>(30);
    }

    fn check_raised<V: Variant>() {
        for points in (FEWEST..=V::TILE).flat_map(|y| (FEWEST..=V::TILE).map(move |x| [y, x])) {
            let [rows, columns] = points.map(|points| &V::AT[points - FEWEST][..points - 2]);
            for weight in rows.iter().flat_map(|row| columns.iter().map(|c| row[ONE] * c[ONE])) {
                let gained = V::raised(points).wrapping_mul(weight).wrapping_mul(V::INVERSE);
                assert_eq!(gained, 1 << V::SHIFT, "{points:?}");
            }
        }
    }

    #[test]
    fn the_points_one_raise_all_outputs_alike() {
        check_raised::<F2x2>();
        check_raised::<F4x4>();
        check_raised::<F4x4Wide>();
    }

    fn check_filter_parts<V: Variant>() {
        const LANES: usize = <Scalar as Int8>::LANES;
        let isa = Scalar::detect().expect("always there");
        for i in 0..200 {
            let g: [i16; 3] = std::array::from_fn(|j| ((i * 37 + j * 91) % 256) as i16 - 128);
            let x = g.map(|g| [g; 2 * LANES]);
            let parts = [
                V::filter_part::<_, 0>(isa, x),
                V::filter_part::<_, 1>(isa, x),
                V::filter_part::<_, 2>(isa, x),
                V::filter_part::<_, 3>(isa, x),
                V::filter_part::<_, 4>(isa, x),
                V::filter_part::<_, 5>(isa, x),
            ];
            let expected = V::G.map(|row| row.iter().zip(g).map(|(&k, g)| k * g).sum());
            assert_eq!(parts.map(|part| part[0]), expected, "{g:?}");
        }
    }

    #[test]
    fn values_of_a_filter_one_by_one_are_those_of_its_matrix() {
        check_filter_parts::<F2x2>();
        check_filter_parts::<F4x4>();
        check_filter_parts::<F4x4Wide>();
    }

    #[test]
    fn factored_transforms_equal_their_matrices() {
        const LANES: usize = <Scalar as Int8>::LANES;
        let isa = Scalar::detect().expect("always there");
        fn row<const N: usize>(matrix: &[[i16; N]; 6], x: &[i16; N]) -> [i16; 6] {
            matrix.map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum())
        }
        for i in 0..200 {
            let x: [i16; 6] = std::array::from_fn(|j| ((i * 37 + j * 91) % 256) as i16 - 128);
            let g = [x[0], x[1], x[2]];
            let first = |v: [[i16; 2 * LANES]; 6]| v.map(|v| v[0]);
            assert_eq!(
                first(F4x4::input::<_, 6>(isa, x.map(|x| [x; 2 * LANES]))),
                row(&F4x4::BT[2], &x)
            );
            assert_eq!(first(F4x4::filter(isa, g.map(|x| [x; 2 * LANES]))), row(&F4x4::G, &g));
            let m = x.map(|x| i32::from(x) * 70_001);
            let y = F4x4::output::<_, 6>(isa, m.map(|x| [x; LANES])).map(|y| y[0]);
            let expected = F4x4::AT[2].map(|row| {
                row.iter().zip(&m).fold(0i32, |sum, (a, b)| sum.wrapping_add(a.wrapping_mul(*b)))
            });
            assert_eq!(y, expected);
        }
    }
}
