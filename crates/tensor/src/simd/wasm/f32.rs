use std::arch::wasm32::*;

use super::Wasm;
use crate::simd::f32::Float;

/// Engines map a module's vectors onto 16 registers on x86-64, and have no fused operation that is
/// the same everywhere.
impl Float for Wasm {
    const LANES: usize = 4;
    const ROWS: usize = 6;
    const NARROW_ROWS: usize = 8;
    type Vector = v128;

    #[inline(always)]
    fn splat(self, x: f32) -> v128 {
        f32x4_splat(x)
    }

    #[inline(always)]
    fn load(self, x: &[f32]) -> v128 {
        let x = &x[..4];
        // SAFETY: the slice above has 16 readable bytes, and `v128_load` asks for no alignment.
        unsafe { v128_load(x.as_ptr().cast()) }
    }

    #[inline(always)]
    fn store(self, target: &mut [f32], x: v128) {
        let target = &mut target[..4];
        // SAFETY: the slice above has 16 writable bytes, and `v128_store` asks for no alignment.
        unsafe { v128_store(target.as_mut_ptr().cast(), x) }
    }

    #[inline(always)]
    fn add(self, a: v128, b: v128) -> v128 {
        f32x4_add(a, b)
    }

    #[inline(always)]
    fn sub(self, a: v128, b: v128) -> v128 {
        f32x4_sub(a, b)
    }

    #[inline(always)]
    fn mul_add(self, a: v128, b: v128, c: v128) -> v128 {
        f32x4_add(c, f32x4_mul(a, b))
    }

    #[inline(always)]
    fn keep(self, x: v128, bits: u32) -> v128 {
        let lanes = i32x4(1, 2, 4, 8);
        v128_and(x, i32x4_eq(v128_and(i32x4_splat(bits as i32), lanes), lanes))
    }
}
