//! How operators in `f32` compute: with the kernels of training. They are a quarter of a small program.

use ottava_tensor::conv::PoolGeometry;
use ottava_tensor::conv::f32::{Ending, PackedConv};
use ottava_tensor::gemm::matmul;
use ottava_tensor::norm::channel_affine;
use ottava_tensor::{Tensor, elementwise, pool};

use super::{FloatKernel, FloatOp};
use crate::instr::conv_geometry;
use crate::{Result, ValueType, Window, fake_quantize_per_channel};

/// Why nothing fails while a program runs.
const CHECKED: &str = "shapes that the builder has checked";

/// A convolution that writes its results where they belong.
pub(crate) struct FloatConv(PackedConv);

impl FloatConv {
    /// Convolves a batch of images `x`, adds to the results and makes the negative ones zero, if told so.
    pub(crate) fn run(
        &self,
        batch: usize,
        x: &[f32],
        add: Option<&[f32]>,
        relu: bool,
        y: &mut [f32],
    ) {
        self.0.run(batch, x, &Ending { add, relu }, y);
    }

    /// Memory its packed weights take, in bytes.
    pub(crate) fn packed_bytes(&self) -> usize {
        self.0.packed_bytes()
    }
}

impl FloatOp {
    /// A convolution for images like `x`, which [`check`](Self::check) has accepted; `None` for other
    /// operators.
    pub(crate) fn convolution(&self, x: &ValueType) -> Option<FloatConv> {
        let Self::Conv { weight, bias, attrs } = self else { return None };
        let shape = weight.dims("conv").expect(CHECKED);
        let geometry = conv_geometry(shape, *attrs, x).expect(CHECKED);
        Some(FloatConv(PackedConv::new(weight, bias.as_ref(), &geometry)))
    }

    /// Any other operator for batches of inputs like `x`, which [`check`](Self::check) has accepted.
    pub(crate) fn kernel(&self, x: &ValueType) -> FloatKernel {
        match self.clone() {
            Self::Conv { .. } => unreachable!("computed in place"),
            Self::Linear { weight, bias } => {
                Box::new(move |x| linear(&x[0], &weight, bias.as_ref()).expect(CHECKED))
            }
            Self::MatMul(weight) => Box::new(move |x| matmul(&x[0], &weight).expect(CHECKED)),
            Self::Affine { scale, shift } => {
                let (scale, shift) = (scale.to_vec(), shift.to_vec());
                Box::new(move |x| channel_affine(&x[0], &scale, &shift, false))
            }
            Self::Add(constant) => Box::new(move |x| {
                let b = constant.as_ref().unwrap_or_else(|| &x[1]);
                x[0].zip_map("add", b, |a, b| a + b).expect(CHECKED)
            }),
            Self::Mul(constant) => Box::new(move |x| {
                let b = constant.as_ref().unwrap_or_else(|| &x[1]);
                x[0].zip_map("mul", b, |a, b| a * b).expect(CHECKED)
            }),
            Self::AvgPool { window, count_padding } => {
                let geometry = window.unwrap_or_else(|| Window::whole(x)).geometry(x.image());
                let geometry = geometry.expect(CHECKED);
                Box::new(move |x| {
                    let geometry = PoolGeometry { batch: x[0].shape()[0], ..geometry };
                    pool::avg_pool(&x[0], &geometry, count_padding)
                })
            }
            Self::Softmax => Box::new(|x| elementwise::softmax_rows(&x[0]).expect(CHECKED)),
            Self::LogSoftmax => Box::new(|x| elementwise::log_softmax_rows(&x[0]).expect(CHECKED)),
            Self::FakeQuant { grids, axis } => {
                Box::new(move |x| fake_quantize_per_channel(&x[0], &grids, axis).expect(CHECKED))
            }
            Self::DynamicLinear { .. } => unreachable!("packed for a level by its step"),
        }
    }
}

/// A fully connected layer in `f32`: `x·weightᵀ + bias`, the bias added last.
///
/// # Shapes
/// `x`: `[n, k]`; `weight`: `[o, k]`; `bias`: `[o]`; result: `[n, o]`.
///
/// # Errors
/// [`Error::Tensor`](crate::Error::Tensor) if they do not fit together.
pub fn linear(
    x: &Tensor<f32>,
    weight: &Tensor<f32>,
    bias: Option<&Tensor<f32>>,
) -> Result<Tensor<f32>> {
    let y = matmul(x, &weight.transpose(0, 1)?)?;
    match bias {
        None => Ok(y),
        Some(bias) => Ok(y.zip_map("linear", bias, |y, b| y + b)?),
    }
}
