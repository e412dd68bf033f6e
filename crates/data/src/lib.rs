//! Images for Ottava: data sets, transforms, and a shuffled, batched, deterministic loader.
//!
//! Start at [`DataSpec`] for the data sets by name, at [`Preprocess`] for what happens to a pixel
//! before a network sees it, at [`Loader`] for batches. Not here: anything a network computes.
#![forbid(unsafe_code)]

mod augment;
mod cifar;
mod color;
mod dataset;
#[cfg(feature = "images")]
mod decode;
#[cfg(feature = "fashion-mini")]
mod embedded;
mod error;
#[cfg(feature = "images")]
mod folder;
mod idx;
mod image;
#[cfg(feature = "images")]
mod jpeg;
mod loader;
mod mnist;
mod preprocess;
mod resize;
mod rng;
mod spec;
mod synthetic;

pub use augment::{Augment, ColorJitter, ResizedCrop};
pub use cifar::{Cifar, CifarSet, read_cifar};
pub use dataset::{Dataset, ImageSet, Sample, Subset};
#[cfg(feature = "images")]
pub use decode::{decode_image, read_image};
#[cfg(feature = "fashion-mini")]
pub use embedded::fashion_mini;
pub use error::{Error, Result};
#[cfg(feature = "images")]
pub use folder::ImageFolder;
pub use idx::{idx_from_bytes, read_idx};
pub use image::Image;
pub use loader::{Batch, Epoch, Loader, LoaderOptions, MAX_WORKERS, OnBadImage};
pub use mnist::read_mnist;
pub use preprocess::{Pixels, Preprocess, Resize};
pub use spec::{DataSpec, Split};
pub use synthetic::Synthetic;
