//! The arithmetic between an exact sum and a code: the law that every instruction set equals.

/// From the `i32` sum of a channel to the next layer's code:
///
/// `y = clamp(round((acc + bias[c]) as f32 · multiplier[c]), low − z, high − z) + z`,
///
/// rounding half to even, the clamp taken in `f32` before it, nothing fused. A ReLU is
/// `low = zero_point`. `acc + bias` is modulo 2³²; whoever chose the bias has checked that it fits.
///
/// # Source
/// ONNX `QLinearConv` with `multiplier[c] = x_scale · w_scale[c] / y_scale`, as ONNX Runtime
/// computes it; Jacob et al. 2018, eq. 4 (arXiv:1712.05877).
#[derive(Clone, Debug, PartialEq)]
pub struct Requantize {
    /// One for each output channel, at scale `x_scale · w_scale[c]`. The input's zero point is the
    /// kernels' business, not the bias'.
    pub bias: Vec<i32>,
    /// One for each output channel.
    pub multiplier: Vec<f32>,
    /// The output's zero point.
    pub zero_point: u8,
    /// The smallest code of the output.
    pub low: u8,
    /// The largest code of the output.
    pub high: u8,
}

impl Requantize {
    /// The code of `acc` in `channel`.
    pub fn apply(&self, channel: usize, acc: i32) -> u8 {
        self.grid().code(acc.wrapping_add(self.bias[channel]), self.multiplier[channel])
    }

    /// The bounds and zero point as the kernels hold them.
    pub fn grid(&self) -> Grid {
        Grid::new(self.zero_point, self.low, self.high)
    }
}

/// The clamp of a [`Requantize`], relative to its zero point: its law for one element at a time, for
/// loops that have the sums, biases and multipliers at hand.
///
/// ```
/// use ottava_tensor::conv::int8::Requantize;
///
/// let law = Requantize { bias: vec![4], multiplier: vec![0.5], zero_point: 3, low: 0, high: 255 };
/// assert_eq!(law.grid().code(6 + law.bias[0], law.multiplier[0]), law.apply(0, 6));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    /// `low − zero_point`.
    pub(crate) low: f32,
    /// `high − zero_point`.
    pub(crate) high: f32,
    /// The output's zero point.
    pub(crate) zero_point: i32,
    /// The lower bound as a code.
    #[cfg(target_arch = "x86_64")]
    pub(crate) lowest: u8,
}

impl Grid {
    pub(crate) fn new(zero_point: u8, low: u8, high: u8) -> Self {
        let zero_point = i32::from(zero_point);
        Self {
            #[cfg(target_arch = "x86_64")]
            lowest: low,
            low: (i32::from(low) - zero_point) as f32,
            high: (i32::from(high) - zero_point) as f32,
            zero_point,
        }
    }

    /// The code of a sum that holds its bias, of a channel with this multiplier.
    #[inline(always)]
    pub fn code(self, acc: i32, multiplier: f32) -> u8 {
        let v = clamp(acc as f32 * multiplier, self.low, self.high);
        (v.round_ties_even() as i32 + self.zero_point) as u8
    }
}

/// The sum of two quantized tensors `a` and `b` as codes:
///
/// `y = clamp(round(a · a_ratio + (b · b_ratio + fixed)), low, high)`,
///
/// in `f32`, in this order, each product and sum rounded once (a fused multiply-add). With `a_ratio = a_scale / y_scale`,
/// `b_ratio = b_scale / y_scale` and `fixed = y_zero − (a_ratio · a_zero + b_ratio · b_zero)` this is
/// ONNX Runtime's `QLinearAdd` on CPUs with FMA, bit for bit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AddCodes {
    /// `a_scale / y_scale`.
    pub a_ratio: f32,
    /// `b_scale / y_scale`.
    pub b_ratio: f32,
    /// `y_zero − (a_ratio · a_zero + b_ratio · b_zero)`.
    pub fixed: f32,
    /// The smallest code of the sum; the zero point behind a ReLU.
    pub low: u8,
    /// The largest code of the sum.
    pub high: u8,
}

impl AddCodes {
    /// The code of `a + b`.
    #[inline(always)]
    pub fn apply(&self, a: u8, b: u8) -> u8 {
        let b = f32::from(b).mul_add(self.b_ratio, self.fixed);
        let sum = f32::from(a).mul_add(self.a_ratio, b);
        clamp(sum, self.low.into(), self.high.into()).round_ties_even() as u8
    }
}

/// `x` between bounds; `high` for NaN, as the vector instructions have it.
#[inline(always)]
fn clamp(x: f32, low: f32, high: f32) -> f32 {
    let x = if x < high { x } else { high };
    if x > low { x } else { low }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_even_and_relu_starts_at_the_zero_point() {
        let law =
            Requantize { bias: vec![1], multiplier: vec![0.5], zero_point: 10, low: 10, high: 255 };
        assert_eq!([0, 2, 4, -100].map(|acc| law.apply(0, acc)), [10, 12, 12, 10]);
        assert_eq!(law.apply(0, i32::MAX - 1), 255);
    }

    #[test]
    fn values_beyond_i32_clamp_and_nan_is_the_upper_bound() {
        let mut law =
            Requantize { bias: vec![0], multiplier: vec![1e30], zero_point: 3, low: 1, high: 250 };
        assert_eq!([i32::MAX, i32::MIN, 0].map(|acc| law.apply(0, acc)), [250, 1, 3]);
        law.multiplier[0] = f32::NAN;
        assert_eq!(law.apply(0, 5), 250);
    }
}
