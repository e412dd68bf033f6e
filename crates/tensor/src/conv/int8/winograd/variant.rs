//! The matrices, and when each is exact.
//!
//! `s²·Y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A` with integer matrices. Additions and multiplications may wrap:
//! everything holds modulo 2³². With `s² = q · 2^{2v}`, `q` odd, the product with `q⁻¹` modulo 2³² is
//! `2^{2v}·Y`, and a shift to the right gives `Y` if `−2^{31−2v} ≤ Y < 2^{31−2v}`. The operands of the
//! word product must fit `i16`: `|V| ≤ max(P, M) · 255` for the sums `P`, `M` of positive and negative
//! coefficients of two rows of `Bᵀ`, and `|U| ≤ 128 · ‖gᵢ‖₁ ‖gⱼ‖₁`.

/// One set of points. Matrices are padded with zeros to six rows and columns.
pub(crate) trait Variant: Copy + Send + Sync + 'static {
    /// Rows and columns of an output tile.
    const OUT: usize;
    /// Rows and columns of an input tile.
    const TILE: usize;
    /// Transforms the input.
    const BT: [[i16; 6]; 6];
    /// Transforms the weights.
    const G: [[i16; 3]; 6];
    /// Transforms the products.
    const AT: [[i32; 6]; 4];
    /// `q⁻¹` modulo 2³².
    const INVERSE: i32;
    /// `2v`.
    const SHIFT: u32;

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

/// F(2×2): points 0, ±1, ∞; `s = 2`, so `q = 1`, `v = 1`. |V| ≤ 1 020, |U| ≤ 1 152.
#[derive(Clone, Copy)]
pub(crate) struct F2x2;

impl Variant for F2x2 {
    const OUT: usize = 2;
    const TILE: usize = 4;
    const BT: [[i16; 6]; 6] = [
        [1, 0, -1, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, -1, 1, 0, 0, 0],
        [0, 1, 0, -1, 0, 0],
        [0; 6],
        [0; 6],
    ];
    const G: [[i16; 3]; 6] = [[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2], [0; 3], [0; 3]];
    const AT: [[i32; 6]; 4] = [[1, 1, 1, 0, 0, 0], [0, 1, -1, -1, 0, 0], [0; 6], [0; 6]];
    const INVERSE: i32 = inverse(1);
    const SHIFT: u32 = 2;
}

/// F(4×4): points 0, ±1, ±2, ∞; `s = 24`, so `q = 9`, `v = 3`. |V| ≤ 17 340, |U| ≤ 18 432. Exact for
/// `Σ|w| ≤ 263 172`, which trained weights are far below.
#[derive(Clone, Copy)]
pub(crate) struct F4x4;

impl Variant for F4x4 {
    const OUT: usize = 4;
    const TILE: usize = 6;
    const BT: [[i16; 6]; 6] = [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ];
    const G: [[i16; 3]; 6] =
        [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 12]];
    const AT: [[i32; 6]; 4] =
        [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 2]];
    const INVERSE: i32 = inverse(9);
    const SHIFT: u32 = 6;
}

/// F(4×4): points 0, ±1, 2, −½, ∞, no three of which agree modulo 2; `s = 30`, so `q = 225`, `v = 1`.
/// |V| ≤ 24 990, |U| ≤ 28 800.
#[derive(Clone, Copy)]
pub(crate) struct F4x4Wide;

impl Variant for F4x4Wide {
    const OUT: usize = 4;
    const TILE: usize = 6;
    const BT: [[i16; 6]; 6] = [
        [2, 3, -4, -3, 2, 0],
        [0, 2, 5, 1, -2, 0],
        [0, 2, 1, -5, 2, 0],
        [0, -1, -2, 1, 2, 0],
        [0, -2, 1, 2, -1, 0],
        [0, 2, 3, -4, -3, 2],
    ];
    const G: [[i16; 3]; 6] = [[15, 0, 0], [5, 5, 5], [5, -5, 5], [1, 2, 4], [4, -2, 1], [0, 0, 15]];
    const AT: [[i32; 6]; 4] =
        [[1, 1, 1, 1, 8, 0], [0, 1, -1, 2, -4, 0], [0, 1, 1, 4, 2, 0], [0, 1, -1, 8, -1, 1]];
    const INVERSE: i32 = inverse(225);
    const SHIFT: u32 = 2;
}

/// `q⁻¹` modulo 2³² by Newton's iteration, which doubles the correct bits.
const fn inverse(q: u32) -> i32 {
    let mut x = q; // right modulo 8 for every odd q
    let mut i = 0;
    while i < 4 {
        x = x.wrapping_mul(2u32.wrapping_sub(q.wrapping_mul(x)));
        i += 1;
    }
    x as i32
}
