use ottava_quant::{Activation, QTensor, average};
use ottava_tensor::conv::PoolGeometry;
use ottava_tensor::{Level, Tensor, pool};

use super::pool::op_dims;
use super::quantizer::ActivationQuant;
use crate::op::{self, Context, Output, Rule};
use crate::{Error, Result, Value};

/// The mean over windows of an integer tensor, rounded to a grid of its own.
///
/// # Shapes
/// Inputs: `x [n, c, h, w]`; the observer's state; result `[n, c, oh, ow]`.
///
/// # Source
/// ONNX Runtime `com.microsoft.QLinearGlobalAveragePool`: sum of codes in `i32`, times
/// `x_scale / (y_scale · count)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QuantAvgPool {
    /// Height and width of the window and the stride; `None` for the whole image.
    pub window: Option<([usize; 2], [usize; 2])>,
    /// The observer and the grid.
    pub output: ActivationQuant,
}

impl Rule for QuantAvgPool {
    fn forward(&self, inputs: &[Value], context: &mut Context) -> Result<Output> {
        let [x, state] = op::inputs("quant_avg_pool", inputs)?;
        let shape = op_dims("quant_avg_pool", x)?;
        let (kernel, stride) = self.window.unwrap_or(([shape[2], shape[3]], [1, 1]));
        let geometry = PoolGeometry::new(shape, kernel, stride, [0; 4])?;
        let mean = || pool::avg_pool(&x.float(), &geometry, false);
        let back = move |grad: &Tensor<f32>| pool::avg_pool_grad(grad, &geometry, false);
        if !context.mode.quantize {
            let y = mean();
            self.output.watch(&y, state, 1, context)?;
            return Ok(Output::new(y, move |grad, _| vec![Some(back(&grad)), None]));
        }
        let Some(qx) = x.codes() else {
            let reason = "needs an integer input; put a quantize in front of it".into();
            return Err(Error::Op { op: "quant_avg_pool", reason });
        };

        // y = clamp(round(Σ (q − z_x) · s_x / (s_y · count))) + z_y
        let float = (context.mode.observe || context.backward()).then(mean);
        let seen = || float.clone().expect("computed when observing");
        let params = self.output.observe(seen, state, 1, context)?;
        let average = average(qx.params(), params, false);
        let mut codes = Tensor::zeros_channels_last(&geometry.output_shape());
        let source = qx.codes().channels_last();
        let source = source.as_nhwc().expect("channels-last");
        pool::int8::average_pool(Level::current(), &geometry, source, &average, codes.data_mut());
        let y = QTensor::new(codes, params);
        let Some(float) = float.filter(|_| context.backward()) else {
            return Ok(Output::constant(y));
        };
        // ∂x = Σ ∂y / count where the mean was not clamped
        let rounding = self.output.rounding(&float, params, Activation::NONE);
        Ok(Output::new(y, move |grad, _| {
            let (grad, range) = rounding.back(grad);
            vec![Some(back(&grad)), range]
        }))
    }
}
