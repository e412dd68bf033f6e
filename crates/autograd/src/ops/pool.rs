use ottava_quant::QTensor;
use ottava_tensor::conv::PoolGeometry;
use ottava_tensor::{Level, Tensor, pool};

use crate::op::{self, Context, Output, Rule};
use crate::{Result, Value};

/// The maximum over windows. Codes stay codes on their grid.
///
/// # Shapes
/// `x [n, c, h, w]` → `[n, c, oh, ow]`, channels-last.
///
/// # Source
/// PyTorch `torch.nn.functional.max_pool2d`; ONNX `MaxPool`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxPool2d {
    /// Height and width of the window.
    pub kernel: [usize; 2],
    /// Rows and columns between windows.
    pub stride: [usize; 2],
    /// Padding at the top, left, bottom, right; never the maximum.
    pub padding: [usize; 4],
}

impl Rule for MaxPool2d {
    fn forward(&self, inputs: &[Value], context: &mut Context) -> Result<Output> {
        let [x] = op::inputs("max_pool2d", inputs)?;
        let shape = op_dims("max_pool2d", x)?;
        let geometry = PoolGeometry::new(shape, self.kernel, self.stride, self.padding)?;
        // y = max over the window; codes are ordered as their values are
        let (y, winners) = match x {
            Value::Float(x) => {
                let (y, winners) = pool::max_pool(x, &geometry);
                (Value::Float(y), winners)
            }
            Value::Codes(x) if context.backward() => {
                let (y, winners) = pool::max_pool(&x.codes().map(f32::from), &geometry);
                (QTensor::new(y.map(|q| q as u8), x.params()).into(), winners)
            }
            Value::Codes(x) => {
                let codes = x.codes().channels_last();
                let mut y = Tensor::zeros_channels_last(&geometry.output_shape());
                let source = codes.as_nhwc().expect("channels-last");
                pool::int8::max_pool(Level::current(), &geometry, source, y.data_mut());
                return Ok(Output::constant(QTensor::new(y, x.params())));
            }
        };
        // ∂x = ∂y at the winner of each window
        Ok(Output::new(y, move |grad, _| {
            vec![Some(pool::max_pool_grad(&grad, &winners, &geometry))]
        }))
    }
}

/// The mean over windows.
///
/// # Shapes
/// `x [n, c, h, w]` → `[n, c, oh, ow]`, channels-last.
///
/// # Source
/// PyTorch `torch.nn.functional.avg_pool2d`; ONNX `AveragePool`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AvgPool2d {
    /// Height and width of the window.
    pub kernel: [usize; 2],
    /// Rows and columns between windows.
    pub stride: [usize; 2],
    /// Padding at the top, left, bottom, right.
    pub padding: [usize; 4],
    /// Whether padding counts among the elements a mean is taken of.
    pub count_include_pad: bool,
}

impl Rule for AvgPool2d {
    fn forward(&self, inputs: &[Value], _: &mut Context) -> Result<Output> {
        let [x] = op::inputs("avg_pool2d", inputs)?;
        let shape = op_dims("avg_pool2d", x)?;
        let geometry = PoolGeometry::new(shape, self.kernel, self.stride, self.padding)?;
        // y = Σ x / count
        let count_pad = self.count_include_pad;
        let y = pool::avg_pool(&x.float(), &geometry, count_pad);
        // ∂x = Σ ∂y / count over the windows an element is in
        Ok(Output::new(y, move |grad, _| {
            vec![Some(pool::avg_pool_grad(&grad, &geometry, count_pad))]
        }))
    }
}

/// The mean over each image: `[n, c, h, w]` → `[n, c, 1, 1]`.
///
/// # Source
/// PyTorch `adaptive_avg_pool2d(x, 1)`; ONNX `GlobalAveragePool`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GlobalAvgPool;

impl Rule for GlobalAvgPool {
    fn forward(&self, inputs: &[Value], context: &mut Context) -> Result<Output> {
        let [x] = op::inputs("global_avg_pool", inputs)?;
        let [_, _, height, width] = op_dims("global_avg_pool", x)?;
        let (kernel, stride) = ([height, width], [1, 1]);
        AvgPool2d { kernel, stride, padding: [0; 4], count_include_pad: false }
            .forward(inputs, context)
    }
}

/// `[n, c, h, w]` of a value.
pub(crate) fn op_dims(op: &'static str, x: &Value) -> Result<[usize; 4]> {
    let shape = x.shape();
    shape
        .try_into()
        .map_err(|_| ottava_tensor::Error::Rank { op, expected: 4, shape: shape.to_vec() }.into())
}
