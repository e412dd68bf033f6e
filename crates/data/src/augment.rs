use std::str::FromStr;

use rand::rngs::ChaCha8Rng;
use rand::seq::SliceRandom;
use rand::{Rng, RngExt};

use crate::rng::{Purpose, stream};
use crate::{Dataset, Error, Image, Preprocess, Result};

/// What training does to a picture so that the network never sees the same one twice.
///
/// Which changes an image gets depends on seed, epoch and the image's index alone: not on the order
/// it comes in, nor on who loads it.
///
/// ```
/// use ottava_data::{Augment, Image, Preprocess};
///
/// let augment = Augment { crop_padding: 4, flip: true, ..Augment::none() };
/// let image = Image::new(1, 8, 8, (0..64).collect())?;
/// let shown = |epoch| augment.apply(image.clone(), &Preprocess::unit(), 1, epoch, 7);
/// assert_eq!(shown(0)?, shown(0)?);
/// # Ok::<(), ottava_data::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Augment {
    /// Cuts a window of random size, shape and place and brings it to the network's size, instead
    /// of resizing and cutting the middle. ImageNet networks are trained so.
    pub resized_crop: Option<ResizedCrop>,
    /// Pads each side with so many black pixels and cuts a window of the old size at random; none
    /// if zero. CIFAR networks are trained with four.
    pub crop_padding: usize,
    /// Mirrors every second image, at random.
    pub flip: bool,
    /// Changes the colors.
    pub jitter: Option<ColorJitter>,
}

/// The windows of torchvision's `RandomResizedCrop`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ResizedCrop {
    /// The least and the largest share of the picture's area.
    pub scale: (f64, f64),
    /// The least and the largest ratio of width to height.
    pub ratio: (f64, f64),
}

impl Default for ResizedCrop {
    /// 8 % to 100 % of the area, 3:4 to 4:3.
    fn default() -> Self {
        Self { scale: (0.08, 1.0), ratio: (3.0 / 4.0, 4.0 / 3.0) }
    }
}

/// The strengths of torchvision's `ColorJitter`; the four changes come in random order.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ColorJitter {
    /// Brightness is multiplied by `1 − brightness` to `1 + brightness` (at least zero).
    pub brightness: f64,
    /// Contrast likewise.
    pub contrast: f64,
    /// Saturation likewise.
    pub saturation: f64,
    /// The hue turns by at most this part of the color circle, either way; at most one half.
    pub hue: f64,
}

impl Augment {
    /// Leaves every image as it is.
    pub fn none() -> Self {
        Self::default()
    }

    /// What CIFAR networks are trained with: padding of an eighth of the side (four for 32 pixels),
    /// and mirroring.
    pub fn standard(shape: [usize; 3]) -> Self {
        Self { crop_padding: shape[1].min(shape[2]) / 8, flip: true, ..Self::none() }
    }

    /// What ImageNet networks are trained with: random resized crops, and mirroring.
    pub fn imagenet() -> Self {
        Self { resized_crop: Some(ResizedCrop::default()), flip: true, ..Self::none() }
    }

    /// What suits a data set: [`standard`](Self::standard) for the size that `preprocess` gives its images where
    /// they have one size, [`imagenet`](Self::imagenet) elsewhere.
    ///
    /// # Errors
    /// As [`Preprocess::output_shape`].
    pub fn suited_to(data: &dyn Dataset, preprocess: &Preprocess) -> Result<Self> {
        match data.shape() {
            Some(shape) => Ok(Self::standard(preprocess.output_shape(shape)?)),
            None => Ok(Self::imagenet()),
        }
    }

    /// Refuses strengths that make no sense.
    pub(crate) fn check(&self) -> Result<()> {
        let range = |what: &str, (low, high): (f64, f64), least: f64, most: f64| {
            if low >= least && low <= high && high <= most {
                return Ok(());
            }
            let reason = format!("augmentation: {what} {low} to {high}; needs {least} to {most}");
            Err(Error::Preprocess { reason })
        };
        if let Some(ResizedCrop { scale, ratio }) = self.resized_crop {
            range("a crop's share of the area from", scale, 1e-6, 1.0)?;
            range("a crop's ratio from", ratio, 1e-3, 1e3)?;
        }
        if let Some(ColorJitter { brightness, contrast, saturation, hue }) = self.jitter {
            range("jitter of brightness from", (0.0, brightness), 0.0, 1e3)?;
            range("jitter of contrast from", (0.0, contrast), 0.0, 1e3)?;
            range("jitter of saturation from", (0.0, saturation), 0.0, 1e3)?;
            range("jitter of hue from", (0.0, hue), 0.0, 0.5)?;
        }
        Ok(())
    }

    /// The image as epoch `epoch` of a training with `seed` sees it, of the size that `preprocess`
    /// gives it.
    ///
    /// # Errors
    /// [`Error::Preprocess`] for strengths or sizes that make no sense.
    pub fn apply(
        &self,
        image: Image,
        preprocess: &Preprocess,
        seed: u64,
        epoch: u64,
        index: usize,
    ) -> Result<Image> {
        self.check()?;
        preprocess.check_sizes()?;
        let mut rng = stream(Purpose::Augment, seed, epoch, index as u64);
        let mut image = match &self.resized_crop {
            Some(crop) => crop.apply(&image, preprocess.target_size(&image), &mut rng),
            None => preprocess.reshape(image),
        };
        if self.crop_padding > 0 {
            let [_, height, width] = image.shape();
            // More padding than image would show nothing.
            let reach = |side: usize| self.crop_padding.min(side) as i64;
            let top = rng.random_range(-reach(height)..=reach(height));
            let left = rng.random_range(-reach(width)..=reach(width));
            image = image.crop(top as isize, left as isize, height, width);
        }
        if self.flip && rng.random() {
            image.flip_horizontal();
        }
        if let Some(jitter) = &self.jitter {
            jitter.apply(&mut image, &mut rng);
        }
        Ok(image)
    }
}

impl ResizedCrop {
    /// How often torchvision draws before it takes the middle.
    const TRIES: usize = 10;

    fn apply(&self, image: &Image, (height, width): (usize, usize), rng: &mut impl Rng) -> Image {
        let [top, left, rows, columns] = self.window(image, rng);
        image.crop(top as isize, left as isize, rows, columns).resize(height, width)
    }

    /// Top, left, height and width of a window inside the picture.
    fn window(&self, image: &Image, rng: &mut impl Rng) -> [usize; 4] {
        let (height, width) = (image.height(), image.width());
        let area = (height * width) as f64;
        let (low, high) = (self.ratio.0.ln(), self.ratio.1.ln());
        for _ in 0..Self::TRIES {
            let part = area * rng.random_range(self.scale.0..=self.scale.1);
            let ratio = rng.random_range(low..=high).exp();
            let columns = (part * ratio).sqrt().round_ties_even() as usize;
            let rows = (part / ratio).sqrt().round_ties_even() as usize;
            if (1..=width).contains(&columns) && (1..=height).contains(&rows) {
                let top = rng.random_range(0..=height - rows);
                let left = rng.random_range(0..=width - columns);
                return [top, left, rows, columns];
            }
        }
        // The largest window in the middle whose ratio is allowed.
        let ratio = width as f64 / height as f64;
        let (rows, columns) = if ratio < self.ratio.0 {
            ((width as f64 / self.ratio.0).round_ties_even() as usize, width)
        } else if ratio > self.ratio.1 {
            (height, (height as f64 * self.ratio.1).round_ties_even() as usize)
        } else {
            (height, width)
        };
        let (rows, columns) = (rows.clamp(1, height), columns.clamp(1, width));
        [(height - rows) / 2, (width - columns) / 2, rows, columns]
    }
}

impl FromStr for ColorJitter {
    type Err = Error;

    /// `brightness,contrast,saturation,hue`, as in `0.4,0.4,0.4,0.1`; those left out are zero.
    fn from_str(text: &str) -> Result<Self> {
        let strengths: Vec<f64> =
            text.split(',').filter_map(|strength| strength.trim().parse().ok()).collect();
        let given = text.split(',').count();
        if strengths.len() != given || given > 4 {
            let reason = format!(
                "a color jitter of {text:?}; needs one to four numbers: brightness, contrast, \
                 saturation, hue"
            );
            return Err(Error::Preprocess { reason });
        }
        let strength = |i: usize| strengths.get(i).copied().unwrap_or(0.0);
        let jitter = Self {
            brightness: strength(0),
            contrast: strength(1),
            saturation: strength(2),
            hue: strength(3),
        };
        Augment { jitter: Some(jitter), ..Augment::none() }.check()?;
        Ok(jitter)
    }
}

impl ColorJitter {
    fn apply(&self, image: &mut Image, rng: &mut ChaCha8Rng) {
        let mut factor =
            |strength: f64| rng.random_range((1.0 - strength).max(0.0)..=1.0 + strength) as f32;
        let brightness = factor(self.brightness);
        let contrast = factor(self.contrast);
        let saturation = factor(self.saturation);
        let hue = rng.random_range(-self.hue..=self.hue);
        let mut order = [0, 1, 2, 3];
        order.shuffle(rng);
        for change in order {
            match change {
                0 if self.brightness > 0.0 => image.adjust_brightness(brightness),
                1 if self.contrast > 0.0 => image.adjust_contrast(contrast),
                2 if self.saturation > 0.0 => image.adjust_saturation(saturation),
                3 if self.hue > 0.0 => image.adjust_hue(hue),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counting(side: usize) -> Image {
        let pixels = (0..side * side).map(|i| (i + 1) as u8).collect();
        Image::new(1, side, side, pixels).unwrap()
    }

    #[test]
    fn the_border_is_of_the_image_that_the_network_sees() {
        let data = crate::Synthetic::new([3, 64, 48], 2, 4, 0, crate::Split::Train).unwrap();
        let border = |preprocess: &str| {
            let preprocess: Preprocess = preprocess.parse().unwrap();
            Augment::suited_to(&data, &preprocess).unwrap().crop_padding
        };
        assert_eq!(
            [border("unit"), border("unit,resize=16x32"), border("unit,crop=32")],
            [6, 2, 4]
        );
        let absurd = Augment {
            resized_crop: Some(ResizedCrop { scale: (1.0, 0.5), ..ResizedCrop::default() }),
            ..Augment::none()
        };
        assert!(absurd.apply(counting(3), &Preprocess::raw(), 0, 0, 0).is_err());
        let nothing = Preprocess { crop: Some((0, 3)), ..Preprocess::raw() };
        assert!(Augment::none().apply(counting(3), &nothing, 0, 0, 0).is_err());
    }

    #[test]
    fn every_offset_and_both_directions_occur() {
        let augment = Augment { crop_padding: 1, flip: true, ..Augment::none() };
        let seen: std::collections::BTreeSet<Vec<u8>> = (0..500)
            .map(|i| {
                augment.apply(counting(3), &Preprocess::raw(), 0, 0, i).unwrap().pixels().to_vec()
            })
            .collect();
        // Nine windows, each in two directions.
        assert_eq!(seen.len(), 18);
    }

    #[test]
    fn seeds_epochs_and_images_differ() {
        let augment = Augment::standard([1, 16, 16]);
        let shown = |seed, epoch, i| {
            augment.apply(counting(16), &Preprocess::raw(), seed, epoch, i).unwrap()
        };
        let differs = |seed, epoch| (0..20).any(|i| shown(0, 0, i) != shown(seed, epoch, i));
        assert!(differs(1, 0) && differs(0, 1) && !differs(0, 0));
    }

    #[test]
    fn windows_stay_inside_and_keep_their_bounds() {
        let crop = ResizedCrop::default();
        let mut rng = stream(Purpose::Augment, 0, 0, 0);
        for (height, width) in [(1, 1), (1, 300), (300, 1), (40, 60), (3, 2)] {
            let image = Image::new(1, height, width, vec![0; height * width]).unwrap();
            for _ in 0..200 {
                let [top, left, rows, columns] = crop.window(&image, &mut rng);
                assert!(rows > 0 && columns > 0 && top + rows <= height && left + columns <= width);
                if (height, width) == (40, 60) {
                    let (area, ratio) = (rows * columns, columns as f64 / rows as f64);
                    assert!(area >= 160 && (0.6..1.6).contains(&ratio), "{rows}×{columns}");
                }
            }
        }
    }

    #[test]
    fn every_change_gives_the_size_asked_for() {
        let jitter = ColorJitter { brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1 };
        let augment = Augment { jitter: Some(jitter), ..Augment::imagenet() };
        let image = Image::new(3, 50, 40, (0..6000).map(|i| (i % 251) as u8).collect()).unwrap();
        let preprocess: Preprocess = "unit,resize=32,crop=28".parse().unwrap();
        for i in 0..20 {
            assert_eq!(
                augment.apply(image.clone(), &preprocess, 0, 0, i).unwrap().shape(),
                [3, 28, 28]
            );
        }
    }

    #[test]
    fn strengths_are_read() {
        let read = |text: &str| text.parse::<ColorJitter>();
        let expected = ColorJitter { brightness: 0.4, contrast: 0.2, saturation: 0.1, hue: 0.05 };
        assert_eq!(read("0.4, 0.2, 0.1, 0.05").unwrap(), expected);
        let bright = ColorJitter { brightness: 0.3, ..ColorJitter::default() };
        assert_eq!(read("0.3").unwrap(), bright);
        for text in ["", "x", "0.1,", "1,1,1,0.1,1", "-0.1", "nan", "0,0,0,0.6"] {
            assert!(read(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn strengths_that_make_no_sense_are_refused() {
        let jitter = |hue| Augment {
            jitter: Some(ColorJitter { hue, ..ColorJitter::default() }),
            ..Augment::none()
        };
        assert!(jitter(0.5).check().is_ok());
        assert!(jitter(0.6).check().is_err() && jitter(f64::NAN).check().is_err());
        let crop = ResizedCrop { scale: (0.0, 1.0), ..ResizedCrop::default() };
        assert!(Augment { resized_crop: Some(crop), ..Augment::none() }.check().is_err());
    }
}
