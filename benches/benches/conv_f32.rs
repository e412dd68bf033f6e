//! `f32` convolution forward and backward in multiply-accumulates per second, on every instruction
//! set, for the layers of ResNet-20 on CIFAR-10 and of ResNet-18:
//! `cargo bench -p ottava-benches --bench conv_f32`, with `RAYON_NUM_THREADS=1` for one core.
//! The limit to compare with is printed by `gemm_f32`.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ottava_tensor::conv::f32::{forward_on, grad_input_on, grad_weight_on};
use ottava_tensor::conv::{ConvAttrs, ConvGeometry};
use ottava_tensor::norm::{Gate, batch_norm_grad, channel_affine, channel_statistics};
use ottava_tensor::{Level, Tensor};

/// Input, output channels, window, stride.
const LAYERS: [([usize; 4], usize, usize, usize); 11] = [
    ([128, 3, 32, 32], 16, 3, 1),
    ([128, 16, 32, 32], 16, 3, 1),
    ([128, 16, 32, 32], 32, 3, 2),
    ([128, 32, 16, 16], 32, 3, 1),
    ([128, 64, 8, 8], 64, 3, 1),
    ([8, 3, 224, 224], 64, 7, 2),
    ([8, 64, 56, 56], 64, 3, 1),
    ([8, 128, 28, 28], 128, 3, 1),
    ([8, 128, 28, 28], 256, 3, 2),
    ([8, 256, 14, 14], 256, 3, 1),
    ([8, 512, 7, 7], 512, 3, 1),
];

fn layers(c: &mut Criterion) {
    for (input, outputs, window, stride) in LAYERS {
        let attrs = ConvAttrs::new(stride, window / 2);
        let g = ConvGeometry::new(input, [outputs, input[1], window, window], attrs)
            .expect("layers of real networks");
        let x = Tensor::full(&input, 0.5f32).channels_last();
        let weight = Tensor::full(&g.weight_shape(), 0.25f32);
        let grad = Tensor::full(&g.output_shape(), 0.125f32).channels_last();
        let name = format!("conv_f32/{input:?}-{outputs}-{window}x{window}s{stride}");
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Elements(g.macs()));
        for level in Level::available() {
            group.bench_function(BenchmarkId::new("forward", level.name()), |bench| {
                bench.iter(|| forward_on(level, black_box(&x), &weight, None, &g));
            });
            group.bench_function(BenchmarkId::new("grad_input", level.name()), |bench| {
                bench.iter(|| grad_input_on(level, black_box(&grad), &weight, &g));
            });
            group.bench_function(BenchmarkId::new("grad_weight", level.name()), |bench| {
                bench.iter(|| grad_weight_on(level, black_box(&grad), &x, &g));
            });
        }
    }
}

/// Batch normalization as bytes read and written per second, beside copying memory.
fn normalization(c: &mut Criterion) {
    let x = Tensor::full(&[128, 16, 32, 32], 0.5f32).channels_last();
    let channels = vec![0.5f32; 16];
    let bytes = 4 * x.len() as u64;
    let mut group = c.benchmark_group("norm_f32/[128, 16, 32, 32]");
    group.throughput(Throughput::Bytes(2 * bytes));
    let mut copy = vec![0.0f32; x.len()];
    group.bench_function("copy", |bench| {
        bench.iter(|| black_box(&mut copy).copy_from_slice(x.as_nhwc().expect("channels-last")));
    });
    group.bench_function("affine_relu", |bench| {
        bench.iter(|| channel_affine(black_box(&x), &channels, &channels, true));
    });
    group.throughput(Throughput::Bytes(bytes));
    group.bench_function("statistics", |bench| bench.iter(|| channel_statistics(black_box(&x))));
    group.throughput(Throughput::Bytes(5 * bytes));
    group.bench_function("grad", |bench| {
        bench.iter(|| {
            batch_norm_grad(black_box(&x), &x, &channels, &channels, &channels, Gate::Open)
        });
    });
}

criterion_group!(benches, layers, normalization);
criterion_main!(benches);
