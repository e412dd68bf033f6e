//! A convolution whose weights are packed once, for many runs, and what its results go through before
//! they leave the cache.

use super::super::ConvGeometry;
use super::convolve::{Rows, convolve, task_rows};
use super::weights;
use super::windows::Windows;
use super::winograd::{self, Tiling};
use crate::gemm::f32::Panels;
use crate::simd::f32::dispatch_f32;
use crate::{Level, Tensor, parallel};

/// What becomes of a convolution's results `y` while the cache has them: `max(0, y + add)`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ending<'a> {
    /// What is added, lying as the results do.
    pub add: Option<&'a [f32]>,
    /// Whether what is negative becomes zero; NaN stays NaN.
    pub relu: bool,
}

impl Ending<'_> {
    /// Completes the results from `start` on.
    pub(super) fn complete(&self, level: Level, start: usize, out: &mut [f32]) {
        let floor = if self.relu { 0.0 } else { f32::NEG_INFINITY };
        let clamp = |y: f32| if y < floor { floor } else { y };
        match self.add {
            None if !self.relu => {}
            None => level.vectorize(
                #[inline(always)]
                || out.iter_mut().for_each(|y| *y = clamp(*y)),
            ),
            Some(add) => {
                let add = &add[start..][..out.len()];
                level.vectorize(
                    #[inline(always)]
                    || out.iter_mut().zip(add).for_each(|(y, add)| *y = clamp(*y + add)),
                );
            }
        }
    }
}

/// The weights as the kernel that suits a geometry reads them, whatever its batch.
pub(super) enum Kernel {
    Winograd(Panels),
    /// Of each group.
    Direct(Vec<Panels>),
}

impl Kernel {
    /// Tells apart kernels that read the same weights.
    pub(super) fn name(g: &ConvGeometry) -> &'static str {
        Tiling::forward(g).map_or("conv2d", |tiling| tiling.name())
    }

    /// Packs an OIHW weight.
    pub(super) fn new(level: Level, weight: &[f32], g: &ConvGeometry) -> Self {
        match Tiling::forward(g) {
            Some(tiling) => Self::Winograd(winograd::forward_panels(level, weight, &tiling)),
            None => Self::Direct(Vec::from_iter(
                (0..g.attrs.groups).map(|group| weights::forward(level, weight, g, group)),
            )),
        }
    }

    /// Convolves channels-last images.
    pub(super) fn run(
        &self,
        level: Level,
        g: &ConvGeometry,
        images: &[f32],
        bias: Option<&[f32]>,
        ending: &Ending<'_>,
        out: &mut [f32],
    ) {
        let panels = match self {
            Self::Direct(panels) => panels,
            Self::Winograd(panels) => {
                let tiling = Tiling::forward(g).expect("as when it was packed");
                return winograd::convolve(level, images, &tiling, panels, bias, ending, out);
            }
        };
        let [_, channels, kh, kw] = g.weight_shape();
        let depth = kh * kw * channels;
        let windows = Windows::forward(g);
        let [out_height, out_width] = g.out_size;
        let row_len = out_width * g.out_channels;
        let task_rows = task_rows(g.batch * out_height, row_len * depth, out_width);
        parallel::for_each_chunk(out, task_rows * row_len, |i, out| {
            let (rows, places): (Vec<_>, Vec<_>) = (0..out.len() / row_len)
                .map(|row| (row, i * task_rows + row))
                .map(|(place, row)| ((row / out_height, row % out_height), place * row_len))
                .unzip();
            let to = Rows { rows: &rows, places: &places, step: g.out_channels };
            dispatch_f32!(level, isa => convolve(isa, images, windows, panels, bias, &to, out));
            ending.complete(level, i * task_rows * row_len, out);
        });
    }
}

/// A convolution with constant weights: [`forward`](super::forward), bit for bit, without packing them each
/// time.
///
/// ```
/// use ottava_tensor::Tensor;
/// use ottava_tensor::conv::{ConvAttrs, ConvGeometry, f32::{Ending, PackedConv}};
///
/// let g = ConvGeometry::new([1, 1, 1, 3], [1, 1, 1, 1], ConvAttrs::default())?;
/// let conv = PackedConv::new(&Tensor::full(&[1, 1, 1, 1], 2.0), None, &g);
/// let mut y = [0.0; 3];
/// conv.run(1, &[1.0, -2.0, 3.0], &Ending { add: Some(&[1.0; 3]), relu: true }, &mut y);
/// assert_eq!(y, [3.0, 0.0, 7.0]);
/// # Ok::<(), ottava_tensor::Error>(())
/// ```
pub struct PackedConv {
    level: Level,
    geometry: ConvGeometry,
    kernel: Kernel,
    bias: Option<Vec<f32>>,
}

impl PackedConv {
    /// Packs weights for the current instruction set.
    ///
    /// # Shapes
    /// `weight`: `g.weight_shape()`, OIHW; `bias`: `[o]`. The batch of `g` means nothing.
    ///
    /// # Panics
    /// If they are others.
    pub fn new(weight: &Tensor<f32>, bias: Option<&Tensor<f32>>, g: &ConvGeometry) -> Self {
        Self::new_on(Level::current(), weight, bias, g)
    }

    /// [`new`](Self::new) for a chosen instruction set.
    ///
    /// # Panics
    /// As [`new`](Self::new).
    pub fn new_on(
        level: Level,
        weight: &Tensor<f32>,
        bias: Option<&Tensor<f32>>,
        g: &ConvGeometry,
    ) -> Self {
        assert_eq!(weight.shape(), g.weight_shape());
        assert!(bias.is_none_or(|bias| bias.shape() == [g.out_channels]), "one a channel");
        let weight = weight.contiguous();
        let kernel = Kernel::new(level, weight.as_slice().expect("contiguous"), g);
        Self { level, geometry: *g, kernel, bias: bias.map(Tensor::to_vec) }
    }

    /// Memory the packed weights take, in bytes.
    pub fn packed_bytes(&self) -> usize {
        match &self.kernel {
            Kernel::Winograd(panels) => panels.bytes(),
            Kernel::Direct(panels) => panels.iter().map(Panels::bytes).sum(),
        }
    }

    /// Convolves a batch of images of the geometry.
    ///
    /// # Shapes
    /// `x`: the elements of `[batch, c, h, w]`, channels-last; `y` and what is added:
    /// `[batch, o, oh, ow]`, channels-last.
    ///
    /// # Panics
    /// If there are other numbers of elements.
    pub fn run(&self, batch: usize, x: &[f32], ending: &Ending<'_>, y: &mut [f32]) {
        let g = ConvGeometry { batch, ..self.geometry };
        assert_eq!(x.len(), g.input_shape().iter().product::<usize>());
        assert_eq!(y.len(), g.output_shape().iter().product::<usize>());
        assert!(ending.add.is_none_or(|add| add.len() == y.len()), "one a result");
        if !y.is_empty() {
            self.kernel.run(self.level, &g, x, self.bias.as_deref(), ending, y);
        }
    }
}
