use std::fmt;

/// Everything this crate can refuse.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// A quantization scale that is zero, negative, infinite or NaN.
    BadScale {
        /// The channel it belongs to; 0 for a whole tensor.
        channel: usize,
        /// The scale.
        scale: f32,
    },
    /// A zero-point outside the codes' range.
    BadZeroPoint {
        /// The zero-point.
        zero_point: i32,
        /// The smallest code.
        qmin: i32,
        /// The largest code.
        qmax: i32,
    },
    /// A range of codes that is empty or wider than 16 bits.
    BadCodes {
        /// The smallest code.
        qmin: i32,
        /// The largest code.
        qmax: i32,
    },
    /// A range of values with a NaN or an infinity in it.
    BadRange {
        /// The smallest value.
        min: f32,
        /// The largest value.
        max: f32,
    },
    /// Another number of channels than there are scales.
    ChannelCount {
        /// The axis whose indices are the channels.
        axis: usize,
        /// The tensor's shape.
        shape: Vec<usize>,
        /// The number of quantization parameters.
        params: usize,
    },
    /// What the tensor crate refused.
    Tensor(ottava_tensor::Error),
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadScale { channel, scale } => write!(
                f,
                "scale of channel {channel} is {scale}, but must be finite and above zero; was the observer run on any data?"
            ),
            Self::BadZeroPoint { zero_point, qmin, qmax } => {
                write!(f, "zero-point {zero_point} lies outside the codes {qmin}..={qmax}")
            }
            Self::BadCodes { qmin, qmax } => {
                write!(f, "codes {qmin}..={qmax} are no range of 2 to 65536 integers")
            }
            Self::BadRange { min, max } => write!(
                f,
                "the observed range is {min}..{max}; a NaN or an infinity reached an observer: check the input data and the learning rate"
            ),
            Self::ChannelCount { axis, shape, params } => write!(
                f,
                "{params} scales were given for axis {axis} of a tensor of shape {shape:?}"
            ),
            Self::Tensor(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

impl From<ottava_tensor::Error> for Error {
    fn from(error: ottava_tensor::Error) -> Self {
        Self::Tensor(error)
    }
}
