//! A folder of the MNIST family: images and labels in IDX files, named by split.

use std::path::{Path, PathBuf};

use crate::dataset::{names_in, numbered};
use crate::idx::read_idx;
use crate::{Error, ImageSet, Result, Split};

/// The share of images that train where a folder has no splits: four of five, as in scikit-learn's
/// use of the digits (1437 of 1797).
const TRAIN_SHARE: (usize, usize) = (4, 5);

/// Reads one split of an MNIST-like folder: `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`,
/// `t10k-…` (or `test-…`) for the test, each plain or with `.gz`. A folder that holds
/// `images-idx3-ubyte` and `labels-idx1-ubyte` alone is split: the first four fifths train.
/// Class names come from `labels.txt`, one per line, if it is there.
///
/// # Errors
/// [`Error::Io`] or [`Error::Format`] for files that are missing or damaged, [`Error::DataSet`] for
/// images and labels that do not belong together.
pub fn read_mnist(dir: &Path, split: Split) -> Result<ImageSet> {
    let prefixes: &[&str] = match split {
        Split::Train => &["train-", ""],
        Split::Test => &["t10k-", "test-", ""],
    };
    let found = prefixes.iter().find_map(|&prefix| Some((prefix, find(dir, prefix, "images", 3)?)));
    let Some((prefix, images)) = found else {
        let reason = format!(
            "no {}images-idx3-ubyte (nor with .gz) here; see the documentation for how to fetch a \
             data set",
            prefixes[0]
        );
        return Err(Error::Io { path: dir.display().to_string(), reason });
    };
    let (dims, pixels) = read_idx(&images, 3)?;
    let labels = labels(dir, prefix)?;
    if labels.len() != dims[0] {
        let reason =
            format!("{} holds {} images, but {} labels", images.display(), dims[0], labels.len());
        return Err(Error::DataSet { reason });
    }
    let classes = class_names(dir, prefix, &labels)?;
    let shape = [1, dims[1], dims[2]];
    if !prefix.is_empty() {
        return ImageSet::new(shape, pixels, labels, classes);
    }
    let middle = labels.len() * TRAIN_SHARE.0 / TRAIN_SHARE.1;
    let (begin, end) = match split {
        Split::Train => (0, middle),
        Split::Test => (middle, labels.len()),
    };
    let size = dims[1] * dims[2];
    let pixels = pixels[begin * size..end * size].to_vec();
    ImageSet::new(shape, pixels, labels[begin..end].to_vec(), classes)
}

/// The file of a split, under any of the names in use.
fn find(dir: &Path, prefix: &str, what: &str, rank: usize) -> Option<PathBuf> {
    ["-", "."].into_iter().flat_map(|dash| ["", ".gz"].map(|end| (dash, end))).find_map(
        |(dash, end)| {
            let path = dir.join(format!("{prefix}{what}{dash}idx{rank}-ubyte{end}"));
            path.is_file().then_some(path)
        },
    )
}

fn labels(dir: &Path, prefix: &str) -> Result<Vec<u8>> {
    match find(dir, prefix, "labels", 1) {
        Some(path) => Ok(read_idx(&path, 1)?.1),
        None => {
            let path = dir.join(format!("{prefix}labels-idx1-ubyte"));
            let reason = "the file is missing (and so is one with .gz)".into();
            Err(Error::Io { path: path.display().to_string(), reason })
        }
    }
}

/// From `labels.txt`; else as many numbers as the labels of both splits need, so that training and
/// test agree.
fn class_names(dir: &Path, prefix: &str, own: &[u8]) -> Result<Vec<String>> {
    if let Some(names) = names_in(&dir.join("labels.txt"))? {
        return Ok(names);
    }
    let mut highest = own.iter().max().copied().unwrap_or(0);
    for other in ["train-", "t10k-", "test-"] {
        if other != prefix
            && let Some(path) = find(dir, other, "labels", 1)
        {
            highest = highest.max(read_idx(&path, 1)?.1.into_iter().max().unwrap_or(0));
        }
    }
    Ok(numbered(usize::from(highest) + 1))
}
