//! 512-bit vectors: `vpmaddwd` on AVX-512BW, `vpdpbusd` and `vpdpwssd` with VNNI.

use std::arch::x86_64::*;
use std::ops::RangeInclusive;

use super::amx::Tiles;
use super::image;
use crate::conv::int8::{AddCodes, Grid};
use crate::cpu;
use crate::simd::int8::{Int8, Product};
use crate::simd::x86::{Amx, Avx512, Avx512Vnni};

/// A vector of sums, of weights, of copies of a group.
type Vector = __m512i;
const LANES: usize = 16;
/// Tiles of 24 sums, 4 weight vectors; 4 registers to spare.
const TILE: [usize; 2] = [6, 4];

macro_rules! vectors_of_sixteen {
    ($token:ty, $bytes:ty, $words:ty, Winograd for $winograd:expr) => {
        impl Int8 for $token {
            type Acc = __m512i;
            type Half = __m512i;
            const LANES: usize = LANES;
            type Bytes = $bytes;
            type Narrow = Self::Bytes;
            type Words = $words;

            #[inline(always)]
            fn bytes(self) -> Self::Bytes {
                <$bytes>::new(self)
            }
            fn winograd(self) -> RangeInclusive<usize> {
                $winograd
            }
            #[inline(always)]
            fn words(self) -> Self::Words {
                <$words>::new(self)
            }
            #[inline(always)]
            fn zero(self) -> __m512i {
                // SAFETY: the token proves AVX-512F.
                unsafe { _mm512_setzero_si512() }
            }
            #[inline(always)]
            fn load(self, from: &[i32]) -> __m512i {
                let from = &from[..LANES];
                // SAFETY: the token proves AVX-512F; the slice has 64 bytes.
                unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
            }
            #[inline(always)]
            fn store(self, acc: __m512i, to: &mut [i32]) {
                let to = &mut to[..LANES];
                // SAFETY: the token proves AVX-512F; the slice has 64 bytes.
                unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), acc) }
            }
            #[inline(always)]
            fn add(self, a: __m512i, b: __m512i) -> __m512i {
                // SAFETY: the token proves AVX-512F.
                unsafe { _mm512_add_epi32(a, b) }
            }
            #[inline(always)]
            fn requantize(self, acc: __m512i, multiplier: &[f32], grid: Grid) -> __m512i {
                let multiplier = &multiplier[..LANES];
                // SAFETY: the token proves AVX-512F; the slice has 64 bytes.
                unsafe {
                    let scaled = _mm512_mul_ps(
                        _mm512_cvtepi32_ps(acc),
                        _mm512_loadu_ps(multiplier.as_ptr()),
                    );
                    // The second operand of min is returned for NaN: `high`, as `Grid::code`.
                    let clamped = _mm512_max_ps(
                        _mm512_min_ps(scaled, _mm512_set1_ps(grid.high)),
                        _mm512_set1_ps(grid.low),
                    );
                    // vcvtps2dq rounds half to even: Rust never changes MXCSR.
                    _mm512_add_epi32(
                        _mm512_cvtps_epi32(clamped),
                        _mm512_set1_epi32(grid.zero_point),
                    )
                }
            }
            #[inline(always)]
            fn add_codes(self, codes: __m512i, other: &[u8], add: &AddCodes) -> __m512i {
                let b = self.load_codes(other);
                // SAFETY: the token proves AVX-512F.
                unsafe {
                    let (a, b) = (_mm512_cvtepi32_ps(codes), _mm512_cvtepi32_ps(b));
                    let b =
                        _mm512_fmadd_ps(b, _mm512_set1_ps(add.b_ratio), _mm512_set1_ps(add.fixed));
                    let sum = _mm512_fmadd_ps(a, _mm512_set1_ps(add.a_ratio), b);
                    _mm512_cvtps_epi32(_mm512_max_ps(
                        _mm512_min_ps(sum, _mm512_set1_ps(add.high.into())),
                        _mm512_set1_ps(add.low.into()),
                    ))
                }
            }
            #[inline(always)]
            fn load_codes(self, from: &[u8]) -> __m512i {
                let from = &from[..LANES];
                // SAFETY: the token proves AVX-512F; the slice has 16 bytes.
                unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(from.as_ptr().cast())) }
            }
            #[inline(always)]
            fn store_codes(self, codes: __m512i, to: &mut [u8]) {
                let to = &mut to[..LANES];
                // SAFETY: the token proves AVX-512F; the slice has 16 bytes.
                unsafe {
                    _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(codes));
                }
            }
            #[inline(always)]
            fn store_row<const NV: usize>(self, codes: [__m512i; NV], to: &mut [u8]) {
                if NV != 4 && NV != 2 {
                    for (v, codes) in codes.into_iter().enumerate() {
                        self.store_codes(codes, &mut to[v * LANES..]);
                    }
                    return;
                }
                // SAFETY: the token proves AVX-512BW.
                unsafe {
                    let ab = _mm512_packs_epi32(codes[0], codes[1]);
                    let cd = _mm512_packs_epi32(codes[NV - 2], codes[NV - 1]);
                    store_packed::<NV>(_mm512_packus_epi16(ab, cd), to);
                }
            }
            #[inline(always)]
            fn requantize_row<const NV: usize>(
                self,
                acc: [__m512i; NV],
                multiplier: &[f32],
                grid: Grid,
                to: &mut [u8],
            ) {
                if NV != 4 && NV != 2 {
                    for (v, acc) in acc.into_iter().enumerate() {
                        let codes = self.requantize(acc, &multiplier[v * LANES..], grid);
                        self.store_codes(codes, &mut to[v * LANES..]);
                    }
                    return;
                }
                let multiplier = &multiplier[..NV * LANES];
                // The upper bound is taken in f32, so that no value beyond i32 becomes i32::MIN; what
                // lies far below the lower one saturates on the way to bytes.
                // SAFETY: the token proves AVX-512BW; the slice has NV·16 floats.
                unsafe {
                    let mut words = [_mm512_setzero_si512(); NV];
                    for v in 0..NV {
                        let multiplier = _mm512_loadu_ps(multiplier.as_ptr().add(v * LANES));
                        let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[v]), multiplier);
                        let bounded = _mm512_min_ps(scaled, _mm512_set1_ps(grid.high));
                        words[v] = _mm512_cvtps_epi32(bounded);
                    }
                    let zero_point = _mm512_set1_epi16(grid.zero_point as i16);
                    let low = _mm512_set1_epi8(grid.lowest as i8);
                    let ab = _mm512_packs_epi32(words[0], words[1]);
                    let ab = _mm512_adds_epi16(ab, zero_point);
                    let cd = _mm512_packs_epi32(words[NV - 2], words[NV - 1]);
                    let cd = _mm512_adds_epi16(cd, zero_point);
                    store_packed::<NV>(_mm512_max_epu8(_mm512_packus_epi16(ab, cd), low), to);
                }
            }
            #[inline(always)]
            fn sub(self, a: __m512i, b: __m512i) -> __m512i {
                // SAFETY: the token proves AVX-512BW.
                unsafe { _mm512_sub_epi32(a, b) }
            }
            #[inline(always)]
            fn scale(self, a: __m512i, k: i32) -> __m512i {
                // SAFETY: the token proves AVX-512BW.
                unsafe { _mm512_mullo_epi32(a, _mm512_set1_epi32(k)) }
            }
            #[inline(always)]
            fn shift_right(self, a: __m512i, n: u32) -> __m512i {
                // SAFETY: the token proves AVX-512BW.
                unsafe { _mm512_srav_epi32(a, _mm512_set1_epi32(n as i32)) }
            }
            #[inline(always)]
            fn widen_codes(self, codes: &[u8]) -> __m512i {
                let codes = &codes[..2 * LANES];
                // SAFETY: the token proves AVX-512BW; the slice has 32 bytes.
                unsafe { _mm512_cvtepu8_epi16(_mm256_loadu_si256(codes.as_ptr().cast())) }
            }
            #[inline(always)]
            fn widen_weights(self, weights: &[i8]) -> __m512i {
                let weights = &weights[..2 * LANES];
                // SAFETY: the token proves AVX-512BW; the slice has 32 bytes.
                unsafe { _mm512_cvtepi8_epi16(_mm256_loadu_si256(weights.as_ptr().cast())) }
            }
            #[inline(always)]
            fn store_half(self, half: __m512i, to: &mut [i16]) {
                let to = &mut to[..2 * LANES];
                // SAFETY: the token proves AVX-512BW; the slice has 32 words.
                unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), half) }
            }
            #[inline(always)]
            fn add_half(self, a: __m512i, b: __m512i) -> __m512i {
                // SAFETY: the token proves AVX-512BW.
                unsafe { _mm512_add_epi16(a, b) }
            }
            #[inline(always)]
            fn sub_half(self, a: __m512i, b: __m512i) -> __m512i {
                // SAFETY: the token proves AVX-512BW.
                unsafe { _mm512_sub_epi16(a, b) }
            }
            #[inline(always)]
            fn scale_half(self, a: __m512i, k: i16) -> __m512i {
                // SAFETY: the token proves AVX-512BW.
                unsafe { _mm512_mullo_epi16(a, _mm512_set1_epi16(k)) }
            }
            #[inline(always)]
            fn tap(self, acc: __m512i, x: &[u8], w: &[i32]) -> __m512i {
                let (x, w) = (self.load_codes(x), self.load(w));
                // SAFETY: the token proves AVX-512BW. The upper half of each x is zero, so that the
                // pair sum of vpmaddwd is the one product: cheaper than vpmulld.
                unsafe { _mm512_add_epi32(acc, _mm512_madd_epi16(x, w)) }
            }
        }
    };
}

vectors_of_sixteen!(Avx512, WidenedBytes<Avx512>, Pairs<Avx512>, Winograd for 32..=1024);
// Zen 4 runs 256 channels of 14×14 pixels by Winograd 1.34 times as fast as directly; Xeons are slower that way.
vectors_of_sixteen!(Avx512Vnni, Quads<Avx512Vnni>, DotPairs<Avx512Vnni>,
    Winograd for 64..=if cpu::is_amd() { 256 } else { 128 });
// Nothing beats tiles of bytes: more channels than any layer has.
vectors_of_sixteen!(Amx, Tiles, DotPairs<Amx>, Winograd for usize::MAX..=usize::MAX);

/// Writes the bytes of `NV` vectors (two or four) in their order: packing leaves the quarters of a 4×4
/// matrix transposed, which two vectors fill twice.
///
/// # Safety
/// The CPU has AVX-512BW.
#[inline(always)]
unsafe fn store_packed<const NV: usize>(bytes: __m512i, to: &mut [u8]) {
    let to = &mut to[..NV * LANES];
    // SAFETY: the caller's promise; the slice has NV·16 bytes.
    unsafe {
        if NV == 2 {
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 0, 0, 0, 0, 0, 0, 0);
            let bytes = _mm512_castsi512_si256(_mm512_permutexvar_epi32(order, bytes));
            _mm256_storeu_si256(to.as_mut_ptr().cast(), bytes);
        } else {
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            let bytes = _mm512_permutexvar_epi32(order, bytes);
            _mm512_storeu_si512(to.as_mut_ptr().cast(), bytes);
        }
    }
}

/// The tokens of this file: each proves AVX-512 (F, BW, DQ, VL).
pub trait Wide: Int8<Acc = __m512i> {}
impl Wide for Avx512 {}
impl Wide for Avx512Vnni {}
impl Wide for Amx {}
/// Those that prove VNNI too.
pub trait Dot: Wide {}
impl Dot for Avx512Vnni {}
impl Dot for Amx {}

macro_rules! copies {
    ($group:expr) => {
        _mm512_set1_epi32($group)
    };
}
macro_rules! load {
    ($pointer:expr) => {
        _mm512_loadu_si512($pointer.cast())
    };
}
macro_rules! loadned {
    ($pointer:expr) => {
        _mm512_cvtepi8_epi16(_mm256_loadu_si256($pointer.cast()))
    };
}
macro_rules! multiply_then_add {
    ($acc:expr, $x:expr, $w:expr) => {
        _mm512_add_epi32($acc, _mm512_madd_epi16($x, $w))
    };
}
macro_rules! dot_pairs {
    ($acc:expr, $x:expr, $w:expr) => {
        _mm512_dpwssd_epi32($acc, $x, $w)
    };
}
macro_rules! dot_quads {
    ($acc:expr, $x:expr, $w:expr) => {
        _mm512_dpbusd_epi32($acc, $x, $w)
    };
}

product! {
    /// `vpmovsxbw` + `vpmaddwd` + `vpaddd`: words times bytes widened on load.
    WidenedBytes<Wide>: i16 by i8, groups of 2, loadned, multiply_then_add
}
product! {
    /// `vpmaddwd` + `vpaddd` on i16 panels.
    Pairs<Wide>: i16 by i16, groups of 2, load, multiply_then_add
}
product! {
    /// `vpdpbusd` on raw codes; not the saturating `vpdpbusds`.
    Quads<Dot>: u8 by i8, groups of 4, load, dot_quads
}
product! {
    /// `vpdpwssd` on i16 panels.
    DotPairs<Dot>: i16 by i16, groups of 2, load, dot_pairs
}
