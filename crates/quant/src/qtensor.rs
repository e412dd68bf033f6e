use ottava_tensor::Tensor;

use crate::{QParams, qparams};

/// Activations as unsigned codes on a grid.
///
/// Signed codes are stored moved up by 128 ([`QParams::to_unsigned`]), so that one kernel serves
/// both; the values are the same.
#[derive(Clone, Debug, PartialEq)]
pub struct QTensor {
    codes: Tensor<u8>,
    params: QParams,
}

impl QTensor {
    /// Codes on the grid `params`, which is moved to unsigned codes if it is not there yet.
    pub fn new(codes: Tensor<u8>, params: QParams) -> Self {
        Self { codes, params: params.to_unsigned() }
    }

    /// Rounds values to the grid `params`.
    ///
    /// # Panics
    /// If its codes are more than a byte holds.
    pub fn quantize(x: &Tensor<f32>, params: QParams) -> Self {
        Self::new(qparams::quantize(x, params), params)
    }

    /// The codes.
    pub fn codes(&self) -> &Tensor<u8> {
        &self.codes
    }

    /// The grid, with unsigned codes.
    pub fn params(&self) -> QParams {
        self.params
    }

    /// The values: `scale · (code − zero_point)`.
    pub fn dequantize(&self) -> Tensor<f32> {
        qparams::dequantize(&self.codes, self.params)
    }
}
