use std::arch::aarch64::*;

use super::{Neon, NeonDot, NeonI8mm};
use crate::simd::f32::Float;

impl Float for Neon {
    const LANES: usize = 4;
    // 12·2 accumulators + 2 + broadcasts of 32 registers.
    const ROWS: usize = 12;
    const NARROW_ROWS: usize = 16;
    type Vector = float32x4_t;

    #[inline(always)]
    fn splat(self, x: f32) -> float32x4_t {
        // SAFETY: `self` proves NEON.
        unsafe { vdupq_n_f32(x) }
    }

    #[inline(always)]
    fn load(self, x: &[f32]) -> float32x4_t {
        let x = &x[..4];
        // SAFETY: `self` proves NEON; the slice above has 4 readable values.
        unsafe { vld1q_f32(x.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, target: &mut [f32], x: float32x4_t) {
        let target = &mut target[..4];
        // SAFETY: `self` proves NEON; the slice above has 4 writable values.
        unsafe { vst1q_f32(target.as_mut_ptr(), x) }
    }

    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: `self` proves NEON.
        unsafe { vaddq_f32(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: `self` proves NEON.
        unsafe { vsubq_f32(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        // SAFETY: `self` proves NEON.
        unsafe { vfmaq_f32(c, a, b) }
    }

    #[inline(always)]
    fn keep(self, x: float32x4_t, bits: u32) -> float32x4_t {
        const LANES: [u32; 4] = [1, 2, 4, 8];
        // SAFETY: `self` proves NEON; `LANES` has 4 readable values.
        unsafe {
            let lanes = vtstq_u32(vdupq_n_u32(bits), vld1q_u32(LANES.as_ptr()));
            vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(x), lanes))
        }
    }
}

impl From<NeonDot> for Neon {
    fn from(_: NeonDot) -> Self {
        // What `NeonDot` detects includes NEON.
        Self(())
    }
}

impl From<NeonI8mm> for Neon {
    fn from(_: NeonI8mm) -> Self {
        // What `NeonI8mm` detects includes NEON.
        Self(())
    }
}
