//! PyTorch state dicts, read without running what they contain.
//!
//! `torch.save` writes a *pickle*, a program for a stack machine that may call any Python function.
//! [`pickle`] is that machine with nothing to call but what builds dictionaries and tensors;
//! whatever else a file names is refused by that name. Around it, [`archive`] finds the pickle and
//! the numbers in a file, and [`tensors`] turns storages and strides into tensors.

mod archive;
mod pickle;
mod tensors;
mod value;

use std::fs;
use std::path::Path;

use crate::{Error, Result, StateDict};

/// Reads the weights of a `.pth`, `.pt` or `.th` file: a state dict itself, or a dictionary that
/// holds one as `state_dict`, `model_state_dict`, `model` or the like.
///
/// Both of PyTorch's formats are read: the (uncompressed) zip archive, and what `torch.save` wrote
/// before version 1.6. Nothing in the file is executed. An archive's checksums are compared, where it has
/// any: `torch.serialization.set_crc32_options(False)` leaves them zero.
///
/// # Errors
/// [`Error::Io`], [`Error::Format`] for a damaged file, [`Error::Unsupported`] for one that needs
/// more than tensors in dictionaries: save `model.state_dict()` instead of what it was.
pub fn read_pth(path: &Path) -> Result<StateDict> {
    let bytes = fs::read(path).map_err(|error| Error::io(path, &error))?;
    pth_from_bytes(&path.display().to_string(), &bytes)
}

/// The same from memory; `name` stands for the path in errors.
///
/// # Errors
/// As [`read_pth`].
pub fn pth_from_bytes(name: &str, bytes: &[u8]) -> Result<StateDict> {
    let load = || {
        let checkpoint = archive::open(bytes)?;
        tensors::state_dict(&checkpoint, bytes.len())
    };
    load().map_err(|refusal| match refusal {
        Refusal::Damaged(reason) => Error::format(name, format!("damaged state dict: {reason}")),
        Refusal::Unsupported(reason) => Error::unsupported(name, reason),
    })
}

/// Why a file is not read.
#[derive(Debug)]
enum Refusal {
    /// It is not what it should be.
    Damaged(String),
    /// It asks for what we do not do.
    Unsupported(String),
}

impl Refusal {
    fn damaged<T>(reason: impl Into<String>) -> Result<T, Self> {
        Err(Self::Damaged(reason.into()))
    }

    fn unsupported<T>(reason: impl Into<String>) -> Result<T, Self> {
        Err(Self::Unsupported(reason.into()))
    }
}
