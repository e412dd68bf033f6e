/// `c[m, n] = Σ_k (a[m, k] − zero_point) · b[k, n]`, row-major, as three plain loops: the law for
/// every kernel.
pub fn gemm(k: usize, n: usize, a: &[u8], zero_point: u8, b: &[i8], c: &mut [i32]) {
    for (i, row) in c.chunks_exact_mut(n.max(1)).enumerate() {
        for (j, c) in row.iter_mut().enumerate() {
            *c = 0;
            for l in 0..k {
                let a = i32::from(a[i * k + l]) - i32::from(zero_point);
                *c = c.wrapping_add(a * i32::from(b[l * n + j]));
            }
        }
    }
}
