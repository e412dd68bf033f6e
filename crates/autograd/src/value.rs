use ottava_quant::QTensor;
use ottava_tensor::Tensor;

/// What flows along an edge of the tape: floats, or integer codes on a grid.
///
/// The quantization-aware graph passes codes, so that its forward pass *is* the integer network; an
/// operator without an integer form asks for [`float`](Self::float) and gets the dequantized values.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Plain values.
    Float(Tensor<f32>),
    /// Codes and their grid, standing for `scale · (code − zero_point)`.
    Codes(QTensor),
}

impl Value {
    /// The size of each axis.
    pub fn shape(&self) -> &[usize] {
        match self {
            Self::Float(x) => x.shape(),
            Self::Codes(x) => x.codes().shape(),
        }
    }

    /// The values, dequantized if they are codes.
    pub fn float(&self) -> Tensor<f32> {
        match self {
            Self::Float(x) => x.clone(),
            Self::Codes(x) => x.dequantize(),
        }
    }

    /// The codes, if they are codes.
    pub fn codes(&self) -> Option<&QTensor> {
        match self {
            Self::Float(_) => None,
            Self::Codes(x) => Some(x),
        }
    }
}

impl From<Tensor<f32>> for Value {
    fn from(x: Tensor<f32>) -> Self {
        Self::Float(x)
    }
}

impl From<QTensor> for Value {
    fn from(x: QTensor) -> Self {
        Self::Codes(x)
    }
}
