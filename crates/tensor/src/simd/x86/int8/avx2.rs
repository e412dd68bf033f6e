//! 256-bit vectors: `vpmaddwd` on AVX2, `vpdpbusd` where the CPU has AVX-VNNI.
//!
//! `vpmaddubsw` would saturate, 2·255·127 > 32 767: only weights of 4 bits are multiplied with it.

use std::arch::x86_64::*;
use std::ops::RangeInclusive;

use super::image;
use crate::conv::int8::{AddCodes, Grid};
use crate::simd::int8::{Int8, Product};
use crate::simd::x86::{Avx2, AvxVnni};

/// A vector of sums, of weights, of copies of a group.
type Vector = __m256i;
const LANES: usize = 8;
/// Tiles of 12 sums, 2 weight vectors, 1 broadcast, 1 product: 16 registers.
const TILE: [usize; 2] = [6, 2];

macro_rules! vectors_of_eight {
    ($token:ty, $bytes:ty, $narrow:ty, $words:ty, Winograd for $winograd:expr) => {
        impl Int8 for $token {
            type Acc = __m256i;
            type Half = __m256i;
            const LANES: usize = LANES;
            type Bytes = $bytes;
            type Narrow = $narrow;
            type Words = $words;

            #[inline(always)]
            fn bytes(self) -> Self::Bytes {
                <$bytes>::new(self)
            }
            #[inline(always)]
            fn narrow(self) -> Option<$narrow> {
                <$narrow>::narrow(self)
            }
            fn winograd(self) -> RangeInclusive<usize> {
                $winograd
            }
            #[inline(always)]
            fn words(self) -> Self::Words {
                <$words>::new(self)
            }
            #[inline(always)]
            fn zero(self) -> __m256i {
                // SAFETY: the token proves AVX2.
                unsafe { _mm256_setzero_si256() }
            }
            #[inline(always)]
            fn load(self, from: &[i32]) -> __m256i {
                let from = &from[..LANES];
                // SAFETY: the token proves AVX2; the slice has 32 bytes.
                unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
            }
            #[inline(always)]
            fn store(self, acc: __m256i, to: &mut [i32]) {
                let to = &mut to[..LANES];
                // SAFETY: the token proves AVX2; the slice has 32 bytes.
                unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), acc) }
            }
            #[inline(always)]
            fn add(self, a: __m256i, b: __m256i) -> __m256i {
                // SAFETY: the token proves AVX2.
                unsafe { _mm256_add_epi32(a, b) }
            }
            #[inline(always)]
            fn requantize(self, acc: __m256i, multiplier: &[f32], grid: Grid) -> __m256i {
                let multiplier = &multiplier[..LANES];
                // SAFETY: the token proves AVX2; the slice has 32 bytes.
                unsafe {
                    let scaled = _mm256_mul_ps(
                        _mm256_cvtepi32_ps(acc),
                        _mm256_loadu_ps(multiplier.as_ptr()),
                    );
                    // The second operand of min is returned for NaN: `high`, as `Grid::code`.
                    let clamped = _mm256_max_ps(
                        _mm256_min_ps(scaled, _mm256_set1_ps(grid.high)),
                        _mm256_set1_ps(grid.low),
                    );
                    // vcvtps2dq rounds half to even: Rust never changes MXCSR.
                    _mm256_add_epi32(
                        _mm256_cvtps_epi32(clamped),
                        _mm256_set1_epi32(grid.zero_point),
                    )
                }
            }
            #[inline(always)]
            fn add_codes(self, codes: __m256i, other: &[u8], add: &AddCodes) -> __m256i {
                let other = &other[..LANES];
                // SAFETY: the token proves AVX2 and FMA; the slice has 8 bytes.
                unsafe {
                    let a = _mm256_cvtepi32_ps(codes);
                    let b = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(
                        other.as_ptr().cast(),
                    )));
                    let b =
                        _mm256_fmadd_ps(b, _mm256_set1_ps(add.b_ratio), _mm256_set1_ps(add.fixed));
                    let sum = _mm256_fmadd_ps(a, _mm256_set1_ps(add.a_ratio), b);
                    _mm256_cvtps_epi32(_mm256_max_ps(
                        _mm256_min_ps(sum, _mm256_set1_ps(add.high.into())),
                        _mm256_set1_ps(add.low.into()),
                    ))
                }
            }
            #[inline(always)]
            fn load_codes(self, from: &[u8]) -> __m256i {
                let from = &from[..LANES];
                // SAFETY: the token proves AVX2; the slice has 8 bytes.
                unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.as_ptr().cast())) }
            }
            #[inline(always)]
            fn store_codes(self, codes: __m256i, to: &mut [u8]) {
                let to = &mut to[..LANES];
                // SAFETY: the token proves AVX2; the slice has 8 bytes.
                unsafe {
                    let words = _mm_packus_epi32(
                        _mm256_castsi256_si128(codes),
                        _mm256_extracti128_si256::<1>(codes),
                    );
                    _mm_storel_epi64(to.as_mut_ptr().cast(), _mm_packus_epi16(words, words));
                }
            }
            #[inline(always)]
            fn store_row<const NV: usize>(self, codes: [__m256i; NV], to: &mut [u8]) {
                if NV != 2 {
                    for (v, codes) in codes.into_iter().enumerate() {
                        self.store_codes(codes, &mut to[v * LANES..]);
                    }
                    return;
                }
                let to = &mut to[..2 * LANES];
                // SAFETY: the token proves AVX2; the slice has 16 bytes. The packs leave quarters
                // a0 b0 in the lower and a1 b1 in the upper half.
                unsafe {
                    let words = _mm256_packus_epi32(codes[0], codes[1]);
                    let bytes = _mm256_packus_epi16(words, words);
                    let order = _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5);
                    let bytes = _mm256_permutevar8x32_epi32(bytes, order);
                    _mm_storeu_si128(to.as_mut_ptr().cast(), _mm256_castsi256_si128(bytes));
                }
            }
            #[inline(always)]
            fn store_column(self, codes: [__m256i; 4], to: [&mut [u8]; 4]) {
                let [a, b, c, d] = codes;
                // SAFETY: the token proves AVX2.
                unsafe {
                    let [ab, cd] = [_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d)];
                    store_packed(_mm256_packus_epi16(ab, cd), to);
                }
            }
            #[inline(always)]
            fn requantize_column(
                self,
                acc: [__m256i; 4],
                multiplier: &[f32],
                grid: Grid,
                to: [&mut [u8]; 4],
            ) {
                let multiplier = &multiplier[..LANES];
                // The upper bound is taken in f32, so that no value beyond i32 becomes i32::MIN; what
                // lies far below the lower one saturates on the way to bytes.
                // SAFETY: the token proves AVX2; the slice has 32 bytes.
                unsafe {
                    let multiplier = _mm256_loadu_ps(multiplier.as_ptr());
                    let mut words = acc;
                    for word in &mut words {
                        let scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(*word), multiplier);
                        let bounded = _mm256_min_ps(scaled, _mm256_set1_ps(grid.high));
                        *word = _mm256_cvtps_epi32(bounded);
                    }
                    let zero_point = _mm256_set1_epi16(grid.zero_point as i16);
                    let low = _mm256_set1_epi8(grid.lowest as i8);
                    let ab = _mm256_packs_epi32(words[0], words[1]);
                    let ab = _mm256_adds_epi16(ab, zero_point);
                    let cd = _mm256_packs_epi32(words[2], words[3]);
                    let cd = _mm256_adds_epi16(cd, zero_point);
                    store_packed(_mm256_max_epu8(_mm256_packus_epi16(ab, cd), low), to);
                }
            }
            #[inline(always)]
            fn sub(self, a: __m256i, b: __m256i) -> __m256i {
                // SAFETY: the token proves AVX2.
                unsafe { _mm256_sub_epi32(a, b) }
            }
            #[inline(always)]
            fn scale(self, a: __m256i, k: i32) -> __m256i {
                // SAFETY: the token proves AVX2.
                unsafe { _mm256_mullo_epi32(a, _mm256_set1_epi32(k)) }
            }
            #[inline(always)]
            fn shift_right(self, a: __m256i, n: u32) -> __m256i {
                // SAFETY: the token proves AVX2.
                unsafe { _mm256_srav_epi32(a, _mm256_set1_epi32(n as i32)) }
            }
            #[inline(always)]
            fn widen_codes(self, codes: &[u8]) -> __m256i {
                let codes = &codes[..2 * LANES];
                // SAFETY: the token proves AVX2; the slice has 16 bytes.
                unsafe { _mm256_cvtepu8_epi16(_mm_loadu_si128(codes.as_ptr().cast())) }
            }
            #[inline(always)]
            fn widen_weights(self, weights: &[i8]) -> __m256i {
                let weights = &weights[..2 * LANES];
                // SAFETY: the token proves AVX2; the slice has 16 bytes.
                unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(weights.as_ptr().cast())) }
            }
            #[inline(always)]
            fn store_half(self, half: __m256i, to: &mut [i16]) {
                let to = &mut to[..2 * LANES];
                // SAFETY: the token proves AVX2; the slice has 16 words.
                unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), half) }
            }
            #[inline(always)]
            fn add_half(self, a: __m256i, b: __m256i) -> __m256i {
                // SAFETY: the token proves AVX2.
                unsafe { _mm256_add_epi16(a, b) }
            }
            #[inline(always)]
            fn sub_half(self, a: __m256i, b: __m256i) -> __m256i {
                // SAFETY: the token proves AVX2.
                unsafe { _mm256_sub_epi16(a, b) }
            }
            #[inline(always)]
            fn scale_half(self, a: __m256i, k: i16) -> __m256i {
                // SAFETY: the token proves AVX2.
                unsafe { _mm256_mullo_epi16(a, _mm256_set1_epi16(k)) }
            }
            #[inline(always)]
            fn tap(self, acc: __m256i, x: &[u8], w: &[i32]) -> __m256i {
                let (x, w) = (self.load_codes(x), self.load(w));
                // SAFETY: the token proves AVX2. The upper half of each x is zero, so that the pair
                // sum of vpmaddwd is the one product: cheaper than vpmulld.
                unsafe { _mm256_add_epi32(acc, _mm256_madd_epi16(x, w)) }
            }
        }
    };
}

/// Writes four vectors of codes, packed twice within each half: quarters `a0 b0 c0 d0 a1 b1 c1 d1`.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn store_packed(codes: __m256i, to: [&mut [u8]; 4]) {
    let [a, b, c, d] = to.map(|to| to[..LANES].as_mut_ptr());
    // SAFETY: the caller's promise; each slice has 8 bytes.
    unsafe {
        let (first, second) = (_mm256_castsi256_si128(codes), _mm256_extracti128_si256::<1>(codes));
        let ab = _mm_castsi128_pd(_mm_unpacklo_epi32(first, second));
        let cd = _mm_castsi128_pd(_mm_unpackhi_epi32(first, second));
        _mm_storel_pd(a.cast(), ab);
        _mm_storeh_pd(b.cast(), ab);
        _mm_storel_pd(c.cast(), cd);
        _mm_storeh_pd(d.cast(), cd);
    }
}

vectors_of_eight!(Avx2, WidenedBytes<Avx2>, Nibbles, Pairs<Avx2>, Winograd for 16..=1024);
vectors_of_eight!(AvxVnni, Quads<AvxVnni>, Quads<AvxVnni>, DotPairs<AvxVnni>, Winograd for 64..=256);

macro_rules! copies {
    ($group:expr) => {
        _mm256_set1_epi32($group)
    };
}
macro_rules! load {
    ($pointer:expr) => {
        _mm256_loadu_si256($pointer.cast())
    };
}
macro_rules! load_widened {
    ($pointer:expr) => {
        _mm256_cvtepi8_epi16(_mm_loadu_si128($pointer.cast()))
    };
}
macro_rules! multiply_then_add {
    ($acc:expr, $x:expr, $w:expr) => {
        _mm256_add_epi32($acc, _mm256_madd_epi16($x, $w))
    };
}
macro_rules! dot_pairs {
    ($acc:expr, $x:expr, $w:expr) => {
        _mm256_dpwssd_avx_epi32($acc, $x, $w)
    };
}
macro_rules! dot_quads {
    ($acc:expr, $x:expr, $w:expr) => {
        _mm256_dpbusd_avx_epi32($acc, $x, $w)
    };
}

/// The tokens of this file: each proves AVX2.
pub trait Wide: Int8<Acc = __m256i> {}
impl Wide for Avx2 {}
impl Wide for AvxVnni {}
/// Those that prove VNNI too.
pub trait Dot: Wide {}
impl Dot for AvxVnni {}

product! {
    /// `vpmovsxbw` + `vpmaddwd` + `vpaddd`: activations are `x − z` as i16, weights stay bytes in
    /// memory. No pair sum leaves i32: that takes four times −32 768.
    WidenedBytes<Wide>: i16 by i8, groups of 2, load_widened, multiply_then_add
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

impl Quads<AvxVnni> {
    /// Narrow weights are no faster.
    #[inline(always)]
    fn narrow(_isa: AvxVnni) -> Option<Self> {
        None
    }
}

/// `vpmaddubsw` + `vpaddw` on raw codes, for weights of −8..=8: half the multiplications of
/// [`WidenedBytes`].
///
/// A pair of products is at most 2·255·8 = 4080, and eight such fit `i16`: 32 640. Then they are added
/// to the sums in `i32`.
#[derive(Clone, Copy, Debug)]
pub struct Nibbles(Avx2);

/// Steps whose pairs are added in `i16`.
const PAIRS: usize = 8;

impl Nibbles {
    #[inline(always)]
    fn narrow(isa: Avx2) -> Option<Self> {
        Some(Self(isa))
    }
}

impl Product for Nibbles {
    type Isa = Avx2;
    type X = u8;
    type W = i8;
    const GROUP: usize = 4;
    const RAW: bool = true;
    const ROWS: usize = 6;
    const VECTORS: usize = 2;

    #[inline(always)]
    fn isa(self) -> Avx2 {
        self.0
    }
    #[inline(always)]
    fn encode(x: u8, _zero: u8) -> u8 {
        x
    }
    #[inline(always)]
    fn excess(zero: u8) -> i32 {
        zero.into()
    }
    #[inline(always)]
    fn spin(self, acc: __m256i) -> __m256i {
        // SAFETY: the token proves the instructions.
        unsafe { _mm256_add_epi16(acc, _mm256_maddubs_epi16(acc, acc)) }
    }
    #[inline(always)]
    unsafe fn step<const MR: usize, const NV: usize>(
        self,
        acc: &mut [[__m256i; NV]; MR],
        x: &[*const u8; MR],
        offset: usize,
        w: *const i8,
    ) {
        // SAFETY: the caller's promise.
        unsafe { self.steps(acc, x, offset, w, 1) }
    }
    #[inline(always)]
    unsafe fn steps<const MR: usize, const NV: usize>(
        self,
        acc: &mut [[__m256i; NV]; MR],
        x: &[*const u8; MR],
        offset: usize,
        w: *const i8,
        steps: usize,
    ) {
        // SAFETY: the token proves AVX2; the caller promises, for each step, NV·32 weights and four
        // codes in each row.
        unsafe {
            let ones = _mm256_set1_epi16(1);
            for first in (0..steps).step_by(PAIRS) {
                let mut pairs = [[_mm256_setzero_si256(); NV]; MR];
                for step in first..steps.min(first + PAIRS) {
                    let w = w.add(step * NV * 32);
                    let mut weights = [ones; NV];
                    for (v, weight) in weights.iter_mut().enumerate() {
                        *weight = _mm256_loadu_si256(w.add(32 * v).cast());
                    }
                    for i in 0..MR {
                        let at = x[i].add(offset + step * 4);
                        let quad = _mm256_set1_epi32(at.cast::<i32>().read_unaligned());
                        for v in 0..NV {
                            let products = _mm256_maddubs_epi16(quad, weights[v]);
                            pairs[i][v] = _mm256_add_epi16(pairs[i][v], products);
                        }
                    }
                }
                for i in 0..MR {
                    for v in 0..NV {
                        let sums = _mm256_madd_epi16(pairs[i][v], ones);
                        acc[i][v] = _mm256_add_epi32(acc[i][v], sums);
                    }
                }
            }
        }
    }
}
