use std::path::Path;
use std::{fmt, io};

/// Everything this crate can refuse.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The operating system would not let us read a file.
    Io {
        /// The file or directory.
        path: String,
        /// What the system said.
        reason: String,
    },
    /// A file is not what it should be.
    Format {
        /// The file.
        path: String,
        /// Where in it, in bytes (after decompression).
        offset: u64,
        /// What is wrong, with the numbers.
        reason: String,
    },
    /// A data set's name that cannot be understood.
    Spec {
        /// The name.
        spec: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A preprocessing or augmentation that cannot be understood, or does not fit the images.
    Preprocess {
        /// What is wrong, with the numbers.
        reason: String,
    },
    /// A data set without images, or with images and labels that do not belong together.
    DataSet {
        /// What is wrong, with the numbers.
        reason: String,
    },
    /// A loader that cannot work, or no longer does.
    Loader {
        /// What is wrong, with the numbers.
        reason: String,
    },
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn io(path: &Path, error: &io::Error) -> Self {
        Self::Io { path: path.display().to_string(), reason: error.to_string() }
    }

    pub(crate) fn format(path: &Path, offset: u64, reason: impl Into<String>) -> Self {
        Self::Format { path: path.display().to_string(), offset, reason: reason.into() }
    }

    pub(crate) fn preprocess(reason: impl Into<String>) -> Self {
        Self::Preprocess { reason: reason.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { path, reason } => write!(f, "cannot read {path}: {reason}"),
            Self::Format { path, offset, reason } => {
                write!(f, "{path}, byte {offset}: {reason}")
            }
            Self::Spec { spec, reason } => write!(f, "data set {spec:?}: {reason}"),
            Self::Preprocess { reason } | Self::DataSet { reason } | Self::Loader { reason } => {
                f.write_str(reason)
            }
        }
    }
}

impl std::error::Error for Error {}
