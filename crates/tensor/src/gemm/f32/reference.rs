//! Three loops: the specification.

use crate::Tensor;

/// `c[i, j] = Σₖ a[i, k]·b[k, j]` in `f64`, row-major.
pub(crate) fn matmul(a: &Tensor<f32>, b: &Tensor<f32>) -> Vec<f64> {
    let (m, k, n) = (a.shape()[0], a.shape()[1], b.shape()[1]);
    let (a, b) = (a.to_vec(), b.to_vec());
    let mut c = vec![0.0; m * n];
    for i in 0..m {
        for p in 0..k {
            for j in 0..n {
                c[i * n + j] += f64::from(a[i * k + p]) * f64::from(b[p * n + j]);
            }
        }
    }
    c
}
