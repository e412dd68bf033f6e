use std::fmt;

/// What a tensor operation can refuse.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The number of elements does not fit the shape.
    Length {
        /// The shape asked for.
        shape: Vec<usize>,
        /// The elements there were.
        elements: usize,
    },
    /// Two shapes that had to agree, or to broadcast, do not.
    ShapeMismatch {
        /// The operation that was asked for.
        op: &'static str,
        /// The first shape.
        left: Vec<usize>,
        /// The second shape.
        right: Vec<usize>,
    },
    /// An operation on tensors of one rank met another.
    Rank {
        /// The operation that was asked for.
        op: &'static str,
        /// The rank it needs.
        expected: usize,
        /// The shape it met.
        shape: Vec<usize>,
    },
    /// An axis beyond the tensor's rank, or a permutation that is none.
    Axis {
        /// The operation that was asked for.
        op: &'static str,
        /// The axis.
        axis: usize,
        /// The rank of the tensor.
        rank: usize,
    },
    /// A range outside an axis.
    Range {
        /// The axis.
        axis: usize,
        /// First index asked for.
        start: usize,
        /// One past the last index asked for.
        end: usize,
        /// The axis' size.
        size: usize,
    },
    /// The number of elements or bytes of a shape is beyond what memory can address.
    Overflow {
        /// The shape asked for.
        shape: Vec<usize>,
    },
    /// A convolution or pooling whose numbers do not fit together.
    Geometry {
        /// What is wrong, with the numbers.
        reason: String,
    },
    /// A product of so many terms that an i32 sum of extreme codes and weights could overflow.
    Terms {
        /// Terms of one output: the window times the channels of a group.
        terms: usize,
        /// The most that are exact for every input.
        limit: usize,
    },
    /// An instruction set that this machine, or this build, does not have.
    UnknownLevel {
        /// The name asked for.
        name: String,
        /// The names this machine answers to.
        available: Vec<&'static str>,
    },
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length { shape, elements } => {
                match shape.iter().try_fold(1usize, |len, &size| len.checked_mul(size)) {
                    Some(len) => write!(f, "shape {shape:?} holds {len} elements")?,
                    None => write!(f, "shape {shape:?} holds more elements than can be counted")?,
                }
                write!(f, ", but {elements} were given")
            }
            Self::ShapeMismatch { op, left, right } => {
                write!(f, "{op}: shapes {left:?} and {right:?} do not fit together")
            }
            Self::Rank { op, expected, shape } => write!(
                f,
                "{op}: needs a tensor of {expected} dimensions, but got {} (shape {shape:?})",
                shape.len()
            ),
            Self::Axis { op, axis, rank } => {
                write!(f, "{op}: axis {axis} does not fit a tensor of {rank} dimensions")
            }
            Self::Range { axis, start, end, size } => {
                write!(f, "range {start}..{end} lies outside axis {axis}, whose size is {size}")
            }
            Self::Overflow { shape } => {
                write!(f, "a tensor of shape {shape:?} has more elements than memory can address")
            }
            Self::Geometry { reason } => f.write_str(reason),
            Self::Terms { terms, limit } => write!(
                f,
                "an integer product of {terms} terms could overflow its i32 sum; at most {limit} are exact"
            ),
            Self::UnknownLevel { name, available } => write!(
                f,
                "instruction set {name:?} is not available here; choose one of {}",
                available.join(", ")
            ),
        }
    }
}

impl std::error::Error for Error {}
