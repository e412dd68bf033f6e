use super::super::ConvGeometry;
use super::packed::{Ending, Kernel};
use crate::storage::Key;
use crate::{Level, Tensor};

/// 2-D convolution (cross-correlation, as in PyTorch):
/// `y[n, o, i, j] = bias[o] + Σ_{c, u, v} x[n, c, i·s + u·d − p, j·s + v·d − p]·weight[o, c, u, v]`.
///
/// `x` is best channels-last and is copied into that layout otherwise; the result is channels-last.
///
/// Some shapes are computed tile by tile (Winograd): there a value that is not finite makes every result of its
/// tiles NaN, also those whose window does not see it.
///
/// # Shapes
/// `x`: `g.input_shape()`; `weight`: `g.weight_shape()`, OIHW; `bias`: `[o]`; result:
/// `g.output_shape()`. [`ConvGeometry::new`] has checked that they fit together.
pub fn forward(
    x: &Tensor<f32>,
    weight: &Tensor<f32>,
    bias: Option<&Tensor<f32>>,
    g: &ConvGeometry,
) -> Tensor<f32> {
    forward_on(Level::current(), x, weight, bias, g)
}

/// [`forward`] on a chosen instruction set.
pub fn forward_on(
    level: Level,
    x: &Tensor<f32>,
    weight: &Tensor<f32>,
    bias: Option<&Tensor<f32>>,
    g: &ConvGeometry,
) -> Tensor<f32> {
    forward_with(level, x, weight, bias, g, false)
}

/// [`forward`] with weights that nobody is about to write, bit for bit: packed a second time they stay
/// packed beside `weight`, until it is written or dropped. A 3×3 window then takes 16/9 of its weights'
/// memory, and four times that memory where channels are few.
pub fn infer(
    x: &Tensor<f32>,
    weight: &Tensor<f32>,
    bias: Option<&Tensor<f32>>,
    g: &ConvGeometry,
) -> Tensor<f32> {
    forward_with(Level::current(), x, weight, bias, g, true)
}

pub(super) fn forward_with(
    level: Level,
    x: &Tensor<f32>,
    weight: &Tensor<f32>,
    bias: Option<&Tensor<f32>>,
    g: &ConvGeometry,
    keep: bool,
) -> Tensor<f32> {
    assert_eq!(x.shape(), g.input_shape());
    assert_eq!(weight.shape(), g.weight_shape());
    assert!(bias.is_none_or(|bias| bias.shape() == [g.out_channels]), "one a channel");
    let mut y = Tensor::recycled_channels_last(&g.output_shape());
    if y.is_empty() {
        return y;
    }
    let x = x.channels_last();
    let images = x.as_nhwc().expect("channels-last");
    let bias = bias.map(Tensor::to_vec);
    let weight = weight.contiguous();
    let key = keep.then(|| key(Kernel::name(g), level, g));
    let kernel = weight.derived(key, |weight| Kernel::new(level, weight, g));
    kernel.run(level, g, images, bias.as_deref(), &Ending::default(), y.data_mut());
    y
}

/// What packed weights depend on beside their values.
fn key(what: &'static str, level: Level, g: &ConvGeometry) -> Key {
    Key { what, level, shape: [g.weight_shape().as_slice(), &[g.attrs.groups]].concat() }
}
