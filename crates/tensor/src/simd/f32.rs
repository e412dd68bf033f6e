//! What `f32` kernels ask of an instruction set, and the choice among those that differ in it.

#[cfg(target_arch = "x86_64")]
use super::Avx2;
#[cfg(all(target_arch = "x86_64", feature = "avx512"))]
use super::Avx512;
use super::{Isa, Level, Scalar};

/// What the `f32` kernels ask of an instruction set: one vector type and its arithmetic, and the
/// size of the register tile of a matrix product.
///
/// A tile of two vectors has up to [`ROWS`](Self::ROWS) rows: that many accumulators, two vectors of the right
/// operand and a broadcast of the left one fill the register file.
pub trait Float: Isa {
    /// `f32` values in a vector.
    const LANES: usize;
    /// Rows of the largest register tile of two vectors, at most [`MAX_ROWS`].
    const ROWS: usize;
    /// Rows of the largest register tile of one vector, at most [`MAX_ROWS`].
    const NARROW_ROWS: usize;
    /// Rows of the largest register tile of four vectors, if that has fewer loads to a multiplication than two
    /// vectors have; else zero, and no panel is so wide.
    const WIDE_ROWS: usize = 0;
    /// The most columns of the left operand that a tile of a matrix product goes along at a time, at most
    /// [`MAX_DEPTH`].
    const DEPTH: usize = 512;
    /// How many values ahead a tile asks for its right operand, unless zero: where a step of the tile
    /// has loads to spare, and reads more than the cache's own foresight brings.
    const AHEAD: usize = 0;
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
    /// `a − b`.
    fn sub(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a·b + c`; rounded once where the instruction set has a fused operation.
    fn mul_add(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// The lanes of `x` whose bits are set, the first lane's the lowest, and zeros in the place of the others,
    /// whatever they hold. Bits beyond the lanes do not matter.
    fn keep(self, x: Self::Vector, bits: u32) -> Self::Vector;
}

/// The most rows a tile may have on any instruction set.
pub const MAX_ROWS: usize = 16;

/// The most columns of the left operand on any instruction set.
pub const MAX_DEPTH: usize = 1024;

/// A [`Level`] as `f32` kernels see it: byte dot products add nothing to them, so that they are
/// compiled once for all sets with the same vectors.
#[derive(Clone, Copy)]
pub(crate) enum FloatLevel {
    Scalar(Scalar),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(all(target_arch = "x86_64", feature = "avx512"))]
    Avx512(Avx512),
    #[cfg(target_arch = "aarch64")]
    Neon(super::Neon),
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    Wasm(super::Wasm),
}

impl From<Level> for FloatLevel {
    fn from(level: Level) -> Self {
        match level {
            Level::Scalar(isa) => Self::Scalar(isa),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(isa) => Self::Avx2(isa),
            #[cfg(all(target_arch = "x86_64", feature = "avxvnni"))]
            Level::AvxVnni(isa) => Self::Avx2(isa.into()),
            #[cfg(all(target_arch = "x86_64", feature = "avx512"))]
            Level::Avx512(isa) => Self::Avx512(isa),
            #[cfg(all(target_arch = "x86_64", feature = "avx512"))]
            Level::Avx512Vnni(isa) => Self::Avx512(isa.into()),
            #[cfg(all(target_arch = "x86_64", feature = "amx"))]
            Level::Amx(isa) => Self::Avx512(isa.into()),
            #[cfg(target_arch = "aarch64")]
            Level::Neon(isa) => Self::Neon(isa),
            #[cfg(target_arch = "aarch64")]
            Level::NeonDot(isa) => Self::Neon(isa.into()),
            #[cfg(target_arch = "aarch64")]
            Level::NeonI8mm(isa) => Self::Neon(isa.into()),
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
            Level::Wasm(isa) => Self::Wasm(isa),
        }
    }
}

/// As `dispatch!`, for `f32` kernels.
macro_rules! dispatch_f32 {
    ($level:expr, $isa:ident => $body:expr) => {
        dispatch_f32!(@ $level, $isa => $body;
            Scalar,
            #[cfg(target_arch = "x86_64")] Avx2,
            #[cfg(all(target_arch = "x86_64", feature = "avx512"))] Avx512,
            #[cfg(target_arch = "aarch64")] Neon,
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))] Wasm)
    };
    (@ $level:expr, $isa:ident => $body:expr; $($(#[$cfg:meta])* $variant:ident),*) => {
        match $crate::simd::f32::FloatLevel::from($level) {
            $(
                $(#[$cfg])*
                $crate::simd::f32::FloatLevel::$variant($isa) => {
                    $crate::simd::Isa::enter($isa, #[inline(always)] || $body)
                }
            )*
        }
    };
}
pub(crate) use dispatch_f32;
