//! The integer operations of x86-64: 256-bit vectors, 512-bit vectors.

mod amx;
mod avx2;
mod avx512;

/// How an image holds a code: raw bytes, or words without the zero point.
mod image {
    #[inline(always)]
    pub(super) fn u8(x: u8, _zero: u8) -> u8 {
        x
    }
    #[inline(always)]
    pub(super) fn i16(x: u8, zero: u8) -> i16 {
        i16::from(x) - i16::from(zero)
    }
}
