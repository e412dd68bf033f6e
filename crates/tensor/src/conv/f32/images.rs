use crate::Tensor;
use crate::gemm::f32::copy;
use crate::simd::f32::Float;

/// The images that a convolution read, in the form in which they were kept.
#[derive(Clone, Debug)]
pub enum Images {
    /// As they are.
    Floats(Tensor<f32>),
    /// As codes, which stand for [`dequantize`] of them.
    Codes {
        /// The codes.
        codes: Tensor<u8>,
        /// The code of zero.
        zero_point: u8,
        /// The value of a step.
        scale: f32,
    },
}

/// The value of a code: `scale · (code − zero_point)`, in `f32`. The law of every code there is.
///
/// # Source
/// ONNX `DequantizeLinear`.
#[inline(always)]
pub fn dequantize(code: i32, zero_point: i32, scale: f32) -> f32 {
    scale * (code - zero_point) as f32
}

impl From<&Tensor<f32>> for Images {
    fn from(images: &Tensor<f32>) -> Self {
        Self::Floats(images.clone())
    }
}

impl Images {
    /// The size of each axis.
    pub fn shape(&self) -> &[usize] {
        match self {
            Self::Floats(images) => images.shape(),
            Self::Codes { codes, .. } => codes.shape(),
        }
    }

    /// The same, as kernels read them.
    pub(super) fn channels_last(self) -> Self {
        match self {
            Self::Floats(images) => Self::Floats(images.channels_last()),
            Self::Codes { codes, zero_point, scale } => {
                Self::Codes { codes: codes.channels_last(), zero_point, scale }
            }
        }
    }

    /// All values, NHWC, of images that are [`channels_last`](Self::channels_last).
    pub(super) fn pixels(&self) -> Pixels<'_> {
        match self {
            Self::Floats(images) => Pixels::Floats(images.as_nhwc().expect("channels-last")),
            Self::Codes { codes, zero_point, scale } => Pixels::Codes {
                codes: codes.as_nhwc().expect("channels-last"),
                zero_point: (*zero_point).into(),
                scale: *scale,
            },
        }
    }
}

/// [`Images`] in memory.
#[derive(Clone, Copy)]
pub(super) enum Pixels<'a> {
    Floats(&'a [f32]),
    Codes { codes: &'a [u8], zero_point: i32, scale: f32 },
}

impl Pixels<'_> {
    /// Writes the values from `start` on, as many as `target` has.
    #[inline(always)]
    pub(super) fn copy<I: Float>(self, isa: I, start: usize, target: &mut [f32]) {
        let end = start + target.len();
        match self {
            Self::Floats(values) => copy(isa, &values[start..end], target),
            Self::Codes { codes, zero_point, scale } => {
                for (value, &code) in target.iter_mut().zip(&codes[start..end]) {
                    *value = dequantize(code.into(), zero_point, scale);
                }
            }
        }
    }
}
