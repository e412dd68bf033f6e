use std::path::Path;
use std::{fmt, io};

/// Everything this crate can refuse.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// The operating system would not let us read or write a file.
    Io {
        /// The file.
        path: String,
        /// What the system said.
        reason: String,
    },
    /// A file is not what it should be, or is damaged.
    Format {
        /// The file.
        path: String,
        /// What is wrong and where, with the numbers.
        reason: String,
    },
    /// A file holds something that this crate does not read, on purpose or not yet.
    Unsupported {
        /// The file.
        path: String,
        /// What it holds, by name, and what to do.
        reason: String,
    },
    /// A file that could not be written, as the quantization crate says it.
    Write(ottava_quant::Error),
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn io(path: &Path, error: &io::Error) -> Self {
        Self::Io { path: path.display().to_string(), reason: error.to_string() }
    }

    #[cfg(any(feature = "safetensors", feature = "pth", feature = "onnx"))]
    pub(crate) fn format(path: &str, reason: impl Into<String>) -> Self {
        Self::Format { path: path.into(), reason: reason.into() }
    }

    pub(crate) fn unsupported(path: &str, reason: impl Into<String>) -> Self {
        Self::Unsupported { path: path.into(), reason: reason.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { path, reason }
            | Self::Format { path, reason }
            | Self::Unsupported { path, reason } => write!(f, "{path}: {reason}"),
            Self::Write(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

impl From<ottava_quant::Error> for Error {
    fn from(error: ottava_quant::Error) -> Self {
        Self::Write(error)
    }
}
