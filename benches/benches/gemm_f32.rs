//! `f32` matrix products in multiply-accumulates per second, on every instruction set, beside the
//! limit of the multiplier and two other crates: `cargo bench -p ottava-benches --bench gemm_f32`,
//! with `RAYON_NUM_THREADS=1` for the speed of one core.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ottava_tensor::gemm::{PackedMatrix, matmul_on};
use ottava_tensor::{Level, Tensor};

/// Square, and the stages of ResNet-18 on one image: pixels, output channels, `9·C`.
const SHAPES: [[usize; 3]; 6] = [
    [512, 512, 512],
    [1024, 1024, 1024],
    [3136, 64, 576],
    [784, 128, 1152],
    [196, 256, 2304],
    [49, 512, 4608],
];

fn products(c: &mut Criterion) {
    for [m, n, k] in SHAPES {
        let mut group = c.benchmark_group(format!("gemm_f32/{m}x{n}x{k}"));
        group.throughput(Throughput::Elements((m * n * k) as u64));
        let (a, b) = (vec![0.5f32; m * k], vec![0.25f32; k * n]);
        let left = Tensor::new(&[m, k], &a).expect("the shape of the data");
        let right = Tensor::new(&[k, n], &b).expect("the shape of the data");
        for level in Level::available() {
            group.bench_function(BenchmarkId::from_parameter(level.name()), |bench| {
                bench.iter(|| matmul_on(level, black_box(&left), black_box(&right)));
            });
            let packed = PackedMatrix::new_on(level, &right).expect("a matrix");
            group.bench_function(BenchmarkId::new("packed", level.name()), |bench| {
                bench.iter(|| packed.multiply(black_box(&left)));
            });
        }

        let mut out = vec![0.0f32; m * n];
        group.bench_function("peer gemm", |bench| {
            // SAFETY: the pointers lead to `m·n`, `m·k` and `k·n` values, row-major as the strides say.
            bench.iter(|| unsafe {
                let (a, b) = (black_box(a.as_ptr()), black_box(b.as_ptr()));
                let (m, n, k, one) = (m, n, k, 1isize);
                let (row, inner) = (n as isize, k as isize);
                let out = out.as_mut_ptr();
                gemm::gemm(
                    m,
                    n,
                    k,
                    out,
                    one,
                    row,
                    false,
                    a,
                    one,
                    inner,
                    b,
                    one,
                    row,
                    0.0,
                    1.0,
                    false,
                    false,
                    false,
                    gemm::Parallelism::None,
                );
            });
        });
        group.bench_function("peer matrixmultiply", |bench| {
            // SAFETY: as above.
            bench.iter(|| unsafe {
                let (a, b) = (black_box(a.as_ptr()), black_box(b.as_ptr()));
                let (row, inner) = (n as isize, k as isize);
                let out = out.as_mut_ptr();
                matrixmultiply::sgemm(m, k, n, 1.0, a, inner, 1, b, row, 1, 0.0, out, row, 1);
            });
        });
    }
}

/// The limit: fused multiply-adds on registers alone, sixteen chains of the widest vectors.
#[cfg(target_arch = "x86_64")]
fn limit(c: &mut Criterion) {
    use std::arch::x86_64::*;

    const STEPS: usize = 10_000;
    const CHAINS: usize = 12;

    #[target_feature(enable = "avx512f")]
    fn avx512() -> f32 {
        let x = _mm512_set1_ps(black_box(0.5));
        let mut sums = [x; CHAINS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(x, x, *sum);
            }
        }
        sums.iter().map(|&sum| _mm512_reduce_add_ps(sum)).sum()
    }

    #[target_feature(enable = "avx2,fma")]
    fn avx2() -> f32 {
        let x = _mm256_set1_ps(black_box(0.5));
        let mut sums = [x; CHAINS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(x, x, *sum);
            }
        }
        sums.iter().map(|&sum| _mm256_cvtss_f32(sum)).sum()
    }

    let mut group = c.benchmark_group("gemm_f32/limit");
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        group.throughput(Throughput::Elements((STEPS * CHAINS * 8) as u64));
        // SAFETY: the features were detected above.
        group.bench_function("avx2", |bench| bench.iter(|| unsafe { avx2() }));
    }
    if is_x86_feature_detected!("avx512f") {
        group.throughput(Throughput::Elements((STEPS * CHAINS * 16) as u64));
        // SAFETY: the feature was detected above.
        group.bench_function("avx512", |bench| bench.iter(|| unsafe { avx512() }));
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn limit(_: &mut Criterion) {}

criterion_group!(benches, limit, products);
criterion_main!(benches);
