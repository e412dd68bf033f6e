use rand::RngExt;
use rand::rngs::ChaCha8Rng;

use crate::Image;
use crate::rng::{Purpose, stream};

/// What training does to a picture so that the network never sees the same one twice.
///
/// Which changes an image gets depends on seed, epoch and the image's index alone: not on the order
/// it comes in, nor on who loads it.
///
/// ```
/// use ottava_data::{Augment, Image};
///
/// let augment = Augment { crop_padding: 4, flip: true, ..Augment::none() };
/// let image = Image::new(1, 8, 8, (0..64).collect())?;
/// assert_eq!(augment.apply(image.clone(), 1, 0, 7), augment.apply(image, 1, 0, 7));
/// # Ok::<(), ottava_data::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Augment {
    /// Pads each side with so many black pixels and cuts a window of the old size at random; none
    /// if zero. CIFAR networks are trained with four.
    pub crop_padding: usize,
    /// Mirrors every second image, at random.
    pub flip: bool,
}

impl Augment {
    /// Leaves every image as it is.
    pub fn none() -> Self {
        Self::default()
    }

    /// What CIFAR networks are trained with: padding of an eighth of the side (four for 32 pixels),
    /// and mirroring.
    pub fn standard(shape: [usize; 3]) -> Self {
        Self { crop_padding: shape[1].min(shape[2]) / 8, flip: true }
    }

    /// The image as epoch `epoch` of a training with `seed` sees it; its size does not change.
    pub fn apply(&self, image: Image, seed: u64, epoch: u64, index: usize) -> Image {
        let mut rng = stream(Purpose::Augment, seed, epoch, index as u64);
        self.apply_with(image, &mut rng)
    }

    fn apply_with(&self, mut image: Image, rng: &mut ChaCha8Rng) -> Image {
        if self.crop_padding > 0 {
            let [_, height, width] = image.shape();
            // More padding than image would show nothing.
            let reach = |side: usize| self.crop_padding.min(side) as isize;
            let top = rng.random_range(-reach(height) as i64..=reach(height) as i64);
            let left = rng.random_range(-reach(width) as i64..=reach(width) as i64);
            image = image.crop(top as isize, left as isize, height, width);
        }
        if self.flip && rng.random() {
            image.flip_horizontal();
        }
        image
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_offset_and_both_directions_occur() {
        let image = Image::new(1, 3, 3, (1..=9).collect()).unwrap();
        let augment = Augment { crop_padding: 1, flip: true };
        let seen: std::collections::BTreeSet<Vec<u8>> =
            (0..500).map(|i| augment.apply(image.clone(), 0, 0, i).pixels().to_vec()).collect();
        // Nine windows, each in two directions.
        assert_eq!(seen.len(), 18);
    }

    #[test]
    fn seeds_epochs_and_images_differ() {
        let image = Image::new(1, 16, 16, (0..=255).collect()).unwrap();
        let augment = Augment::standard([1, 16, 16]);
        let differs = |seed, epoch| {
            (0..20).any(|i| {
                augment.apply(image.clone(), 0, 0, i)
                    != augment.apply(image.clone(), seed, epoch, i)
            })
        };
        assert!(differs(1, 0) && differs(0, 1) && !differs(0, 0));
    }
}
