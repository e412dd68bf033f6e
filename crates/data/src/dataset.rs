use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use crate::{Error, Image, Result};

/// A picture and its class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The picture.
    pub image: Image,
    /// The class: an index into [`Dataset::classes`].
    pub label: usize,
}

/// Labelled images, by number. Read by many threads at once.
pub trait Dataset: Send + Sync {
    /// How many images there are.
    fn len(&self) -> usize;

    /// Whether there are no images.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The classes' names; a label is an index into them.
    fn classes(&self) -> &[String];

    /// `[channels, height, width]` if all images agree on it.
    fn shape(&self) -> Option<[usize; 3]>;

    /// The image at `index`.
    ///
    /// # Errors
    /// [`Error::DataSet`] if there is no such image, or the error of reading and decoding its file.
    fn get(&self, index: usize) -> Result<Sample>;
}

/// Images of one size, in memory.
#[derive(Clone)]
pub struct ImageSet {
    shape: [usize; 3],
    /// All images in `height, width, channels` order, one after the other.
    pixels: Vec<u8>,
    labels: Vec<u8>,
    classes: Vec<String>,
}

impl ImageSet {
    /// A set of `labels.len()` images of shape `[channels, height, width]`, whose `pixels` lie in
    /// `image, height, width, channels` order.
    ///
    /// # Errors
    /// [`Error::DataSet`] if there are no images, if pixels are missing or left over, or if a label
    /// has no class.
    pub fn new(
        shape: [usize; 3],
        pixels: Vec<u8>,
        labels: Vec<u8>,
        classes: Vec<String>,
    ) -> Result<Self> {
        let refuse = |reason: String| Err(Error::DataSet { reason });
        let size = shape.iter().try_fold(labels.len(), |len, &dim| len.checked_mul(dim));
        if labels.is_empty() || size == Some(0) {
            return refuse(format!(
                "a data set of {} images of shape {shape:?} is empty",
                labels.len()
            ));
        }
        if size != Some(pixels.len()) {
            let (images, bytes) = (labels.len(), pixels.len());
            return refuse(format!("{images} images of shape {shape:?} do not fit {bytes} pixels"));
        }
        let wrong = labels.iter().position(|&label| usize::from(label) >= classes.len());
        if let Some(index) = wrong {
            let (label, classes) = (labels[index], classes.len());
            return refuse(format!(
                "image {index} has label {label}, but there are {classes} classes"
            ));
        }
        Ok(Self { shape, pixels, labels, classes })
    }

    /// The class of each image.
    pub fn labels(&self) -> &[u8] {
        &self.labels
    }
}

impl Dataset for ImageSet {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn shape(&self) -> Option<[usize; 3]> {
        Some(self.shape)
    }

    fn get(&self, index: usize) -> Result<Sample> {
        let label = *self.labels.get(index).ok_or_else(|| beyond(index, self.len()))?;
        let [channels, height, width] = self.shape;
        let size = channels * height * width;
        let pixels = self.pixels[index * size..][..size].to_vec();
        Ok(Sample { image: Image::new(channels, height, width, pixels)?, label: label.into() })
    }
}

/// Some of the images of another data set, in an order of its own: a calibration set, a validation
/// split, a smaller test.
#[derive(Clone)]
pub struct Subset {
    whole: Arc<dyn Dataset>,
    indices: Vec<usize>,
}

impl Subset {
    /// The images of `whole` at `indices`.
    ///
    /// # Errors
    /// [`Error::DataSet`] if an index is beyond the set.
    pub fn new(whole: Arc<dyn Dataset>, indices: Vec<usize>) -> Result<Self> {
        match indices.iter().find(|&&index| index >= whole.len()) {
            Some(&index) => Err(beyond(index, whole.len())),
            None => Ok(Self { whole, indices }),
        }
    }

    /// At most `count` images, evenly spread over `whole`, so that a set sorted by class is
    /// represented fairly.
    pub fn spread(whole: Arc<dyn Dataset>, count: usize) -> Self {
        Self { indices: spread(whole.len(), count).collect(), whole }
    }
}

/// At most `count` of `len` indices, evenly spread.
pub(crate) fn spread(len: usize, count: usize) -> impl Iterator<Item = usize> {
    let count = count.min(len);
    (0..count).map(move |i| (i as u128 * len as u128 / count as u128) as usize)
}

/// The names of classes that a file lists, one a line, if it is there. A line left blank is a class without a name,
/// which its number stands for.
///
/// # Errors
/// [`Error::Io`] if it cannot be read.
pub(crate) fn names_in(path: &Path) -> Result<Option<Vec<String>>> {
    match fs::read_to_string(path) {
        Ok(text) => {
            let names = text.trim_end().lines().map(str::trim).enumerate();
            let named = |(class, name): (usize, &str)| match name {
                "" => class.to_string(),
                name => name.to_owned(),
            };
            Ok(Some(names.map(named).collect()))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(path, &error)),
    }
}

impl Dataset for Subset {
    fn len(&self) -> usize {
        self.indices.len()
    }

    fn classes(&self) -> &[String] {
        self.whole.classes()
    }

    fn shape(&self) -> Option<[usize; 3]> {
        self.whole.shape()
    }

    fn get(&self, index: usize) -> Result<Sample> {
        let &index = self.indices.get(index).ok_or_else(|| beyond(index, self.len()))?;
        self.whole.get(index)
    }
}

pub(crate) fn beyond(index: usize, len: usize) -> Error {
    Error::DataSet { reason: format!("image {index} of a data set of {len} was asked for") }
}

/// Names for classes that have none: their numbers.
pub(crate) fn numbered(classes: usize) -> Vec<String> {
    (0..classes).map(|class| class.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn four() -> ImageSet {
        ImageSet::new([1, 1, 2], (0..8).collect(), vec![0, 1, 0, 1], numbered(2)).unwrap()
    }

    #[test]
    fn images_come_by_number() {
        let sample = four().get(3).unwrap();
        assert_eq!((sample.image.pixels(), sample.label), ([6, 7].as_slice(), 1));
        assert_eq!(
            four().get(4).unwrap_err().to_string(),
            "image 4 of a data set of 4 was asked for"
        );
    }

    #[test]
    fn a_subset_counts_its_own() {
        let whole: Arc<dyn Dataset> = Arc::new(four());
        let odd = Subset::new(Arc::clone(&whole), vec![3, 1]).unwrap();
        assert_eq!(odd.get(1).unwrap().image.pixels(), [2, 3]);
        assert!(Subset::new(Arc::clone(&whole), vec![4]).is_err());
        let two = Subset::spread(whole, 2);
        assert_eq!((two.len(), two.get(1).unwrap().image.pixels()[0]), (2, 4));
    }

    #[test]
    fn a_label_without_a_class_is_refused() {
        let error = ImageSet::new([1, 1, 1], vec![0, 0], vec![0, 7], numbered(2)).err().unwrap();
        assert_eq!(error.to_string(), "image 1 has label 7, but there are 2 classes");
    }
}
