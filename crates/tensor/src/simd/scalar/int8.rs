//! The integer operations in plain Rust. The byte product is that of VNNI, value by value, so that
//! layout and driver of those CPUs are exercised on every machine.

use std::ops::RangeInclusive;

use super::Scalar;
use crate::conv::int8::{AddCodes, Grid};
use crate::simd::int8::{Int8, Product};

/// As many as the plainest vectors have, which compilers use here: wider ones spill.
const LANES: usize = 4;

impl Int8 for Scalar {
    type Acc = [i32; LANES];
    type Half = [i16; 2 * LANES];
    const LANES: usize = LANES;
    type Bytes = Quads<4, 2>;
    type Narrow = Self::Bytes;
    type Words = Pairs;

    #[inline(always)]
    fn bytes(self) -> Self::Bytes {
        Quads(self)
    }
    fn winograd(self) -> RangeInclusive<usize> {
        32..=1024
    }
    #[inline(always)]
    fn words(self) -> Pairs {
        Pairs(self)
    }
    #[inline(always)]
    fn zero(self) -> Self::Acc {
        [0; LANES]
    }
    #[inline(always)]
    fn load(self, from: &[i32]) -> Self::Acc {
        std::array::from_fn(|i| from[i])
    }
    #[inline(always)]
    fn store(self, acc: Self::Acc, to: &mut [i32]) {
        to[..LANES].copy_from_slice(&acc);
    }
    #[inline(always)]
    fn add(self, a: Self::Acc, b: Self::Acc) -> Self::Acc {
        std::array::from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    fn requantize(self, acc: Self::Acc, multiplier: &[f32], grid: Grid) -> Self::Acc {
        std::array::from_fn(|i| grid.code(acc[i], multiplier[i]).into())
    }
    #[inline(always)]
    fn add_codes(self, codes: Self::Acc, other: &[u8], add: &AddCodes) -> Self::Acc {
        std::array::from_fn(|i| add.apply(codes[i] as u8, other[i]).into())
    }
    #[inline(always)]
    fn load_codes(self, from: &[u8]) -> Self::Acc {
        std::array::from_fn(|i| from[i].into())
    }
    #[inline(always)]
    fn store_codes(self, codes: Self::Acc, to: &mut [u8]) {
        for (to, code) in to[..LANES].iter_mut().zip(codes) {
            *to = code as u8;
        }
    }
    #[inline(always)]
    fn sub(self, a: Self::Acc, b: Self::Acc) -> Self::Acc {
        std::array::from_fn(|i| a[i].wrapping_sub(b[i]))
    }
    #[inline(always)]
    fn scale(self, a: Self::Acc, k: i32) -> Self::Acc {
        a.map(|a| a.wrapping_mul(k))
    }
    #[inline(always)]
    fn shift_right(self, a: Self::Acc, n: u32) -> Self::Acc {
        a.map(|a| a >> n)
    }
    #[inline(always)]
    fn widen_codes(self, codes: &[u8]) -> Self::Half {
        std::array::from_fn(|i| codes[i].into())
    }
    #[inline(always)]
    fn widen_weights(self, weights: &[i8]) -> Self::Half {
        std::array::from_fn(|i| weights[i].into())
    }
    #[inline(always)]
    fn store_half(self, half: Self::Half, to: &mut [i16]) {
        to[..2 * LANES].copy_from_slice(&half);
    }
    #[inline(always)]
    fn add_half(self, a: Self::Half, b: Self::Half) -> Self::Half {
        std::array::from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    fn sub_half(self, a: Self::Half, b: Self::Half) -> Self::Half {
        std::array::from_fn(|i| a[i].wrapping_sub(b[i]))
    }
    #[inline(always)]
    fn scale_half(self, a: Self::Half, k: i16) -> Self::Half {
        a.map(|a| a.wrapping_mul(k))
    }
    #[inline(always)]
    fn tap(self, acc: Self::Acc, x: &[u8], w: &[i32]) -> Self::Acc {
        std::array::from_fn(|i| acc[i].wrapping_add(i32::from(x[i]) * w[i]))
    }
}

/// `vpdpbusd`, emulated, with a tile of `R` rows and `V` vectors: tests use odd ones.
#[derive(Clone, Copy, Debug)]
pub struct Quads<const R: usize, const V: usize>(pub(crate) Scalar);

impl<const R: usize, const V: usize> Product for Quads<R, V> {
    type Isa = Scalar;
    type X = u8;
    type W = i8;
    const GROUP: usize = 4;
    const RAW: bool = true;
    const ROWS: usize = R;
    const VECTORS: usize = V;

    #[inline(always)]
    fn isa(self) -> Scalar {
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
    fn spin(self, acc: [i32; LANES]) -> [i32; LANES] {
        acc.map(|acc| acc.wrapping_add(acc.wrapping_mul(acc)))
    }
    #[inline(always)]
    unsafe fn step<const MR: usize, const NV: usize>(
        self,
        acc: &mut [[[i32; LANES]; NV]; MR],
        x: &[*const u8; MR],
        offset: usize,
        w: *const i8,
    ) {
        for (acc, x) in acc.iter_mut().zip(x) {
            // SAFETY: the caller's promise.
            let (x, w) = unsafe {
                (
                    x.add(offset).cast::<[u8; 4]>().read(),
                    std::slice::from_raw_parts(w.cast::<[[i8; 4]; LANES]>(), NV),
                )
            };
            for (acc, w) in acc.iter_mut().zip(w) {
                for (acc, w) in acc.iter_mut().zip(w) {
                    for (&x, &w) in x.iter().zip(w) {
                        *acc = acc.wrapping_add(i32::from(x) * i32::from(w));
                    }
                }
            }
        }
    }
}

/// `vpmaddwd` and an addition, emulated.
#[derive(Clone, Copy, Debug)]
pub struct Pairs(Scalar);

impl Product for Pairs {
    type Isa = Scalar;
    type X = i16;
    type W = i16;
    const GROUP: usize = 2;
    const RAW: bool = false;
    const ROWS: usize = 4;
    const VECTORS: usize = 2;

    #[inline(always)]
    fn isa(self) -> Scalar {
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
    fn spin(self, acc: [i32; LANES]) -> [i32; LANES] {
        acc.map(|acc| acc.wrapping_add(acc.wrapping_mul(acc)))
    }
    #[inline(always)]
    unsafe fn step<const MR: usize, const NV: usize>(
        self,
        acc: &mut [[[i32; LANES]; NV]; MR],
        x: &[*const i16; MR],
        offset: usize,
        w: *const i16,
    ) {
        for (acc, x) in acc.iter_mut().zip(x) {
            // SAFETY: the caller's promise; images and panels of i16 are aligned for it.
            let (x, w) = unsafe {
                (
                    x.add(offset).cast::<[i16; 2]>().read(),
                    std::slice::from_raw_parts(w.cast::<[[i16; 2]; LANES]>(), NV),
                )
            };
            for (acc, w) in acc.iter_mut().zip(w) {
                for (acc, w) in acc.iter_mut().zip(w) {
                    for (&x, &w) in x.iter().zip(w) {
                        *acc = acc.wrapping_add(i32::from(x) * i32::from(w));
                    }
                }
            }
        }
    }
}
