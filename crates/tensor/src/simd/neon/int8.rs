//! The integer operations of AArch64: vectors of four sums, and a byte product for each token.
//!
//! | token | product of bytes | form of an activation |
//! | --- | --- | --- |
//! | `Neon` | `smlal`: four of i16 | `x − z` |
//! | `NeonDot` | `sdot`: sixteen of i8 | `x − 128` |
//! | `NeonI8mm` | `smmla`: thirty-two of i8 | `x − 128` |
//!
//! `sdot` and `smmla` are written as assembly: their intrinsics are not stable yet.

use std::arch::aarch64::*;
use std::arch::asm;
use std::ops::RangeInclusive;

use super::{Neon, NeonDot, NeonI8mm};
use crate::conv::int8::{AddCodes, Grid};
use crate::simd::int8::{Int8, Product};

const LANES: usize = 4;

macro_rules! vectors_of_four {
    ($token:ty, $bytes:ty, Winograd for $winograd:expr) => {
        impl Int8 for $token {
            type Acc = int32x4_t;
            type Half = int16x8_t;
            const LANES: usize = LANES;
            type Bytes = $bytes;
            type Narrow = Self::Bytes;
            type Words = Words<$token>;

            #[inline(always)]
            fn bytes(self) -> Self::Bytes {
                <$bytes>::new(self)
            }
            fn winograd(self) -> RangeInclusive<usize> {
                $winograd
            }
            #[inline(always)]
            fn words(self) -> Self::Words {
                Words(self)
            }
            #[inline(always)]
            fn zero(self) -> int32x4_t {
                // SAFETY: the token proves NEON.
                unsafe { vdupq_n_s32(0) }
            }
            #[inline(always)]
            fn load(self, from: &[i32]) -> int32x4_t {
                let from = &from[..LANES];
                // SAFETY: the token proves NEON; the slice has four values.
                unsafe { vld1q_s32(from.as_ptr()) }
            }
            #[inline(always)]
            fn store(self, acc: int32x4_t, to: &mut [i32]) {
                let to = &mut to[..LANES];
                // SAFETY: the token proves NEON; the slice has four values.
                unsafe { vst1q_s32(to.as_mut_ptr(), acc) }
            }
            #[inline(always)]
            fn add(self, a: int32x4_t, b: int32x4_t) -> int32x4_t {
                // SAFETY: the token proves NEON.
                unsafe { vaddq_s32(a, b) }
            }
            #[inline(always)]
            fn sub(self, a: int32x4_t, b: int32x4_t) -> int32x4_t {
                // SAFETY: the token proves NEON.
                unsafe { vsubq_s32(a, b) }
            }
            #[inline(always)]
            fn scale(self, a: int32x4_t, k: i32) -> int32x4_t {
                // SAFETY: the token proves NEON.
                unsafe { vmulq_n_s32(a, k) }
            }
            #[inline(always)]
            fn shift_right(self, a: int32x4_t, n: u32) -> int32x4_t {
                // SAFETY: the token proves NEON.
                unsafe { vshlq_s32(a, vdupq_n_s32(-(n as i32))) }
            }
            #[inline(always)]
            fn requantize(self, acc: int32x4_t, multiplier: &[f32], grid: Grid) -> int32x4_t {
                let multiplier = &multiplier[..LANES];
                // SAFETY: the token proves NEON; the slice has four values.
                unsafe {
                    let scaled = vmulq_f32(vcvtq_f32_s32(acc), vld1q_f32(multiplier.as_ptr()));
                    // The `nm` forms return the number where the other operand is NaN: `high`.
                    let bounded = vminnmq_f32(scaled, vdupq_n_f32(grid.high));
                    let clamped = vmaxnmq_f32(bounded, vdupq_n_f32(grid.low));
                    vaddq_s32(vcvtnq_s32_f32(clamped), vdupq_n_s32(grid.zero_point))
                }
            }
            #[inline(always)]
            fn add_codes(self, codes: int32x4_t, other: &[u8], add: &AddCodes) -> int32x4_t {
                let b = self.load_codes(other);
                // SAFETY: the token proves NEON.
                unsafe {
                    let (a, b) = (vcvtq_f32_s32(codes), vcvtq_f32_s32(b));
                    let b = vfmaq_f32(vdupq_n_f32(add.fixed), b, vdupq_n_f32(add.b_ratio));
                    let sum = vfmaq_f32(b, a, vdupq_n_f32(add.a_ratio));
                    let bounded = vminnmq_f32(sum, vdupq_n_f32(add.high.into()));
                    vcvtnq_s32_f32(vmaxnmq_f32(bounded, vdupq_n_f32(add.low.into())))
                }
            }
            #[inline(always)]
            fn load_codes(self, from: &[u8]) -> int32x4_t {
                let from: [u8; LANES] = from[..LANES].try_into().expect("four codes");
                // SAFETY: the token proves NEON.
                unsafe {
                    let bytes = vcreate_u8(u32::from_le_bytes(from).into());
                    vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes))))
                }
            }
            #[inline(always)]
            fn store_codes(self, codes: int32x4_t, to: &mut [u8]) {
                // SAFETY: the token proves NEON.
                let bytes = unsafe {
                    let words = vmovn_u32(vreinterpretq_u32_s32(codes));
                    let bytes = vmovn_u16(vcombine_u16(words, words));
                    vget_lane_u32::<0>(vreinterpret_u32_u8(bytes))
                };
                to[..LANES].copy_from_slice(&bytes.to_le_bytes());
            }
            #[inline(always)]
            fn widen_codes(self, codes: &[u8]) -> int16x8_t {
                let codes = &codes[..2 * LANES];
                // SAFETY: the token proves NEON; the slice has eight bytes.
                unsafe { vreinterpretq_s16_u16(vmovl_u8(vld1_u8(codes.as_ptr()))) }
            }
            #[inline(always)]
            fn widen_weights(self, weights: &[i8]) -> int16x8_t {
                let weights = &weights[..2 * LANES];
                // SAFETY: the token proves NEON; the slice has eight bytes.
                unsafe { vmovl_s8(vld1_s8(weights.as_ptr())) }
            }
            #[inline(always)]
            fn store_half(self, half: int16x8_t, to: &mut [i16]) {
                let to = &mut to[..2 * LANES];
                // SAFETY: the token proves NEON; the slice has eight values.
                unsafe { vst1q_s16(to.as_mut_ptr(), half) }
            }
            #[inline(always)]
            fn add_half(self, a: int16x8_t, b: int16x8_t) -> int16x8_t {
                // SAFETY: the token proves NEON.
                unsafe { vaddq_s16(a, b) }
            }
            #[inline(always)]
            fn sub_half(self, a: int16x8_t, b: int16x8_t) -> int16x8_t {
                // SAFETY: the token proves NEON.
                unsafe { vsubq_s16(a, b) }
            }
            #[inline(always)]
            fn scale_half(self, a: int16x8_t, k: i16) -> int16x8_t {
                // SAFETY: the token proves NEON.
                unsafe { vmulq_n_s16(a, k) }
            }
            #[inline(always)]
            fn tap(self, acc: int32x4_t, x: &[u8], w: &[i32]) -> int32x4_t {
                let (x, w) = (self.load_codes(x), self.load(w));
                // SAFETY: the token proves NEON.
                unsafe { vmlaq_s32(acc, x, w) }
            }
        }
    };
}

vectors_of_four!(Neon, WidenedBytes, Winograd for 32..=256);
vectors_of_four!(NeonDot, Quads, Winograd for usize::MAX..=usize::MAX);
vectors_of_four!(NeonI8mm, Octets, Winograd for usize::MAX..=usize::MAX);

/// `x − z` as i16.
#[inline(always)]
fn centred(x: u8, zero: u8) -> i16 {
    i16::from(x) - i16::from(zero)
}

/// `smlal` on words, weights widened on load.
///
/// Pairs of byte products in i16 (`smull`, `smlal2`, `sadalp`) would overflow for two products of
/// −128 by −128.
#[derive(Clone, Copy, Debug)]
pub struct WidenedBytes(Neon);

impl WidenedBytes {
    #[inline(always)]
    fn new(isa: Neon) -> Self {
        Self(isa)
    }
}

impl Product for WidenedBytes {
    type Isa = Neon;
    type X = i16;
    type W = i8;
    const GROUP: usize = 1;
    const RAW: bool = false;
    const ROWS: usize = 6;
    const VECTORS: usize = 4;

    #[inline(always)]
    fn isa(self) -> Neon {
        self.0
    }
    #[inline(always)]
    fn encode(x: u8, zero: u8) -> i16 {
        centred(x, zero)
    }
    #[inline(always)]
    fn excess(_zero: u8) -> i32 {
        0
    }
    #[inline(always)]
    fn spin(self, acc: int32x4_t) -> int32x4_t {
        // SAFETY: the token proves NEON.
        unsafe {
            let words = vget_low_s16(vreinterpretq_s16_s32(acc));
            vmlal_s16(acc, words, words)
        }
    }
    #[inline(always)]
    unsafe fn step<const MR: usize, const NV: usize>(
        self,
        acc: &mut [[int32x4_t; NV]; MR],
        x: &[*const i16; MR],
        offset: usize,
        w: *const i8,
    ) {
        // SAFETY: the token proves NEON; the caller promises four weights a vector and a value in
        // each row.
        unsafe {
            let mut weights = [vdup_n_s16(0); NV];
            for (v, weight) in weights.iter_mut().enumerate() {
                let bytes = w.add(LANES * v).cast::<u32>().read_unaligned();
                *weight = vget_low_s16(vmovl_s8(vcreate_s8(bytes.into())));
            }
            for i in 0..MR {
                let x = vld1_dup_s16(x[i].add(offset));
                for v in 0..NV {
                    acc[i][v] = vmlal_s16(acc[i][v], weights[v], x);
                }
            }
        }
    }
}

/// `smlal` on words.
#[derive(Clone, Copy, Debug)]
pub struct Words<I>(I);

impl<I: Int8<Acc = int32x4_t>> Product for Words<I> {
    type Isa = I;
    type X = i16;
    type W = i16;
    const GROUP: usize = 1;
    const RAW: bool = false;
    const ROWS: usize = 6;
    const VECTORS: usize = 4;

    #[inline(always)]
    fn isa(self) -> I {
        self.0
    }
    #[inline(always)]
    fn encode(x: u8, zero: u8) -> i16 {
        centred(x, zero)
    }
    #[inline(always)]
    fn excess(_zero: u8) -> i32 {
        0
    }
    #[inline(always)]
    fn spin(self, acc: int32x4_t) -> int32x4_t {
        // SAFETY: a token whose vectors are int32x4_t is one of this file and proves NEON.
        unsafe {
            let words = vget_low_s16(vreinterpretq_s16_s32(acc));
            vmlal_s16(acc, words, words)
        }
    }
    #[inline(always)]
    unsafe fn step<const MR: usize, const NV: usize>(
        self,
        acc: &mut [[int32x4_t; NV]; MR],
        x: &[*const i16; MR],
        offset: usize,
        w: *const i16,
    ) {
        // SAFETY: as in `spin`; the caller promises four weights a vector and a value in each row.
        unsafe {
            let mut weights = [vdup_n_s16(0); NV];
            for (v, weight) in weights.iter_mut().enumerate() {
                *weight = vld1_s16(w.add(LANES * v));
            }
            for i in 0..MR {
                let x = vld1_dup_s16(x[i].add(offset));
                for v in 0..NV {
                    acc[i][v] = vmlal_s16(acc[i][v], weights[v], x);
                }
            }
        }
    }
}

/// `x − 128` as i8: the form of `sdot` and `smmla`.
#[inline(always)]
fn biased(x: u8) -> i8 {
    (x ^ 0x80) as i8
}

/// `sdot` on codes shifted to i8.
#[derive(Clone, Copy, Debug)]
pub struct Quads(NeonDot);

impl Quads {
    #[inline(always)]
    fn new(isa: NeonDot) -> Self {
        Self(isa)
    }

    #[inline(always)]
    fn dot(self, mut acc: int32x4_t, x: int8x16_t, w: int8x16_t) -> int32x4_t {
        // SAFETY: the token proves dotprod; registers only.
        unsafe {
            asm!(
                "sdot {acc:v}.4s, {x:v}.16b, {w:v}.16b",
                acc = inout(vreg) acc, x = in(vreg) x, w = in(vreg) w,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        acc
    }
}

impl Product for Quads {
    type Isa = NeonDot;
    type X = i8;
    type W = i8;
    const GROUP: usize = 4;
    const RAW: bool = false;
    const ROWS: usize = 6;
    const VECTORS: usize = 4;

    #[inline(always)]
    fn isa(self) -> NeonDot {
        self.0
    }
    #[inline(always)]
    fn encode(x: u8, _zero: u8) -> i8 {
        biased(x)
    }
    #[inline(always)]
    fn excess(zero: u8) -> i32 {
        biased(zero).into()
    }
    #[inline(always)]
    fn spin(self, acc: int32x4_t) -> int32x4_t {
        // SAFETY: the token proves NEON.
        let bytes = unsafe { vreinterpretq_s8_s32(acc) };
        self.dot(acc, bytes, bytes)
    }
    #[inline(always)]
    unsafe fn step<const MR: usize, const NV: usize>(
        self,
        acc: &mut [[int32x4_t; NV]; MR],
        x: &[*const i8; MR],
        offset: usize,
        w: *const i8,
    ) {
        // SAFETY: the token proves NEON; the caller promises sixteen weights a vector and four codes
        // in each row.
        unsafe {
            let mut weights = [vdupq_n_s8(0); NV];
            for (v, weight) in weights.iter_mut().enumerate() {
                *weight = vld1q_s8(w.add(16 * v));
            }
            for i in 0..MR {
                let quad = x[i].add(offset).cast::<i32>().read_unaligned();
                let quad = vreinterpretq_s8_s32(vdupq_n_s32(quad));
                for v in 0..NV {
                    acc[i][v] = self.dot(acc[i][v], quad, weights[v]);
                }
            }
        }
    }
}

/// `smmla` on codes shifted to i8: two rows by two columns at a time.
#[derive(Clone, Copy, Debug)]
pub struct Octets(NeonI8mm);

impl Octets {
    #[inline(always)]
    fn new(isa: NeonI8mm) -> Self {
        Self(isa)
    }

    #[inline(always)]
    fn multiply(self, mut acc: int32x4_t, x: int8x16_t, w: int8x16_t) -> int32x4_t {
        // SAFETY: the token proves i8mm; registers only.
        unsafe {
            asm!(
                "smmla {acc:v}.4s, {x:v}.16b, {w:v}.16b",
                acc = inout(vreg) acc, x = in(vreg) x, w = in(vreg) w,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        acc
    }
}

impl Product for Octets {
    type Isa = NeonI8mm;
    type X = i8;
    type W = i8;
    const GROUP: usize = 8;
    const RAW: bool = false;
    const ROWS: usize = 6;
    const ROW_STEP: usize = 2;
    const VECTORS: usize = 4;

    #[inline(always)]
    fn isa(self) -> NeonI8mm {
        self.0
    }
    #[inline(always)]
    fn encode(x: u8, _zero: u8) -> i8 {
        biased(x)
    }
    #[inline(always)]
    fn excess(zero: u8) -> i32 {
        biased(zero).into()
    }
    #[inline(always)]
    fn spin(self, acc: int32x4_t) -> int32x4_t {
        // SAFETY: the token proves NEON.
        let bytes = unsafe { vreinterpretq_s8_s32(acc) };
        self.multiply(acc, bytes, bytes)
    }

    /// The sums of rows 2i and 2i + 1 with columns 0 1 are kept in row 2i, those with columns 2 3 in
    /// row 2i + 1, each as a 2×2 matrix: `finish` sorts them.
    #[inline(always)]
    unsafe fn step<const MR: usize, const NV: usize>(
        self,
        acc: &mut [[int32x4_t; NV]; MR],
        x: &[*const i8; MR],
        offset: usize,
        w: *const i8,
    ) {
        // SAFETY: the token proves NEON; the caller promises 32 weights a vector and eight codes in
        // each row, of which there is an even number.
        unsafe {
            let mut rows = [vdupq_n_s8(0); MR];
            for i in (0..MR).step_by(2) {
                rows[i] = vcombine_s8(vld1_s8(x[i].add(offset)), vld1_s8(x[i + 1].add(offset)));
            }
            for v in 0..NV {
                let left = vld1q_s8(w.add(32 * v));
                let right = vld1q_s8(w.add(32 * v + 16));
                for i in (0..MR).step_by(2) {
                    acc[i][v] = self.multiply(acc[i][v], rows[i], left);
                    acc[i + 1][v] = self.multiply(acc[i + 1][v], rows[i], right);
                }
            }
        }
    }

    #[inline(always)]
    fn start<const MR: usize, const NV: usize>(
        self,
        _bias: [int32x4_t; NV],
    ) -> [[int32x4_t; NV]; MR] {
        [[self.0.zero(); NV]; MR]
    }

    #[inline(always)]
    fn finish<const MR: usize, const NV: usize>(
        self,
        mut acc: [[int32x4_t; NV]; MR],
        bias: [int32x4_t; NV],
    ) -> [[int32x4_t; NV]; MR] {
        for i in (0..MR).step_by(2) {
            for v in 0..NV {
                let (left, right) = (acc[i][v], acc[i + 1][v]);
                // SAFETY: the token proves NEON.
                unsafe {
                    let upper = vcombine_s32(vget_low_s32(left), vget_low_s32(right));
                    let lower = vcombine_s32(vget_high_s32(left), vget_high_s32(right));
                    acc[i][v] = vaddq_s32(upper, bias[v]);
                    acc[i + 1][v] = vaddq_s32(lower, bias[v]);
                }
            }
        }
        acc
    }
}
