use crate::{ImageSet, Result, Split, idx_from_bytes};

macro_rules! asset {
    ($name:literal) => {
        include_bytes!(concat!("../assets/fashion-mini/", $name))
    };
}

/// Fashion-mini, inside the binary: 3000 photos of clothes to train on, 1000 to test with, ten
/// classes, 28×28 gray pixels.
///
/// A class-balanced part of Fashion-MNIST (MIT licence, © 2017 Zalando SE); `assets/fashion-mini`
/// says more.
///
/// # Errors
/// None that a user could cause.
pub fn fashion_mini(split: Split) -> Result<ImageSet> {
    let (images, labels): (&[u8], &[u8]) = match split {
        Split::Train => {
            (asset!("train-images-idx3-ubyte.gz"), asset!("train-labels-idx1-ubyte.gz"))
        }
        Split::Test => (asset!("t10k-images-idx3-ubyte.gz"), asset!("t10k-labels-idx1-ubyte.gz")),
    };
    let (dims, pixels) = idx_from_bytes("fashion-mini images", images, 3)?;
    let (_, labels) = idx_from_bytes("fashion-mini labels", labels, 1)?;
    let names = include_str!("../assets/fashion-mini/labels.txt").lines().map(String::from);
    ImageSet::new([1, dims[1], dims[2]], pixels, labels, names.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dataset;

    #[test]
    fn every_class_has_its_share() {
        for (split, share) in [(Split::Train, 300), (Split::Test, 100)] {
            let set = fashion_mini(split).unwrap();
            assert_eq!((set.len(), set.shape()), (10 * share, Some([1, 28, 28])));
            assert_eq!(set.classes()[9], "Ankle boot");
            for class in 0..10 {
                assert_eq!(set.labels().iter().filter(|&&label| label == class).count(), share);
            }
        }
    }
}
