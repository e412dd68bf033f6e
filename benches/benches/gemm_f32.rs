//! `f32` matrix products in operations per second, on every instruction set, beside the
//! limit of the multiplier and two other crates: `cargo bench -p ottava-benches --bench gemm_f32`,
//! with `RAYON_NUM_THREADS=1` for the speed of one core, which the limit and one of the crates always have.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ottava_benches::{PRODUCTS, SMALL};
use ottava_tensor::gemm::{PackedMatrix, matmul_on};
use ottava_tensor::simd::limits::{self, Mix};
use ottava_tensor::{Level, Tensor};

fn products(c: &mut Criterion) {
    for [m, n, k] in SMALL.map(|size| [size; 3]).into_iter().chain(PRODUCTS) {
        let mut group = c.benchmark_group(format!("gemm_f32/{m}x{n}x{k}"));
        group.throughput(Throughput::Elements(2 * (m * n * k) as u64));
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
                    gemm::Parallelism::Rayon(0),
                );
            });
        });
        group.bench_function("peer matrixmultiply, one core", |bench| {
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

/// What registers alone allow.
fn limit(c: &mut Criterion) {
    const STEPS: usize = 10_000;
    let mut group = c.benchmark_group("gemm_f32/limit of a core");
    for level in Level::available() {
        group.throughput(Throughput::Elements(2 * limits::run(level, Mix::Floats, STEPS)));
        group.bench_function(level.name(), |bench| {
            bench.iter(|| limits::run(level, Mix::Floats, black_box(STEPS)));
        });
    }
}

criterion_group!(benches, limit, products);
criterion_main!(benches);
