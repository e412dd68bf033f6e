use ottava_quant::{QParams, QTensor, Scheme, choose_qparams};
use ottava_tensor::Tensor;

use crate::mask::Mask;
use crate::op::{self, Context, Output, Rule};
use crate::{Error, Observer, Result, Value};

/// How the activations at one point of a network are rounded: an observer of their range, and the
/// scheme and codes that turn the range into a grid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ActivationQuant {
    /// Affine or symmetric.
    pub scheme: Scheme,
    /// The smallest code.
    pub qmin: i32,
    /// The largest code.
    pub qmax: i32,
    /// Who watches the range.
    pub observer: Observer,
}

impl Default for ActivationQuant {
    /// Affine `0..=255`, moving average.
    fn default() -> Self {
        Self { scheme: Scheme::Affine, qmin: 0, qmax: 255, observer: Observer::default() }
    }
}

impl ActivationQuant {
    /// The grid of an observer's state, with unsigned codes.
    ///
    /// # Errors
    /// [`Error::Op`] if nothing has been observed, or if the observer has a range per channel, which
    /// activations cannot have.
    pub fn params(&self, state: &Tensor<f32>) -> Result<QParams> {
        let ranges = self.observer.ranges(state).ok_or_else(|| Error::Op {
            op: "quantize",
            reason: "its observer has seen no data; calibrate or train before evaluating".into(),
        })?;
        let [(min, max)] = ranges[..] else {
            let reason =
                format!("activations have one grid, but the observer {} ranges", ranges.len());
            return Err(Error::Op { op: "quantize", reason });
        };
        Ok(choose_qparams(min, max, self.scheme, self.qmin..=self.qmax)?.to_unsigned())
    }

    /// Shows `x` to the observer if the mode says so, and returns the grid after it. The state is
    /// input `index` of the operator.
    pub(crate) fn observe(
        &self,
        x: impl FnOnce() -> Tensor<f32>,
        state: &Value,
        index: usize,
        context: &mut Context,
    ) -> Result<QParams> {
        let mut state = state.float();
        if context.mode.observe {
            state = self.observer.observe(&state, &x())?;
            context.update(index, state.clone());
        }
        self.params(&state)
    }

    /// Shows `x` to the observer if the mode says so, without asking for a grid.
    pub(crate) fn watch(
        &self,
        x: &Tensor<f32>,
        state: &Value,
        index: usize,
        context: &mut Context,
    ) -> Result<()> {
        if context.mode.observe {
            context.update(index, self.observer.observe(&state.float(), x)?);
        }
        Ok(())
    }
}

/// Where the straight-through estimator lets the gradient pass: the code before clamping was in
/// range, and a fused ReLU was open.
pub(crate) fn pass_through(y: &Tensor<f32>, params: QParams, relu: bool) -> Mask {
    Mask::of(y, move |y| params.covers(y) && (!relu || y > 0.0))
}

/// Observes floats and rounds them to codes: the entrance of an integer network, and of its integer
/// parts behind an operator in float.
///
/// # Shapes
/// Inputs: `x`, any; the observer's state; result: as `x`.
///
/// # Source
/// ONNX `QuantizeLinear`; PyTorch `QuantStub`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Quantize {
    /// The observer and the grid.
    pub output: ActivationQuant,
}

impl Rule for Quantize {
    fn forward(&self, inputs: &[Value], context: &mut Context) -> Result<Output> {
        let [x, state] = op::inputs("quantize", inputs)?;
        let x = x.float();
        if !context.mode.quantize {
            self.output.watch(&x, state, 1, context)?;
            return Ok(Output::new(x, |grad, _| vec![Some(grad), None]));
        }

        // q = clamp(round(x/s) + z)
        let params = self.output.observe(|| x.clone(), state, 1, context)?;
        let y = QTensor::quantize(&x, params);
        if !context.backward() {
            return Ok(Output::constant(y));
        }
        // ∂x = ∂y where x was not clamped
        let mask = pass_through(&x, params, false);
        Ok(Output::new(y, move |grad, _| vec![Some(mask.apply(grad)), None]))
    }
}
