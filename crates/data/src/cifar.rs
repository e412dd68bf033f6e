//! CIFAR-10 and CIFAR-100 in their binary form: records of one (CIFAR-100: two) label bytes and
//! 3×1024 bytes of red, green and blue planes.
//!
//! Source: A. Krizhevsky, "The CIFAR-10 dataset", section "Binary version".

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::dataset::numbered;
use crate::{Error, ImageSet, Result, Split};

const AREA: usize = 32 * 32;
const SHAPE: [usize; 3] = [3, 32, 32];

/// Which of the two CIFAR data sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cifar {
    /// Ten classes.
    Ten,
    /// A hundred (fine) classes.
    Hundred,
}

impl Cifar {
    /// The folder that the official archive unpacks to.
    fn folder(self) -> &'static str {
        match self {
            Self::Ten => "cifar-10-batches-bin",
            Self::Hundred => "cifar-100-binary",
        }
    }

    fn files(self, split: Split) -> &'static [&'static str] {
        match (self, split) {
            (Self::Ten, Split::Train) => &[
                "data_batch_1.bin",
                "data_batch_2.bin",
                "data_batch_3.bin",
                "data_batch_4.bin",
                "data_batch_5.bin",
            ],
            (Self::Ten, Split::Test) => &["test_batch.bin"],
            (Self::Hundred, Split::Train) => &["train.bin"],
            (Self::Hundred, Split::Test) => &["test.bin"],
        }
    }

    fn names(self) -> &'static str {
        match self {
            Self::Ten => "batches.meta.txt",
            Self::Hundred => "fine_label_names.txt",
        }
    }

    fn classes(self) -> usize {
        match self {
            Self::Ten => 10,
            Self::Hundred => 100,
        }
    }

    /// Label bytes before the pixels; the last of them is the class.
    fn label_bytes(self) -> usize {
        match self {
            Self::Ten => 1,
            Self::Hundred => 2,
        }
    }
}

/// Reads one split of CIFAR from `dir`, or from the official folder inside `dir`.
///
/// # Errors
/// [`Error::Io`] if a file is missing, [`Error::Format`] if one is not made of whole records or
/// holds a label beyond the classes.
pub fn read_cifar(dir: &Path, cifar: Cifar, split: Split) -> Result<ImageSet> {
    let dir = locate(dir, cifar, split);
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for name in cifar.files(split) {
        read_batch(&dir.join(name), cifar, &mut pixels, &mut labels)?;
    }
    ImageSet::new(SHAPE, pixels, labels, class_names(&dir, cifar))
}

fn locate(dir: &Path, cifar: Cifar, split: Split) -> PathBuf {
    let inner = dir.join(cifar.folder());
    let first = cifar.files(split)[0];
    if !dir.join(first).exists() && inner.join(first).exists() { inner } else { dir.into() }
}

/// The names in the file beside the batches, if it is there and complete; else the numbers.
fn class_names(dir: &Path, cifar: Cifar) -> Vec<String> {
    let text = fs::read_to_string(dir.join(cifar.names())).unwrap_or_default();
    let names = text.lines().map(str::trim).filter(|name| !name.is_empty());
    let names: Vec<String> = names.map(String::from).collect();
    if names.len() == cifar.classes() { names } else { numbered(cifar.classes()) }
}

fn read_batch(path: &Path, cifar: Cifar, pixels: &mut Vec<u8>, labels: &mut Vec<u8>) -> Result<()> {
    let record = cifar.label_bytes() + 3 * AREA;
    let mut bytes = Vec::new();
    let mut read = || File::open(path)?.read_to_end(&mut bytes);
    let size = read().map_err(|error| Error::io(path, &error))?;
    if size == 0 || size % record != 0 {
        let whole = (size - size % record) as u64;
        let reason = format!("the file's {size} bytes are not a number of {record}-byte records");
        return Err(Error::format(path, whole, reason));
    }
    pixels.reserve(size / record * 3 * AREA);
    for (i, record_bytes) in bytes.chunks_exact(record).enumerate() {
        let (label, planes) = record_bytes.split_at(cifar.label_bytes());
        let label = label[label.len() - 1];
        if usize::from(label) >= cifar.classes() {
            let offset = (i * record + cifar.label_bytes() - 1) as u64;
            let reason = format!("label {label}, but there are {} classes", cifar.classes());
            return Err(Error::format(path, offset, reason));
        }
        labels.push(label);
        let (red, rest) = planes.split_at(AREA);
        let (green, blue) = rest.split_at(AREA);
        for ((&r, &g), &b) in red.iter().zip(green).zip(blue) {
            pixels.extend([r, g, b]);
        }
    }
    Ok(())
}
