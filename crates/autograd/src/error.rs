use std::fmt;

/// What the tape and the graph can refuse.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// What the tensor crate refused.
    Tensor(ottava_tensor::Error),
    /// What the quantization crate refused.
    Quant(ottava_quant::Error),
    /// An operator refused its inputs.
    Op {
        /// The operator.
        op: &'static str,
        /// What is wrong, with the numbers.
        reason: String,
    },
    /// An error inside a named node of a graph.
    Node {
        /// The node's name.
        name: String,
        /// What went wrong there.
        source: Box<Error>,
    },
    /// A graph that cannot be traced.
    Trace {
        /// What is wrong and what to do.
        reason: String,
    },
    /// A loss that is NaN or infinite.
    NonFinite {
        /// What the value is.
        what: &'static str,
        /// The value.
        value: f32,
    },
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The same error, said of the node `name`.
    pub fn at(self, name: &str) -> Self {
        match self {
            named @ Self::Node { .. } => named,
            source => Self::Node { name: name.into(), source: Box::new(source) },
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tensor(error) => error.fmt(f),
            Self::Quant(error) => error.fmt(f),
            Self::Op { op, reason } => write!(f, "{op}: {reason}"),
            Self::Node { name, source } => write!(f, "layer `{name}`: {source}"),
            Self::Trace { reason } => write!(f, "the network cannot be traced: {reason}"),
            Self::NonFinite { what, value } => write!(
                f,
                "{what} is {value}; lower the learning rate, or look for NaNs in the input data"
            ),
        }
    }
}

// No `source`: the message of a node's error already ends with what went wrong there.
impl std::error::Error for Error {}

impl From<ottava_tensor::Error> for Error {
    fn from(error: ottava_tensor::Error) -> Self {
        Self::Tensor(error)
    }
}

impl From<ottava_quant::Error> for Error {
    fn from(error: ottava_quant::Error) -> Self {
        Self::Quant(error)
    }
}
