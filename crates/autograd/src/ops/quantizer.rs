use ottava_quant::{Activation, QParams, QTensor, Scheme, choose_power_of_two, choose_qparams};
use ottava_tensor::Tensor;

use super::activation::zip;
use crate::leaf::{Kind, Leaf};
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
    /// Whether the scale is rounded up to a power of two.
    pub power_of_two: bool,
    /// How gradient descent moves the range on from where calibration left it; `None` leaves it to the
    /// observer.
    pub learn: Option<Learning>,
}

/// What the gradient says about a range `[lo, hi]` that is learned, for a grid of `R + 1` codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Learning {
    /// Clipping and rounding error: `∂hi = Σ_above g + Σ_inside g·(x̂ − x)/(hi − lo)`, and `∂lo` with the
    /// roles exchanged. Multiplied by `R²/√(N·R)`, N elements an image, so that a step of gradient
    /// descent moves the scale as if it were the parameter.
    ///
    /// # Source
    /// Esser et al. 2020 (LSQ, arXiv:1902.08153); with the lower end, Bhalgat et al. 2020 (LSQ+,
    /// arXiv:2004.09576).
    StepSize,
    /// Clipping alone: `∂hi = Σ_above g`, `∂lo = Σ_below g`. The paper starts from a clip far beyond the
    /// activations and pulls it in with an L2 penalty; here it starts from the calibrated range, and
    /// nothing pulls.
    ///
    /// # Source
    /// Choi et al. 2018 (PACT, arXiv:1805.06085).
    Clip,
}

impl Default for ActivationQuant {
    /// Affine `0..=255`, moving average.
    fn default() -> Self {
        Self::of_bits(Scheme::Affine, 8)
    }
}

impl ActivationQuant {
    /// `bits` wide, 2 to 8, moving average: affine `0 ..= 2^bits − 1`, symmetric
    /// `−2^(bits−1) ..= 2^(bits−1) − 1`. Any other range of at most 256 codes can be set: affine signed,
    /// symmetric unsigned, and narrow ones, without the lowest code.
    pub fn of_bits(scheme: Scheme, bits: u8) -> Self {
        let codes = 1 << bits.clamp(2, 8);
        let qmin = if scheme == Scheme::Affine { 0 } else { -codes / 2 };
        let (qmax, observer) = (qmin + codes - 1, Observer::default());
        Self { scheme, qmin, qmax, observer, power_of_two: false, learn: None }
    }

    /// Without the lowest code: `−127..=127`, so that negating a symmetric value is exact.
    pub fn narrow(self) -> Self {
        Self { qmin: self.qmin + 1, ..self }
    }

    /// The range as a leaf, nothing observed yet: a buffer, or a parameter if it is learned.
    pub fn leaf(&self) -> Leaf {
        let kind = if self.learn.is_some() { Kind::Param } else { Kind::Buffer };
        Leaf::new(kind, self.observer.initial())
    }

    /// The ranges that a state stands for; `None` if nothing has been observed.
    pub fn ranges(&self, state: &Tensor<f32>) -> Option<Vec<(f32, f32)>> {
        match self.learn {
            // Descent may push an end past zero; the grid ends there.
            Some(_) if !self.unseen(state) => {
                let ends = state.to_vec();
                // `min` and `max` would take a NaN for zero.
                let low = if ends[0] > 0.0 { 0.0 } else { ends[0] };
                Some(vec![(low, if ends[1] < 0.0 { 0.0 } else { ends[1] })])
            }
            _ => self.observer.ranges(state),
        }
    }

    /// The grid of an observer's state, with unsigned codes.
    ///
    /// # Errors
    /// [`Error::Op`] if nothing has been observed, or if the observer has a range per channel, which
    /// activations cannot have; codes that are no bytes.
    pub fn params(&self, state: &Tensor<f32>) -> Result<QParams> {
        let ranges = self.ranges(state).ok_or_else(|| Error::Op {
            op: "quantize",
            reason: "its observer has seen no data; calibrate or train before evaluating".into(),
        })?;
        let [(min, max)] = ranges[..] else {
            let reason =
                format!("activations have one grid, but the observer {} ranges", ranges.len());
            return Err(Error::Op { op: "quantize", reason });
        };
        let choose = if self.power_of_two { choose_power_of_two } else { choose_qparams };
        let grid = choose(min, max, self.scheme, self.qmin..=self.qmax)?.to_unsigned();
        if !grid.is_unsigned_byte() {
            let reason = format!(
                "codes {}..={} are no bytes; activations take some of -128..=127 or of 0..=255",
                self.qmin, self.qmax
            );
            return Err(Error::Op { op: "quantize", reason });
        }
        Ok(grid)
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
        // A learned range is observed before training only.
        if context.mode.observe && (self.learn.is_none() || self.unseen(&state)) {
            state = self.observer.observe(&state, &x())?;
            context.update(index, state.clone());
        }
        self.params(&state)
    }

    /// Whether the observer and the way back need no more of the values than their extremes and bits.
    pub(crate) fn extremes_suffice(&self) -> bool {
        self.learn.is_none() && self.observer.extremes_suffice()
    }

    /// [`observe`](Self::observe) of values of which only the extremes are known, where they
    /// [suffice](Self::extremes_suffice).
    pub(crate) fn observe_extremes(
        &self,
        extremes: impl FnOnce() -> (f32, f32),
        state: &Value,
        index: usize,
        context: &mut Context,
    ) -> Result<QParams> {
        let mut state = state.float();
        if context.mode.observe {
            state = self.observer.observe_extremes(&state, extremes())?;
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

impl ActivationQuant {
    /// Whether nothing has been observed.
    fn unseen(&self, state: &Tensor<f32>) -> bool {
        state.len() != 2 || state.iter().eq([f32::INFINITY, f32::NEG_INFINITY])
    }

    /// The way back through the rounding of `y` to `params`; behind a fused activation.
    pub(crate) fn rounding(
        &self,
        y: &Tensor<f32>,
        params: QParams,
        activation: Activation,
    ) -> Rounding {
        let mask = Mask::of(y, move |y| params.covers(y) && activation.passes(y));
        let learned = self.learn.map(|learning| Learned {
            learning,
            scheme: self.scheme,
            params,
            // Below a ReLU there is nothing: its lower end stays at zero.
            lower: activation.min < 0.0,
            y: y.clone(),
        });
        Rounding { mask, learned }
    }
}

/// The way back through a rounding: the straight-through estimator lets the gradient pass where the
/// code before clamping was in range (and a fused activation open); a learned range gets its own.
pub(crate) struct Rounding {
    mask: Mask,
    learned: Option<Learned>,
}

impl Rounding {
    /// The way back where nothing was rounded: `mask` alone.
    pub(crate) fn none(mask: Mask) -> Self {
        Self { mask, learned: None }
    }

    /// The gradients of what was rounded, and of the range.
    pub(crate) fn back(&self, grad: Tensor<f32>) -> (Tensor<f32>, Option<Tensor<f32>>) {
        let range = self.range(&grad);
        (self.pass(grad), range)
    }

    /// [`back`](Self::back), and the sum of each channel of what was rounded.
    pub(crate) fn back_and_sum(
        &self,
        grad: Tensor<f32>,
    ) -> (Tensor<f32>, Vec<f32>, Option<Tensor<f32>>) {
        let range = self.range(&grad);
        let (grad, sums) = self.mask.apply_and_sum(grad);
        (grad, sums, range)
    }

    /// The gradient of what was rounded.
    pub(crate) fn pass(&self, grad: Tensor<f32>) -> Tensor<f32> {
        self.mask.apply(grad)
    }

    /// The gradient of the range, if it is learned.
    pub(crate) fn range(&self, grad: &Tensor<f32>) -> Option<Tensor<f32>> {
        self.learned.as_ref().map(|learned| learned.grad(grad))
    }

    /// The bits of where the gradient passes, for a tensor that lies in memory as `like`.
    pub(crate) fn bits(&self, like: &Tensor<f32>) -> Option<&[u64]> {
        self.mask.bits(like)
    }
}

struct Learned {
    learning: Learning,
    scheme: Scheme,
    params: QParams,
    lower: bool,
    y: Tensor<f32>,
}

impl Learned {
    /// The gradient of `[lo, hi]`.
    fn grad(&self, grad: &Tensor<f32>) -> Tensor<f32> {
        let params = self.params;
        let (lo, hi) = params.range();
        // The scale is the larger end divided by this many codes.
        let codes = (params.qmax() - params.qmin()) as f32;
        let steps = if self.scheme == Scheme::Affine { codes } else { codes / 2.0 };
        let inside = match self.learning {
            Learning::StepSize => (hi - lo).recip(),
            Learning::Clip => 0.0,
        };
        // Sum of the gradients beyond one end, plus (minus) what the rounding inside says.
        let end = |upper: bool| {
            let slope = if upper { inside } else { -inside };
            zip(grad, &self.y, move |g, y| {
                if params.covers(y) {
                    g * (params.fake_quantize(y) - y) * slope
                } else if (y > hi) == upper {
                    g
                } else {
                    0.0
                }
            })
            .sum()
        };
        let images = self.y.shape().first().copied().unwrap_or(1).max(1);
        let factor = match self.learning {
            Learning::StepSize => steps.powf(1.5) / ((self.y.len() / images).max(1) as f32).sqrt(),
            Learning::Clip => 1.0,
        };
        let ends = match (self.scheme, self.lower) {
            (Scheme::Affine, true) => [end(false), end(true)],
            (Scheme::Affine, false) => [0.0, end(true)],
            // Both ends are one magnitude, and move together.
            (Scheme::Symmetric, _) => {
                let both = end(true) - end(false);
                [-both, both]
            }
        };
        Tensor::new(&[2], ends.map(|g| g * factor)).expect("two ends")
    }
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
        let rounding = self.output.rounding(&x, params, Activation::NONE);
        Ok(Output::new(y, move |grad, _| {
            let (grad, range) = rounding.back(grad);
            vec![Some(grad), range]
        }))
    }
}
