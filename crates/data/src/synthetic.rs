use rand::RngExt;

use crate::dataset::{beyond, numbered};
use crate::rng::{Purpose, stream};
use crate::{Dataset, Error, Image, Result, Sample, Split};

/// The prototypes' own resolution: coarse enough to survive shifts, fine enough to tell classes apart.
const GRID: usize = 4;

/// Images that can be learned, made from numbers alone: a smooth random pattern for each class,
/// shifted (cyclically, by up to an eighth of the image), with noise on top.
///
/// An image depends on seed, split and index alone, and is made when it is asked for: a data set of
/// a million images takes no memory.
///
/// ```
/// use ottava_data::{Dataset, Split, Synthetic};
///
/// let data = Synthetic::new([3, 16, 16], 10, 1000, 0, Split::Train)?;
/// assert_eq!((data.len(), data.get(13)?.label), (1000, 3));
/// # Ok::<(), ottava_data::Error>(())
/// ```
#[derive(Clone)]
pub struct Synthetic {
    shape: [usize; 3],
    classes: Vec<String>,
    len: usize,
    seed: u64,
    split: Split,
}

impl Synthetic {
    /// `len` images of `shape` (`[channels, height, width]`), the classes taking turns.
    ///
    /// # Errors
    /// [`Error::DataSet`] if there would be no image or no class, or if one image would have more
    /// than 2²⁶ bytes or 2¹⁶ channels, or there would be more than 2¹⁶ classes or 2²⁷ images.
    pub fn new(
        shape: [usize; 3],
        classes: usize,
        len: usize,
        seed: u64,
        split: Split,
    ) -> Result<Self> {
        let bytes = shape.iter().try_fold(1usize, |bytes, &dim| bytes.checked_mul(dim));
        if !matches!(bytes, Some(1..=0x400_0000))
            || shape[0] > 0x1_0000
            || !(1..=0x1_0000).contains(&classes)
            || !(1..=0x800_0000).contains(&len)
        {
            let reason = format!(
                "a synthetic data set of {len} images of shape {shape:?} in {classes} classes: needs \
                 1 to 67108864 bytes and at most 65536 channels an image, 1 to 65536 classes and 1 to 134217728 images"
            );
            return Err(Error::DataSet { reason });
        }
        Ok(Self { shape, classes: numbered(classes), len, seed, split })
    }

    /// The coarse pattern of a class: `GRID × GRID` values per channel.
    fn prototype(&self, class: usize) -> Vec<f32> {
        let mut rng = stream(Purpose::Prototype, self.seed, class as u64, 0);
        (0..self.shape[0] * GRID * GRID).map(|_| rng.random_range(48.0..208.0)).collect()
    }
}

impl Dataset for Synthetic {
    fn len(&self) -> usize {
        self.len
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn shape(&self) -> Option<[usize; 3]> {
        Some(self.shape)
    }

    fn get(&self, index: usize) -> Result<Sample> {
        if index >= self.len {
            return Err(beyond(index, self.len));
        }
        let label = index % self.classes.len();
        let pattern = self.prototype(label);
        let mut rng = stream(Purpose::Synthetic, self.seed, self.split as u64, index as u64);
        let [_, height, width] = self.shape;
        let (down, right) = (rng.random_range(0..=height / 8), rng.random_range(0..=width / 8));

        // Bilinear and cyclic, in additions and multiplications alone: the same on every machine.
        let cell = |position: usize, shift: usize, size: usize| {
            let at = ((position + shift) % size * GRID) as f32 / size as f32;
            // Rounded, the last position of a very wide image is the end.
            let low = (at as usize).min(GRID - 1);
            (low, (low + 1) % GRID, at - low as f32)
        };
        let image = Image::from_fn(self.shape, |y, x, c| {
            let (top, bottom, fy) = cell(y, down, height);
            let (left, right, fx) = cell(x, right, width);
            let value = |row: usize, column: usize| pattern[(c * GRID + row) * GRID + column];
            let upper = value(top, left) * (1.0 - fx) + value(top, right) * fx;
            let lower = value(bottom, left) * (1.0 - fx) + value(bottom, right) * fx;
            let noise = rng.random_range(-40.0f32..40.0);
            (upper * (1.0 - fy) + lower * fy + noise) as u8
        });
        Ok(Sample { image, label })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_depend_on_seed_split_and_index_alone() {
        let set = |seed, split| Synthetic::new([3, 9, 7], 4, 100, seed, split).unwrap();
        let a = set(1, Split::Train);
        assert_eq!(a.get(5).unwrap(), set(1, Split::Train).get(5).unwrap());
        assert_ne!(a.get(5).unwrap(), a.get(9).unwrap());
        assert_ne!(a.get(5).unwrap(), set(1, Split::Test).get(5).unwrap());
        assert_ne!(a.get(5).unwrap(), set(2, Split::Train).get(5).unwrap());
    }

    #[test]
    fn the_widest_image_has_a_last_pixel() {
        let wide = Synthetic::new([1, 1 << 26, 1], 1, 1, 0, Split::Train).unwrap();
        assert_eq!(wide.get(0).unwrap().image.pixels().len(), 1 << 26);
    }

    #[test]
    fn classes_differ_by_more_than_the_noise() {
        // Nearest class mean, learned on one split, is right on most of the other.
        let train = Synthetic::new([1, 8, 8], 5, 200, 3, Split::Train).unwrap();
        let test = Synthetic::new([1, 8, 8], 5, 100, 3, Split::Test).unwrap();
        let mut means = vec![[0f32; 64]; 5];
        for i in 0..train.len() {
            let Sample { image, label } = train.get(i).unwrap();
            for (mean, &pixel) in means[label].iter_mut().zip(image.pixels()) {
                *mean += f32::from(pixel) / 40.0;
            }
        }
        let right = (0..test.len()).filter(|&i| {
            let Sample { image, label } = test.get(i).unwrap();
            let distance = |mean: &[f32; 64]| {
                mean.iter()
                    .zip(image.pixels())
                    .map(|(m, &p)| (m - f32::from(p)).powi(2))
                    .sum::<f32>()
            };
            let near = (0..5).min_by(|&a, &b| distance(&means[a]).total_cmp(&distance(&means[b])));
            near == Some(label)
        });
        assert!(right.count() > 90);
    }

    #[test]
    fn absurd_sizes_are_refused() {
        for (shape, classes, len) in [
            ([0, 1, 1], 1, 1),
            ([usize::MAX, 2, 1], 1, 1),
            ([1 << 26, 1, 1], 1, 1),
            ([1, 1, 1], 0, 1),
            ([1, 1, 1], 1, 0),
        ] {
            assert!(Synthetic::new(shape, classes, len, 0, Split::Train).is_err());
        }
    }
}
