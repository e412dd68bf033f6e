use super::Isa;

/// What the `f32` kernels ask of an instruction set: one vector type and its arithmetic, and the
/// size of the register tile of a matrix product.
///
/// The tile has up to [`ROWS`](Self::ROWS) rows of two vectors: that many accumulators, two vectors
/// of the right operand and a broadcast of the left one fill the register file.
pub trait Float: Isa {
    /// `f32` values in a vector.
    const LANES: usize;
    /// Rows of the largest register tile, at most [`MAX_ROWS`].
    const ROWS: usize;
    /// A vector register.
    type Vector: Copy;

    /// `x` in every lane.
    fn splat(self, x: f32) -> Self::Vector;
    /// The first [`LANES`](Self::LANES) values of `x`.
    fn load(self, x: &[f32]) -> Self::Vector;
    /// Overwrites the first [`LANES`](Self::LANES) values of `target`.
    fn store(self, target: &mut [f32], x: Self::Vector);
    /// `a + b`.
    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    #[allow(dead_code)] // the transforms of Winograd follow
    /// `a − b`.
    fn sub(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a·b + c`; rounded once where the instruction set has a fused operation.
    fn mul_add(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
}

/// The most rows any [`Float::ROWS`] may name.
pub const MAX_ROWS: usize = 14;
