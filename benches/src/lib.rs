//! Benchmarks of the kernels, in `benches/`; this library holds the shapes they share.
//!
//! `int8`, `gemm_f32` and `conv_f32` are criterion's: throughput on every instruction set. `ratios`
//! runs two things in turn and prints what they are to each other. `RAYON_NUM_THREADS=1` gives the
//! speed of one core. Other engines are measured by `peers/`.

use ottava_tensor::{Element, Tensor};

/// Sides of squares that a cache holds, besides those of [`PRODUCTS`].
pub const SMALL: [usize; 3] = [64, 128, 256];

/// `m×n×k`: two squares, and ResNet-18's convolutions on one image as products: pixels, output
/// channels, `9·C`.
pub const PRODUCTS: [[usize; 3]; 6] = [
    [512, 512, 512],
    [1024, 1024, 1024],
    [3136, 64, 576],
    [784, 128, 1152],
    [196, 256, 2304],
    [49, 512, 4608],
];

/// Channels and side of ResNet-18's 3×3 convolutions of stride 1.
pub const LAYERS: [[usize; 2]; 4] = [[64, 56], [128, 28], [256, 14], [512, 7]];

/// `len` values from a cache line on, as tensors and the arena of a program have them.
pub fn dense<T: Element>(len: usize, value: T) -> Tensor<T> {
    Tensor::full(&[len], value)
}
