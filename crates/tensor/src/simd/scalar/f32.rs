use super::Scalar;
use crate::simd::f32::Float;

/// Four lanes, which compilers turn into whatever vectors the target has.
impl Float for Scalar {
    const LANES: usize = 4;
    const ROWS: usize = 4;
    const NARROW_ROWS: usize = 4;
    type Vector = [f32; 4];

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; 4] {
        [x; 4]
    }

    #[inline(always)]
    fn load(self, x: &[f32]) -> [f32; 4] {
        [x[0], x[1], x[2], x[3]]
    }

    #[inline(always)]
    fn store(self, target: &mut [f32], x: [f32; 4]) {
        target[..4].copy_from_slice(&x);
    }

    #[inline(always)]
    fn add(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] - b[i])
    }

    // Two roundings: `f32::mul_add` would be a library call on a CPU without FMA.
    #[inline(always)]
    fn mul_add(self, a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn keep(self, x: [f32; 4], bits: u32) -> [f32; 4] {
        std::array::from_fn(|i| if bits >> i & 1 == 1 { x[i] } else { 0.0 })
    }
}
