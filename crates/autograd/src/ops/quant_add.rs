use ottava_quant::{Activation, QTensor, add_codes};
use ottava_tensor::{Level, Tensor, pool};

use super::passes::CodeSum;
use super::quantizer::ActivationQuant;
use crate::mask::Mask;
use crate::op::{self, Context, Output, Rule};
use crate::{Error, Result, Value};

/// Addition of two integer tensors and rounding to a grid of its own, an activation fused: the end of a
/// residual block.
///
/// # Shapes
/// Inputs: `a`, `b` of one shape; the observer's state; result: as `a`.
///
/// # Source
/// ONNX Runtime `com.microsoft.QLinearAdd`; PyTorch `FloatFunctional.add_relu`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct QuantAdd {
    /// What the sum is clamped to.
    pub activation: Activation,
    /// The observer and the grid.
    pub output: ActivationQuant,
}

impl Rule for QuantAdd {
    fn forward(&self, inputs: &[Value], context: &mut Context) -> Result<Output> {
        let [a, b, state] = op::inputs("quant_add", inputs)?;
        if a.shape() != b.shape() {
            let reason = format!("shapes {:?} and {:?} differ", a.shape(), b.shape());
            return Err(Error::Op { op: "quant_add", reason });
        }
        let sum = || -> Result<Tensor<f32>> {
            let sum = a.float().zip_map("quant_add", &b.float(), |a, b| a + b)?;
            Ok(self.activation.map(&sum))
        };
        if !context.mode.quantize {
            let y = sum()?;
            self.output.watch(&y, state, 2, context)?;
            let activation = self.activation;
            let open = context.backward().then(|| Mask::of(&y, move |y| activation.passes(y)));
            return Ok(Output::new(y, move |grad, _| {
                let grad = match open {
                    Some(open) => open.apply(grad),
                    None => grad,
                };
                vec![Some(grad.clone()), Some(grad), None]
            }));
        }
        let (Some(qa), Some(qb)) = (a.codes(), b.codes()) else {
            let reason = "needs integer inputs; put a quantize in front of it".into();
            return Err(Error::Op { op: "quant_add", reason });
        };

        // y = clamp(round((a·s_a + b·s_b) / s_y)) + z_y
        // Equal shapes lie equally in memory once they are channels-last.
        let (pa, pb) = (qa.params(), qb.params());
        let (qa, qb) = (qa.codes().channels_last(), qb.codes().channels_last());
        if let (Some(da), Some(db)) = (qa.as_nhwc(), qb.as_nhwc())
            && self.output.extremes_suffice()
            && let Some(relu) = self.activation.relu()
            && !qa.is_empty()
        {
            let sum = CodeSum { a: (da, pa), b: (db, pb), relu };
            let params = self.output.observe_extremes(|| sum.extremes(), state, 2, context)?;
            let add = add_codes(pa, pb, params, self.activation);
            let mut codes = Tensor::recycled_channels_last(qa.shape());
            pool::int8::add_codes(Level::current(), da, db, &add, codes.data_mut());
            let y = QTensor::new(codes, params);
            if !context.backward() {
                return Ok(Output::constant(y));
            }
            // ∂a = ∂b = ∂y where the sum was not clamped
            let mask = sum.mask(params);
            return Ok(Output::new(y, move |grad, _| {
                let grad = mask.apply(grad);
                vec![Some(grad.clone()), Some(grad), None]
            }));
        }
        let float = (context.mode.observe || context.backward()).then(sum).transpose()?;
        let seen = || float.clone().expect("computed when observing");
        let params = self.output.observe(seen, state, 2, context)?;
        let add = add_codes(pa, pb, params, self.activation);
        let codes = match (qa.as_nhwc(), qb.as_nhwc()) {
            (Some(a), Some(b)) => {
                let mut sum = Tensor::recycled_channels_last(qa.shape());
                pool::int8::add_codes(Level::current(), a, b, &add, sum.data_mut());
                sum
            }
            _ => qa.zip_map("quant_add", &qb, |a, b| add.apply(a, b))?,
        };
        let y = QTensor::new(codes, params);
        let Some(float) = float.filter(|_| context.backward()) else {
            return Ok(Output::constant(y));
        };
        // ∂a = ∂b = ∂y where the sum was not clamped
        let rounding = self.output.rounding(&float, params, self.activation);
        Ok(Output::new(y, move |grad, _| {
            let (grad, range) = rounding.back(grad);
            vec![Some(grad.clone()), Some(grad), range]
        }))
    }
}
