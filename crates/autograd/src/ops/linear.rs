use ottava_quant::linear;
use ottava_tensor::Tensor;
use ottava_tensor::gemm::matmul;

use crate::op::{self, Context, Output, Rule};
use crate::{Error, Result, Value};

/// Fully connected layer: `y = x · weightᵀ + bias`.
///
/// # Shapes
/// Inputs: `x [n, k]`, `weight [o, k]`, optionally `bias [o]`; result `[n, o]`.
///
/// # Source
/// PyTorch `torch.nn.functional.linear`; ONNX `Gemm` with `transB = 1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Linear;

impl Rule for Linear {
    fn forward(&self, inputs: &[Value], context: &mut Context) -> Result<Output> {
        let (x, weight, bias) = match inputs {
            [x, weight] => (x.float(), weight.float(), None),
            [x, weight, bias] => (x.float(), weight.float(), Some(bias.float())),
            _ => {
                return Err(Error::Op {
                    op: "linear",
                    reason: "takes x, weight and perhaps a bias".into(),
                });
            }
        };
        let [_, k] = x.dims("linear")?;
        let [out, weight_k] = weight.dims("linear")?;
        if k != weight_k {
            return Err(Error::Op {
                op: "linear",
                reason: format!("the input has {k} features, but the weight expects {weight_k}"),
            });
        }

        if bias.as_ref().is_some_and(|bias| bias.shape() != [out]) {
            return Err(Error::Op {
                op: "linear",
                reason: format!("the bias must have {out} elements"),
            });
        }

        // y = x·Wᵀ + b
        let y = linear(&x, &weight, bias.as_ref())?;
        if !context.backward() {
            return Ok(Output::constant(y));
        }
        // ∂x = ∂y·W, ∂W = ∂yᵀ·x, ∂b = Σ ∂y
        Ok(Output::new(y, move |grad, wanted| {
            let mut grads = vec![
                wanted[0].then(|| product(&grad, &weight)),
                wanted[1].then(|| product(&transposed(&grad), &x)),
            ];
            if let Some(&wanted) = wanted.get(2) {
                grads.push(wanted.then(|| grad.sum_axes(&[0]).expect("a matrix has an axis 0")));
            }
            grads
        }))
    }
}

/// Matrix product `a [m, k] · b [k, n]`.
///
/// # Source
/// PyTorch `torch.matmul` of two matrices; ONNX `MatMul`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MatMul;

impl Rule for MatMul {
    fn forward(&self, inputs: &[Value], context: &mut Context) -> Result<Output> {
        let [a, b] = op::inputs("matmul", inputs)?;
        let (a, b) = (a.float(), b.float());

        // y = a·b
        let y = matmul(&a, &b)?;
        if !context.backward() {
            return Ok(Output::constant(y));
        }
        // ∂a = ∂y·bᵀ, ∂b = aᵀ·∂y
        Ok(Output::new(y, move |grad, wanted| {
            vec![
                wanted[0].then(|| product(&grad, &transposed(&b))),
                wanted[1].then(|| product(&transposed(&a), &grad)),
            ]
        }))
    }
}

fn transposed(matrix: &Tensor<f32>) -> Tensor<f32> {
    matrix.transpose(0, 1).expect("a matrix has two axes")
}

fn product(a: &Tensor<f32>, b: &Tensor<f32>) -> Tensor<f32> {
    matmul(a, b).expect("shapes that forward has checked")
}
