use std::fmt;
use std::path::PathBuf;

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
    /// Levels that have no integer codes at that width.
    Levels {
        /// The levels.
        levels: crate::Levels,
        /// The width.
        bits: u8,
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
    /// A node of a program whose inputs or parameters do not fit.
    Node {
        /// The node's name.
        node: String,
        /// The operation.
        op: &'static str,
        /// What does not fit, with the numbers.
        reason: String,
    },
    /// A program was run on a tensor of another shape than it was made for.
    Input {
        /// The shape of one image.
        expected: Vec<usize>,
        /// The tensor's shape, batch first.
        shape: Vec<usize>,
    },
    /// A batch so large that its values do not fit in memory that can be addressed.
    Batch {
        /// The images.
        batch: usize,
    },
    /// A program whose packed weights and values for one image need more memory than any network's.
    Workspace {
        /// The bytes it needs.
        bytes: usize,
        /// The bytes there may be.
        most: u64,
    },
    /// A file that is no container, is cut off, or contradicts itself.
    File {
        /// The part of the file that was being read.
        part: &'static str,
        /// The byte of that part at which reading stopped.
        offset: usize,
        /// What is wrong there.
        reason: String,
    },
    /// A tensor or an entry that a file lacks, or has in another form.
    Entry {
        /// Its name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The operating system refused to read or write a file.
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        reason: String,
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
                write!(f, "codes {qmin}..={qmax} are no range of 2 to 65536 integers within ±2²⁴")
            }
            Self::Levels { levels, bits } => write!(
                f,
                "{levels:?} weights of {bits} bits have no integer codes; uniform ones take 2 to 8 bits, powers of two 2 to 4 (in float 5 to 8), additive powers of two 2 to 5"
            ),
            Self::BadRange { min, max } => write!(
                f,
                "the observed range is {min}..{max}; a NaN or an infinity reached an observer: check the input data and the learning rate"
            ),
            Self::ChannelCount { axis, shape, params } => write!(
                f,
                "{params} scales were given for axis {axis} of a tensor of shape {shape:?}"
            ),
            Self::Node { node, op, reason } => write!(f, "{op} {node:?}: {reason}"),
            Self::Input { expected, shape } => write!(
                f,
                "the program takes a batch of images of shape {expected:?}, but got a tensor of shape {shape:?}"
            ),
            Self::Workspace { bytes, most } => write!(
                f,
                "the program needs {bytes} bytes for its packed weights and the values of one image; at most {most} are allowed"
            ),
            Self::Batch { batch } => write!(
                f,
                "a batch of {batch} images is beyond what memory can address; run it in parts"
            ),
            Self::File { part, offset, reason } => write!(f, "{part}, byte {offset}: {reason}"),
            Self::Entry { name, reason } => write!(f, "{name:?}: {reason}"),
            Self::Io { path, reason } => write!(f, "{}: {reason}", path.display()),
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
