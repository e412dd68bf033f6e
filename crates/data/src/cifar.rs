//! CIFAR-10 and CIFAR-100 in their binary form: records of one (CIFAR-100: two) label bytes and
//! 3×1024 bytes of red, green and blue planes.
//!
//! Source: A. Krizhevsky, "The CIFAR-10 dataset", section "Binary version".

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::dataset::{beyond, names_in, numbered};
use crate::{Dataset, Error, Image, Result, Sample, Split};

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

    /// Bytes of an image and its labels.
    fn record(self) -> usize {
        self.label_bytes() + 3 * AREA
    }
}

/// One split of CIFAR: the labels in memory, the pixels read from the files as they are asked for.
pub struct CifarSet {
    cifar: Cifar,
    batches: Vec<BatchFile>,
    labels: Vec<u8>,
    classes: Vec<String>,
}

/// A file of records, open.
struct BatchFile {
    path: PathBuf,
    file: Mutex<File>,
    /// The first record's number in the set.
    first: usize,
}

/// Opens one split of CIFAR in `dir`, or in the official folder inside `dir`, and reads its labels.
///
/// # Errors
/// [`Error::Io`] if a file is missing, [`Error::Format`] if one is not made of whole records or
/// holds a label beyond the classes.
pub fn read_cifar(dir: &Path, cifar: Cifar, split: Split) -> Result<CifarSet> {
    let dir = locate(dir, cifar, split);
    let (mut batches, mut labels) = (Vec::new(), Vec::new());
    for name in cifar.files(split) {
        let (path, first) = (dir.join(name), labels.len());
        let mut file = File::open(&path).map_err(|error| Error::io(&path, &error))?;
        read_labels(&path, &mut file, cifar, &mut labels)?;
        batches.push(BatchFile { path, file: Mutex::new(file), first });
    }
    Ok(CifarSet { cifar, batches, labels, classes: class_names(&dir, cifar)? })
}

impl CifarSet {
    /// The class of each image.
    pub fn labels(&self) -> &[u8] {
        &self.labels
    }
}

impl Dataset for CifarSet {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn shape(&self) -> Option<[usize; 3]> {
        Some(SHAPE)
    }

    fn get(&self, index: usize) -> Result<Sample> {
        let label = *self.labels.get(index).ok_or_else(|| beyond(index, self.len()))?;
        let batch = self.batches.partition_point(|batch| batch.first <= index) - 1;
        let batch = &self.batches[batch];
        let offset = (index - batch.first) * self.cifar.record() + self.cifar.label_bytes();
        let mut planes = [0; 3 * AREA];
        let read = |file: &mut File, planes: &mut [u8]| -> io::Result<()> {
            file.seek(SeekFrom::Start(offset as u64))?;
            file.read_exact(planes)
        };
        let mut file = batch.file.lock().unwrap_or_else(PoisonError::into_inner);
        read(&mut file, &mut planes).map_err(|error| Error::io(&batch.path, &error))?;
        drop(file);
        let [channels, height, width] = SHAPE;
        let image = Image::from_planes(channels, height, width, &planes)?;
        Ok(Sample { image, label: label.into() })
    }
}

fn locate(dir: &Path, cifar: Cifar, split: Split) -> PathBuf {
    let inner = dir.join(cifar.folder());
    let first = cifar.files(split)[0];
    if !dir.join(first).exists() && inner.join(first).exists() { inner } else { dir.into() }
}

/// The names in the file beside the batches, if it is there and complete; else the numbers.
fn class_names(dir: &Path, cifar: Cifar) -> Result<Vec<String>> {
    let names = names_in(&dir.join(cifar.names()))?.filter(|names| names.len() == cifar.classes());
    Ok(names.unwrap_or_else(|| numbered(cifar.classes())))
}

/// Goes over a file once, in pieces, and keeps the labels.
fn read_labels(path: &Path, file: &mut File, cifar: Cifar, labels: &mut Vec<u8>) -> Result<()> {
    let record = cifar.record();
    // Whole records, a few hundred kilobytes.
    let mut piece = vec![0; 128 * record];
    let (mut size, before) = (0, labels.len());
    loop {
        let mut filled = 0;
        while filled < piece.len() {
            match file.read(&mut piece[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io(path, &error)),
            }
        }
        size += filled;
        for bytes in piece[..filled].chunks_exact(record) {
            let label = bytes[cifar.label_bytes() - 1];
            if usize::from(label) >= cifar.classes() {
                let at = (labels.len() - before) * record + cifar.label_bytes() - 1;
                let reason = format!("label {label}, but there are {} classes", cifar.classes());
                return Err(Error::format(path, at as u64, reason));
            }
            labels.push(label);
        }
        if filled < piece.len() {
            break;
        }
    }
    if size == 0 || size % record != 0 {
        let whole = (size - size % record) as u64;
        let reason = format!("the file's {size} bytes are not a number of {record}-byte records");
        return Err(Error::format(path, whole, reason));
    }
    Ok(())
}
