use ottava_tensor::{Tensor, elementwise};

use crate::QParams;

/// The interval that a result is clamped to: what a layer fuses behind its sum.
///
/// Among codes it costs nothing: the clamp to the range of codes is there anyway, and gets other ends
/// (`low = max(qmin, quantize(min))`, `high = min(qmax, quantize(max))`).
///
/// ```
/// use ottava_quant::{Activation, QParams};
///
/// let grid = QParams::new(0.05, 100, 0..=255)?;
/// let relu6 = Activation::RELU6.clamp(grid);
/// assert_eq!((relu6.qmin(), relu6.qmax()), (100, 220));
/// assert_eq!([-1.0, 7.0].map(|x| Activation::RELU6.apply(x)), [0.0, 6.0]);
/// assert!(Activation::RELU6.apply(f32::NAN).is_nan());
/// # Ok::<(), ottava_quant::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Activation {
    /// The lower end, −∞ for none.
    pub min: f32,
    /// The upper end, ∞ for none.
    pub max: f32,
}

impl Default for Activation {
    fn default() -> Self {
        Self::NONE
    }
}

impl Activation {
    /// Nothing is clamped.
    pub const NONE: Self = Self { min: f32::NEG_INFINITY, max: f32::INFINITY };
    /// `max(x, 0)`.
    pub const RELU: Self = Self { min: 0.0, max: f32::INFINITY };
    /// `min(max(x, 0), 6)`.
    pub const RELU6: Self = Self { min: 0.0, max: 6.0 };

    /// Whether a layer can fuse it: zero has to stay zero.
    pub fn holds_zero(self) -> bool {
        self.min <= 0.0 && 0.0 <= self.max
    }

    /// The clamped value; a NaN stays one.
    pub fn apply(self, x: f32) -> f32 {
        if x < self.min {
            self.min
        } else if x > self.max {
            self.max
        } else {
            x
        }
    }

    /// [`apply`](Self::apply) of every element.
    pub fn map(self, x: &Tensor<f32>) -> Tensor<f32> {
        match self {
            Self::NONE => x.clone(),
            Self::RELU => elementwise::relu(x),
            _ => x.map(move |x| self.apply(x)),
        }
    }

    /// Whether it is a ReLU, or nothing; `None` if it clamps to another interval. For passes that know
    /// those two alone.
    pub fn relu(self) -> Option<bool> {
        match self {
            Self::NONE => Some(false),
            Self::RELU => Some(true),
            _ => None,
        }
    }

    /// Whether a result was not clamped.
    pub fn passes(self, y: f32) -> bool {
        self.min < y && y < self.max
    }

    /// The grid with the codes inside the interval alone.
    pub fn clamp(self, grid: QParams) -> QParams {
        grid.between(grid.quantize(self.min), grid.quantize(self.max))
    }
}
