//! The integer kernels on every instruction set of this machine, in multiply-accumulates and
//! additions a second (2 for each product), beside the limits of the instructions they are made of.
//!
//! One thread: `RAYON_NUM_THREADS=1 cargo bench --bench int8`.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ottava_benches::{PRODUCTS, SMALL, dense};
use ottava_tensor::Level;
use ottava_tensor::conv::int8::{Algorithm, Int8Conv, Output, Requantize};
use ottava_tensor::conv::{ConvAttrs, ConvGeometry};
use ottava_tensor::gemm::int8::Int8Gemm;
use ottava_tensor::simd::limits::{self, Mix};

/// The plain level is the law, not a competitor: it would take most of the time.
fn levels() -> impl Iterator<Item = Level> {
    Level::available().into_iter().filter(|level| level.name() != "scalar")
}

/// What registers alone allow.
fn limit(c: &mut Criterion) {
    let mut group = c.benchmark_group("limits");
    for (mix, name) in [(Mix::Bytes, "u8·i8"), (Mix::Words, "i16·i16")] {
        for level in levels() {
            const STEPS: usize = 10_000;
            group.throughput(Throughput::Elements(2 * limits::run(level, mix, STEPS)));
            group.bench_function(BenchmarkId::new(level.name(), name), |bench| {
                bench.iter(|| limits::run(level, mix, black_box(STEPS)));
            });
        }
    }
}

/// Weights of 8 bits or of 4: narrow ones have a product of their own on some instruction sets.
const WIDTHS: [(&str, i8); 2] = [("", 127), ("w4/", 7)];

/// Weights from `-most` to `most`.
fn weights(len: usize, most: i8) -> Vec<i8> {
    let most = i32::from(most);
    (0..len).map(|i| ((i as i32 * 31) % (2 * most + 1) - most) as i8).collect()
}

/// `m×n×k`: squares, and ResNet-18's convolutions as products.
fn gemm(c: &mut Criterion) {
    let mut group = c.benchmark_group("int8_gemm");
    let small = SMALL.map(|size| [size; 3]);
    for [m, n, k] in small.into_iter().chain(PRODUCTS).chain([[1, 1000, 512]]) {
        group.throughput(Throughput::Elements(2 * (m * n * k) as u64));
        for level in levels() {
            for (width, most) in WIDTHS {
                let gemm = Int8Gemm::new(level, k, n, &weights(k * n, most)).expect("k is small");
                let (a, mut out) = (dense(m * k, 5u8), dense(m * n, 0));
                let a = a.as_slice().expect("dense");
                let mut scratch = vec![0; gemm.scratch_len(m)];
                let id = BenchmarkId::new(level.name(), format!("{width}{m}x{n}x{k}"));
                group.bench_function(id, |bench| {
                    bench.iter(|| {
                        gemm.run(
                            m,
                            a,
                            3,
                            Output::Accumulate(black_box(out.data_mut())),
                            &mut scratch,
                        )
                    });
                });
            }
        }
    }
}

/// The shapes of ResNet-18's convolutions at 224², codes in, codes out, by each algorithm.
fn conv(c: &mut Criterion) {
    let mut group = c.benchmark_group("int8_conv");
    for [channels, outputs, size, kernel, stride] in [
        [3, 64, 224, 7, 2],
        [64, 64, 56, 3, 1],
        [64, 128, 56, 3, 2],
        [64, 128, 56, 1, 2],
        [128, 128, 28, 3, 1],
        [256, 256, 14, 3, 1],
        [512, 512, 7, 3, 1],
    ] {
        let shape = [outputs, channels, kernel, kernel];
        let attrs = ConvAttrs::new(stride, kernel / 2);
        let geometry =
            ConvGeometry::new([1, channels, size, size], shape, attrs).expect("ResNet's own");
        let input = dense(geometry.input_shape().iter().product(), 5u8);
        let input = input.as_slice().expect("dense");
        let mut out = dense(geometry.output_shape().iter().product(), 0);
        let law = Requantize {
            bias: vec![0; outputs],
            multiplier: vec![1e-3; outputs],
            zero_point: 3,
            low: 0,
            high: 255,
        };
        group.throughput(Throughput::Elements(2 * geometry.macs()));
        for level in levels() {
            let algorithms = [Algorithm::Direct, Algorithm::Winograd2, Algorithm::Winograd4];
            let wide = algorithms.map(|algorithm| (algorithm, WIDTHS[0]));
            for (algorithm, (width, most)) in
                wide.into_iter().chain([(Algorithm::Direct, WIDTHS[1])])
            {
                let weights = weights(shape.iter().product(), most);
                let conv =
                    Int8Conv::new(level, &weights, shape, attrs, algorithm).expect("K is small");
                if conv.algorithm() != algorithm {
                    continue;
                }
                let mut scratch = vec![0; conv.scratch_len(&geometry)];
                let name =
                    format!("{width}{algorithm:?}/{channels}-{outputs}@{size}/{kernel}s{stride}");
                group.bench_function(BenchmarkId::new(level.name(), name), |bench| {
                    bench.iter(|| {
                        let output = Output::Requantize(&law, black_box(out.data_mut()));
                        conv.run(&geometry, input, 3, output, &mut scratch);
                    });
                });
            }
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(400));
    targets = limit, gemm, conv
}
criterion_main!(benches);
