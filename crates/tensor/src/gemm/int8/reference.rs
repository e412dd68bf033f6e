use super::Code;

/// `c[m, n] = Σ_k (a[m, k] − zero_point) · b[k, n]`, row-major, as three plain loops: the law for
/// every kernel.
pub fn gemm<C: Code>(k: usize, n: usize, a: &[C], zero_point: C, b: &[i8], c: &mut [i32]) {
    for (i, row) in c.chunks_exact_mut(n.max(1)).enumerate() {
        for (j, c) in row.iter_mut().enumerate() {
            *c = 0;
            for l in 0..k {
                let a: i32 = a[i * k + l].into() - zero_point.into();
                *c = c.wrapping_add(a * i32::from(b[l * n + j]));
            }
        }
    }
}
