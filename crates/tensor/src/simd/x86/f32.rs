use std::arch::x86_64::*;

use super::{Avx2, Avx512, Avx512Vnni, AvxVnni};
use crate::simd::f32::Float;

impl Float for Avx2 {
    const LANES: usize = 8;
    // 6·2 accumulators + 2 + 1 broadcast of 16 registers.
    const ROWS: usize = 6;
    const NARROW_ROWS: usize = 8;
    type Vector = __m256;

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    fn load(self, x: &[f32]) -> __m256 {
        let x = &x[..8];
        // SAFETY: `self` proves AVX2; the slice above has 8 readable values, and `loadu`
        // asks for no alignment.
        unsafe { _mm256_loadu_ps(x.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, target: &mut [f32], x: __m256) {
        let target = &mut target[..8];
        // SAFETY: `self` proves AVX2; the slice above has 8 writable values, and `storeu`
        // asks for no alignment.
        unsafe { _mm256_storeu_ps(target.as_mut_ptr(), x) }
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: `self` proves FMA.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn keep(self, x: __m256, bits: u32) -> __m256 {
        // SAFETY: `self` proves AVX2.
        unsafe {
            let lanes = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
            let set = _mm256_and_si256(_mm256_set1_epi32(bits as i32), lanes);
            _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lanes)))
        }
    }
}

impl Float for Avx512 {
    const LANES: usize = 16;
    // 14·2 accumulators + 2 + 1 broadcast of 32 registers.
    const ROWS: usize = 14;
    const NARROW_ROWS: usize = 16;
    // 6·4 accumulators + 4 + 1 broadcast: 10 loads to 24 multiplications, where 14·2 have 16 to 28.
    const WIDE_ROWS: usize = 6;
    const DEPTH: usize = 1024;
    // 32 steps, about 450 cycles.
    const AHEAD: usize = 1024;
    type Vector = __m512;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: `self` proves AVX-512F.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    fn load(self, x: &[f32]) -> __m512 {
        let x = &x[..16];
        // SAFETY: `self` proves AVX-512F; the slice above has 16 readable values, and
        // `loadu` asks for no alignment.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, target: &mut [f32], x: __m512) {
        let target = &mut target[..16];
        // SAFETY: `self` proves AVX-512F; the slice above has 16 writable values, and
        // `storeu` asks for no alignment.
        unsafe { _mm512_storeu_ps(target.as_mut_ptr(), x) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512F.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512F.
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512F.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn keep(self, x: __m512, bits: u32) -> __m512 {
        // SAFETY: `self` proves AVX-512F.
        unsafe { _mm512_maskz_mov_ps(bits as u16, x) }
    }
}

impl From<AvxVnni> for Avx2 {
    fn from(_: AvxVnni) -> Self {
        // What `AvxVnni` detects includes AVX2 and FMA.
        Self(())
    }
}

impl From<Avx512Vnni> for Avx512 {
    fn from(_: Avx512Vnni) -> Self {
        // What `Avx512Vnni` detects includes all that `Avx512` does.
        Self(())
    }
}
