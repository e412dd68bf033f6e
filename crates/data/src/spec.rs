use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use crate::{Cifar, Dataset, Error, Preprocess, Result, Synthetic, mnist, read_cifar};

/// Which part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// What a network learns from.
    Train,
    /// What it is judged by: the test set, or the validation set where there is no other.
    Test,
}

/// A data set by name, as `--data` takes it.
///
/// | spec | reads |
/// | --- | --- |
/// | `fashion-mini` | the embedded photos |
/// | `idx:DIR` | the MNIST family: IDX files, plain or gzip |
/// | `cifar10:DIR`, `cifar100:DIR` | the binary versions; `DIR` may be the folder around them |
/// | `folder:DIR` | pictures in `DIR/train/CLASS`, `DIR/val/CLASS` |
/// | `synthetic:CxHxW:CLASSES:N[:SEED]` | `N` made-up images to train on, a fifth as many to test |
///
/// ```
/// use ottava_data::{Dataset, DataSpec, Split};
///
/// let spec: DataSpec = "synthetic:3x32x32:10:500".parse()?;
/// assert_eq!(spec.load(Split::Test)?.len(), 100);
/// # Ok::<(), ottava_data::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DataSpec {
    /// The embedded data set.
    #[cfg(feature = "fashion-mini")]
    FashionMini,
    /// A folder of IDX files.
    Idx(PathBuf),
    /// A folder of CIFAR batches.
    Cifar(Cifar, PathBuf),
    /// Folders of pictures, one a class.
    #[cfg(feature = "images")]
    Folder(PathBuf),
    /// Images made from numbers.
    Synthetic {
        /// Channels, height, width.
        shape: [usize; 3],
        /// How many classes.
        classes: usize,
        /// How many images to train on; the test has a fifth of them, at least one a class.
        len: usize,
        /// What the images depend on.
        seed: u64,
    },
}

/// The names, for messages.
const KNOWN: &str = "fashion-mini, idx:DIR, cifar10:DIR, cifar100:DIR, folder:DIR, \
                     synthetic:CxHxW:CLASSES:N";

impl DataSpec {
    /// Reads (or makes) one split.
    ///
    /// # Errors
    /// Those of the reader: what is wrong, with which file, and where in it.
    pub fn load(&self, split: Split) -> Result<Arc<dyn Dataset>> {
        Ok(match self {
            #[cfg(feature = "fashion-mini")]
            Self::FashionMini => Arc::new(crate::fashion_mini(split)?),
            Self::Idx(dir) => Arc::new(mnist::read_mnist(dir, split)?),
            Self::Cifar(cifar, dir) => Arc::new(read_cifar(dir, *cifar, split)?),
            #[cfg(feature = "images")]
            Self::Folder(dir) => Arc::new(crate::ImageFolder::new(dir, split)?),
            Self::Synthetic { shape, classes, len, seed } => {
                let len = match split {
                    Split::Train => *len,
                    Split::Test => (len / 5).max(*classes),
                };
                Arc::new(Synthetic::new(*shape, *classes, len, *seed, split)?)
            }
        })
    }

    /// The preprocessing that suits the data set where nobody asks for another.
    pub fn preprocess(&self) -> Preprocess {
        match self {
            #[cfg(feature = "fashion-mini")]
            Self::FashionMini => Preprocess::fashion(),
            Self::Cifar(..) => Preprocess::cifar10(),
            #[cfg(feature = "images")]
            Self::Folder(_) => Preprocess::imagenet(),
            Self::Idx(_) | Self::Synthetic { .. } => Preprocess::unit(),
        }
    }
}

impl FromStr for DataSpec {
    type Err = Error;

    fn from_str(spec: &str) -> Result<Self> {
        let refuse = |reason: String| Error::Spec { spec: spec.into(), reason };
        let (name, rest) = spec.split_once(':').unwrap_or((spec, ""));
        let dir = || match rest {
            "" => Err(refuse(format!("a directory is missing; write {name}:DIR"))),
            dir => Ok(PathBuf::from(dir)),
        };
        match name {
            "fashion-mini" if !rest.is_empty() => {
                Err(refuse("fashion-mini is embedded and takes no directory".into()))
            }
            #[cfg(feature = "fashion-mini")]
            "fashion-mini" => Ok(Self::FashionMini),
            #[cfg(not(feature = "fashion-mini"))]
            "fashion-mini" => Err(refuse("this program was built without it".into())),
            "idx" => Ok(Self::Idx(dir()?)),
            "cifar10" => Ok(Self::Cifar(Cifar::Ten, dir()?)),
            "cifar100" => Ok(Self::Cifar(Cifar::Hundred, dir()?)),
            #[cfg(feature = "images")]
            "folder" => Ok(Self::Folder(dir()?)),
            #[cfg(not(feature = "images"))]
            "folder" => Err(refuse("this program was built without image files".into())),
            "synthetic" => synthetic(rest).ok_or_else(|| {
                refuse("write synthetic:CxHxW:CLASSES:N, as in synthetic:3x32x32:10:1000".into())
            }),
            _ => Err(refuse(format!("no such data set; known are {KNOWN}"))),
        }
    }
}

fn synthetic(rest: &str) -> Option<DataSpec> {
    let parts: Vec<&str> = rest.split(':').collect();
    let (shape, classes, len, seed) = match parts[..] {
        [shape, classes, len] => (shape, classes, len, "0"),
        [shape, classes, len, seed] => (shape, classes, len, seed),
        _ => return None,
    };
    let sizes: Option<Vec<usize>> = shape.split('x').map(|size| size.parse().ok()).collect();
    Some(DataSpec::Synthetic {
        shape: sizes?.try_into().ok()?,
        classes: classes.parse().ok()?,
        len: len.parse().ok()?,
        seed: seed.parse().ok()?,
    })
}

impl fmt::Display for DataSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            #[cfg(feature = "fashion-mini")]
            Self::FashionMini => f.write_str("fashion-mini"),
            Self::Idx(dir) => write!(f, "idx:{}", dir.display()),
            Self::Cifar(Cifar::Ten, dir) => write!(f, "cifar10:{}", dir.display()),
            Self::Cifar(Cifar::Hundred, dir) => write!(f, "cifar100:{}", dir.display()),
            #[cfg(feature = "images")]
            Self::Folder(dir) => write!(f, "folder:{}", dir.display()),
            Self::Synthetic { shape: [c, h, w], classes, len, seed } => {
                write!(f, "synthetic:{c}x{h}x{w}:{classes}:{len}:{seed}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_the_round_trip() {
        for spec in ["idx:a b/c", "cifar10:x", "cifar100:x:y", "synthetic:1x2x3:4:5:6"] {
            assert_eq!(spec.parse::<DataSpec>().unwrap().to_string(), spec);
        }
    }

    #[test]
    fn a_wrong_name_says_what_to_write() {
        let message = |spec: &str| spec.parse::<DataSpec>().unwrap_err().to_string();
        assert!(message("imagenet").contains("known are fashion-mini"));
        assert!(message("cifar10").contains("write cifar10:DIR"));
        for spec in
            ["synthetic", "synthetic:3x3:1:1", "synthetic:3x3x3:1", "synthetic:3x3x3:1:1:1:1"]
        {
            assert!(message(spec).contains("synthetic:3x32x32:10:1000"), "{spec}");
        }
    }
}
