use ottava_tensor::Tensor;
use ottava_tensor::conv::{self, ConvAttrs, ConvGeometry};
use ottava_tensor::norm::channel_sums;

use crate::op::{Context, Output, Rule};
use crate::{Error, Result, Value};

/// 2-D convolution.
///
/// # Shapes
/// Inputs: `x [n, c, h, w]`, `weight [o, c / groups, kh, kw]`, optionally `bias [o]`; result
/// `[n, o, oh, ow]`, channels-last.
///
/// # Source
/// PyTorch `torch.nn.functional.conv2d`; ONNX `Conv`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2d {
    /// Stride, padding, dilation, groups.
    pub attrs: ConvAttrs,
}

impl Rule for Conv2d {
    fn forward(&self, inputs: &[Value], context: &mut Context) -> Result<Output> {
        let (x, weight, bias) = match inputs {
            [x, weight] => (x.float(), weight.float(), None),
            [x, weight, bias] => (x.float(), weight.float(), Some(bias.float())),
            _ => {
                return Err(Error::Op {
                    op: "conv2d",
                    reason: "takes x, weight and perhaps a bias".into(),
                });
            }
        };
        let geometry = ConvGeometry::new(x.dims("conv2d")?, weight.dims("conv2d")?, self.attrs)?;
        if bias.as_ref().is_some_and(|bias| bias.shape() != [geometry.out_channels]) {
            return Err(Error::Op {
                op: "conv2d",
                reason: format!("the bias must have {} elements", geometry.out_channels),
            });
        }

        // y[o] = Σ_c x[c] ⋆ w[o, c] + b[o]
        if !context.backward() {
            return Ok(Output::constant(conv::f32::infer(&x, &weight, bias.as_ref(), &geometry)));
        }
        let y = conv::f32::forward(&x, &weight, bias.as_ref(), &geometry);
        // ∂x = ∂y ⋆ flipped w, ∂w = x ⋆ ∂y, ∂b = Σ ∂y
        let x = context.save(0, &x);
        Ok(Output::new(y, move |grad, wanted| {
            let grad = grad.channels_last();
            let mut grads = vec![
                wanted[0].then(|| conv::f32::grad_input(&grad, &weight, &geometry)),
                wanted[1].then(|| conv::f32::grad_weight(&grad, &x.full(), &geometry)),
            ];
            if let Some(&wanted) = wanted.get(2) {
                grads.push(wanted.then(|| vector(channel_sums(&grad))));
            }
            grads
        }))
    }
}

/// A vector as a tensor of one axis.
pub(crate) fn vector(values: Vec<f32>) -> Tensor<f32> {
    Tensor::new(&[values.len()], values).expect("as many elements as the shape says")
}
