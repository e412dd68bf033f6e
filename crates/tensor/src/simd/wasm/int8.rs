//! The integer operations of WebAssembly: vectors of four sums, `i32x4.dot_i16x8_s` for products.

use std::arch::wasm32::*;
use std::ops::RangeInclusive;

use super::Wasm;
use crate::conv::int8::{AddCodes, Grid};
use crate::simd::int8::{Int8, Product};

const LANES: usize = 4;

impl Int8 for Wasm {
    type Acc = v128;
    type Half = v128;
    const LANES: usize = LANES;
    type Bytes = WidenedBytes;
    type Narrow = Self::Bytes;
    type Words = Pairs;

    #[inline(always)]
    fn bytes(self) -> WidenedBytes {
        WidenedBytes(self)
    }
    fn winograd(self) -> RangeInclusive<usize> {
        32..=1024
    }
    #[inline(always)]
    fn words(self) -> Pairs {
        Pairs(self)
    }
    #[inline(always)]
    fn zero(self) -> v128 {
        i32x4_splat(0)
    }
    #[inline(always)]
    fn load(self, from: &[i32]) -> v128 {
        let from = &from[..LANES];
        // SAFETY: the slice has sixteen bytes.
        unsafe { v128_load(from.as_ptr().cast()) }
    }
    #[inline(always)]
    fn store(self, acc: v128, to: &mut [i32]) {
        let to = &mut to[..LANES];
        // SAFETY: the slice has sixteen bytes.
        unsafe { v128_store(to.as_mut_ptr().cast(), acc) }
    }
    #[inline(always)]
    fn add(self, a: v128, b: v128) -> v128 {
        i32x4_add(a, b)
    }
    #[inline(always)]
    fn sub(self, a: v128, b: v128) -> v128 {
        i32x4_sub(a, b)
    }
    #[inline(always)]
    fn scale(self, a: v128, k: i32) -> v128 {
        i32x4_mul(a, i32x4_splat(k))
    }
    #[inline(always)]
    fn shift_right(self, a: v128, n: u32) -> v128 {
        i32x4_shr(a, n)
    }
    #[inline(always)]
    fn requantize(self, acc: v128, multiplier: &[f32], grid: Grid) -> v128 {
        let multiplier = &multiplier[..LANES];
        // SAFETY: the slice has sixteen bytes.
        let multiplier = unsafe { v128_load(multiplier.as_ptr().cast()) };
        let scaled = f32x4_mul(f32x4_convert_i32x4(acc), multiplier);
        i32x4_add(round(scaled, grid.low, grid.high), i32x4_splat(grid.zero_point))
    }
    #[inline(always)]
    fn add_codes(self, codes: v128, other: &[u8], add: &AddCodes) -> v128 {
        // SIMD128 has no fused multiply-add that rounds once everywhere: the law, lane by lane.
        let sum = |a: i32, b: u8| i32::from(add.apply(a as u8, b));
        i32x4(
            sum(i32x4_extract_lane::<0>(codes), other[0]),
            sum(i32x4_extract_lane::<1>(codes), other[1]),
            sum(i32x4_extract_lane::<2>(codes), other[2]),
            sum(i32x4_extract_lane::<3>(codes), other[3]),
        )
    }
    #[inline(always)]
    fn load_codes(self, from: &[u8]) -> v128 {
        let from = &from[..LANES];
        // SAFETY: the slice has four bytes.
        let bytes = unsafe { v128_load32_zero(from.as_ptr().cast()) };
        u32x4_extend_low_u16x8(u16x8_extend_low_u8x16(bytes))
    }
    #[inline(always)]
    fn store_codes(self, codes: v128, to: &mut [u8]) {
        let to = &mut to[..LANES];
        let words = u16x8_narrow_i32x4(codes, codes);
        let bytes = u8x16_narrow_i16x8(words, words);
        // SAFETY: the slice has four bytes.
        unsafe { v128_store32_lane::<0>(bytes, to.as_mut_ptr().cast()) }
    }
    #[inline(always)]
    fn widen_codes(self, codes: &[u8]) -> v128 {
        let codes = &codes[..2 * LANES];
        // SAFETY: the slice has eight bytes.
        unsafe { i16x8_load_extend_u8x8(codes.as_ptr()) }
    }
    #[inline(always)]
    fn widen_weights(self, weights: &[i8]) -> v128 {
        let weights = &weights[..2 * LANES];
        // SAFETY: the slice has eight bytes.
        unsafe { i16x8_load_extend_i8x8(weights.as_ptr()) }
    }
    #[inline(always)]
    fn store_half(self, half: v128, to: &mut [i16]) {
        let to = &mut to[..2 * LANES];
        // SAFETY: the slice has sixteen bytes.
        unsafe { v128_store(to.as_mut_ptr().cast(), half) }
    }
    #[inline(always)]
    fn add_half(self, a: v128, b: v128) -> v128 {
        i16x8_add(a, b)
    }
    #[inline(always)]
    fn sub_half(self, a: v128, b: v128) -> v128 {
        i16x8_sub(a, b)
    }
    #[inline(always)]
    fn scale_half(self, a: v128, k: i16) -> v128 {
        i16x8_mul(a, i16x8_splat(k))
    }
    #[inline(always)]
    fn tap(self, acc: v128, x: &[u8], w: &[i32]) -> v128 {
        // The upper half of each x is zero, so that the pair sum is the one product.
        i32x4_add(acc, i32x4_dot_i16x8(self.load_codes(x), self.load(w)))
    }
}

/// Clamps and rounds half to even. `pmin(a, b)` is `b < a ? b : a`: `high` for NaN, as the law says.
#[inline(always)]
fn round(x: v128, low: f32, high: f32) -> v128 {
    let bounded = f32x4_pmax(f32x4_splat(low), f32x4_pmin(f32x4_splat(high), x));
    i32x4_trunc_sat_f32x4(f32x4_nearest(bounded))
}

macro_rules! product {
    ($(#[$doc:meta])* $name:ident by $w:ty, $load:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name(Wasm);

        impl Product for $name {
            type Isa = Wasm;
            type X = i16;
            type W = $w;
            const GROUP: usize = 2;
            const RAW: bool = false;
            // 12 sums, 2 weight vectors: engines map vectors to sixteen registers on x86-64.
            const ROWS: usize = 6;
            const VECTORS: usize = 2;

            #[inline(always)]
            fn isa(self) -> Wasm {
                self.0
            }
            #[inline(always)]
            fn encode(x: u8, zero: u8) -> i16 {
                i16::from(x) - i16::from(zero)
            }
            #[inline(always)]
            fn excess(_zero: u8) -> i32 {
                0
            }
            #[inline(always)]
            fn spin(self, acc: v128) -> v128 {
                i32x4_add(acc, i32x4_dot_i16x8(acc, acc))
            }
            #[inline(always)]
            unsafe fn step<const MR: usize, const NV: usize>(
                self,
                acc: &mut [[v128; NV]; MR],
                x: &[*const i16; MR],
                offset: usize,
                w: *const $w,
            ) {
                // SAFETY: the caller promises eight weights a vector and, in each row, two values,
                // which make the four bytes of one i32.
                unsafe {
                    let mut weights = [i32x4_splat(0); NV];
                    for (v, weight) in weights.iter_mut().enumerate() {
                        *weight = $load(w.add(2 * LANES * v).cast());
                    }
                    for i in 0..MR {
                        let pair = v128_load32_splat(x[i].add(offset).cast());
                        for v in 0..NV {
                            let products = i32x4_dot_i16x8(pair, weights[v]);
                            acc[i][v] = i32x4_add(acc[i][v], products);
                        }
                    }
                }
            }
        }
    };
}

product! {
    /// Words times bytes widened on load.
    WidenedBytes by i8, i16x8_load_extend_i8x8
}
product! {
    /// Words times words.
    Pairs by i16, v128_load
}
