use std::str::FromStr;

use crate::dataset::spread;
use crate::{Dataset, Error, Image, Result};

/// What becomes of a byte.
#[derive(Clone, Debug, PartialEq)]
pub enum Pixels {
    /// It stays what it is: 0 to 255.
    Raw,
    /// `pixel / 255`.
    Unit,
    /// `(pixel / 255 − mean[c]) / std[c]`, `c` being the channel.
    Normalized {
        /// One value a channel, or one for all channels.
        mean: Vec<f32>,
        /// As many, above zero.
        std: Vec<f32>,
    },
}

/// The size a picture is brought to before it is cropped, as torchvision's `Resize` takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resize {
    /// The shorter side gets this many pixels, the longer one keeps the aspect.
    Shorter(usize),
    /// Exactly this height and width.
    Exact(usize, usize),
}

/// From a picture to a network's input: resize, center-crop, and an affine map of its bytes.
///
/// A model file carries it (see [`to_metadata`](Self::to_metadata)), so that whoever runs the model
/// feeds it what it was trained on.
///
/// ```
/// use ottava_data::Preprocess;
///
/// let named: Preprocess = "imagenet,resize=256,crop=224".parse()?;
/// assert_eq!(named.output_shape([3, 300, 400])?, [3, 224, 224]);
/// assert_eq!(Preprocess::from_metadata(named.to_metadata())?, Some(named));
/// # Ok::<(), ottava_data::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Preprocess {
    /// What becomes of a byte.
    pub pixels: Pixels,
    /// The size before cropping.
    pub resize: Option<Resize>,
    /// Height and width of the window in the middle that is kept.
    pub crop: Option<(usize, usize)>,
}

/// Sizes beyond this are a slip of the pen.
const MAX_SIDE: usize = 1 << 14;
/// What every key of the metadata begins with.
const PREFIX: &str = "preprocess.";

/// Presets.
impl Preprocess {
    /// ImageNet's mean and standard deviation.
    pub fn imagenet() -> Self {
        Self::normalized(&[0.485, 0.456, 0.406], &[0.229, 0.224, 0.225])
    }

    /// CIFAR-10's mean and standard deviation.
    pub fn cifar10() -> Self {
        Self::normalized(&[0.4914, 0.4822, 0.4465], &[0.2470, 0.2435, 0.2616])
    }

    /// CIFAR-100's mean and standard deviation.
    pub fn cifar100() -> Self {
        Self::normalized(&[0.5071, 0.4865, 0.4409], &[0.2673, 0.2564, 0.2762])
    }

    /// Fashion-MNIST's mean and standard deviation.
    pub fn fashion() -> Self {
        Self::normalized(&[0.2860], &[0.3530])
    }

    /// MNIST's mean and standard deviation.
    pub fn mnist() -> Self {
        Self::normalized(&[0.1307], &[0.3081])
    }

    /// `pixel / 255`, for any number of channels.
    pub fn unit() -> Self {
        Self { pixels: Pixels::Unit, resize: None, crop: None }
    }

    /// The bytes as they are, 0 to 255, for any number of channels.
    pub fn raw() -> Self {
        Self { pixels: Pixels::Raw, resize: None, crop: None }
    }

    /// `(pixel / 255 − mean) / std`, checked when it is first used.
    pub fn normalized(mean: &[f32], std: &[f32]) -> Self {
        let pixels = Pixels::Normalized { mean: mean.to_vec(), std: std.to_vec() };
        Self { pixels, resize: None, crop: None }
    }

    /// Mean and standard deviation as a data set has them, channel by channel, over at most `count`
    /// of its images (evenly spread).
    ///
    /// # Errors
    /// The data set's own; [`Error::Preprocess`] if it is empty or its images differ in channels.
    pub fn measured(data: &dyn Dataset, count: usize) -> Result<Self> {
        let (mut sums, mut squares, mut n) = (Vec::new(), Vec::new(), 0u64);
        for index in spread(data.len(), count) {
            let image = data.get(index)?.image;
            if n == 0 {
                (sums, squares) = (vec![0u64; image.channels()], vec![0u64; image.channels()]);
            } else if sums.len() != image.channels() {
                return Err(Error::preprocess(format!(
                    "the mean of images of {} and of {} channels was asked for",
                    sums.len(),
                    image.channels()
                )));
            }
            for pixel in image.pixels().chunks(image.channels()) {
                for (c, &value) in pixel.iter().enumerate() {
                    sums[c] += u64::from(value);
                    squares[c] += u64::from(value) * u64::from(value);
                }
                n += 1;
            }
        }
        if n == 0 {
            return Err(Error::preprocess("the mean of a data set without images was asked for"));
        }
        let (mean, std) = sums
            .iter()
            .zip(&squares)
            .map(|(&sum, &square)| {
                let mean = sum as f64 / n as f64;
                let variance = (square as f64 / n as f64 - mean * mean).max(0.0);
                // A constant channel has nothing to scale: leave it at pixel/255.
                let std = if variance > 0.0 { variance.sqrt() / 255.0 } else { 1.0 };
                ((mean / 255.0) as f32, std as f32)
            })
            .unzip();
        Ok(Self { pixels: Pixels::Normalized { mean, std }, resize: None, crop: None })
    }
}

/// Using it.
impl Preprocess {
    /// The shape that pictures of shape `[channels, height, width]` get.
    ///
    /// # Errors
    /// [`Error::Preprocess`] if the statistics are for another number of channels, or a number of
    /// the preprocessing makes no sense.
    pub fn output_shape(&self, shape: [usize; 3]) -> Result<[usize; 3]> {
        self.check(shape[0])?;
        let [channels, mut height, mut width] = shape;
        if let Some(resize) = self.resize {
            (height, width) = resize.size(height, width);
        }
        if let Some(crop) = self.crop {
            (height, width) = crop;
        }
        Ok([channels, height, width])
    }

    /// The preprocessing for a data set: where its images differ in size, it makes them
    /// [of one](Self::to_one_size).
    ///
    /// # Errors
    /// As [`output_shape`](Self::output_shape).
    pub fn fitted_to(self, data: &dyn Dataset) -> Result<Self> {
        self.check_sizes()?;
        match data.shape() {
            Some(shape) => {
                self.output_shape(shape)?;
                Ok(self)
            }
            None => Ok(self.to_one_size()),
        }
    }

    /// The preprocessing for pictures of any size: where nothing brings them to one, their shorter side becomes
    /// 256 pixels, or what is said of it, and seven eighths in the middle are kept: 224×224.
    pub fn to_one_size(mut self) -> Self {
        let shorter = match self.resize {
            _ if self.crop.is_some() => return self,
            Some(Resize::Exact(..)) => return self,
            Some(Resize::Shorter(shorter)) => shorter,
            None => 256,
        };
        self.resize = Some(Resize::Shorter(shorter));
        let side = (shorter * 7 / 8).max(1);
        self.crop = Some((side, side));
        self
    }

    /// Height and width that [`reshape`](Self::reshape) brings a picture to.
    pub(crate) fn target_size(&self, image: &Image) -> (usize, usize) {
        let resized = |resize: Resize| resize.size(image.height(), image.width());
        self.crop.or(self.resize.map(resized)).unwrap_or((image.height(), image.width()))
    }

    /// Resizes and crops; the bytes stay bytes.
    ///
    /// # Panics
    /// If the crop is empty.
    pub fn reshape(&self, image: Image) -> Image {
        let mut image = image;
        if let Some(resize) = self.resize {
            let (height, width) = resize.size(image.height(), image.width());
            image = image.resize(height, width);
        }
        match self.crop {
            Some((height, width)) => image.center_crop(height, width),
            None => image,
        }
    }

    /// The value of every byte, for each of `channels`.
    ///
    /// # Errors
    /// [`Error::Preprocess`] if the statistics do not fit the channels.
    pub(crate) fn tables(&self, channels: usize) -> Result<Vec<[f32; 256]>> {
        self.check(channels)?;
        let value = |c: usize, byte: usize| {
            let unit = byte as f32 / 255.0;
            match &self.pixels {
                Pixels::Raw => byte as f32,
                Pixels::Unit => unit,
                Pixels::Normalized { mean, std } => {
                    (unit - mean[c % mean.len()]) / std[c % std.len()]
                }
            }
        };
        Ok((0..channels).map(|c| std::array::from_fn(|byte| value(c, byte))).collect())
    }

    /// One picture as a network takes it: the values in `height, width, channels` order.
    ///
    /// # Errors
    /// [`Error::Preprocess`] if the statistics do not fit the channels.
    pub fn apply(&self, image: Image) -> Result<([usize; 3], Vec<f32>)> {
        let tables = self.tables(image.channels())?;
        let image = self.reshape(image);
        let mut values = vec![0.0; image.pixels().len()];
        look_up(&tables, &image, &mut values);
        Ok((image.shape(), values))
    }

    /// Whether sizes are those of pictures.
    pub(crate) fn check_sizes(&self) -> Result<()> {
        let sizes = [
            match self.resize {
                Some(Resize::Shorter(side)) => Some((side, side)),
                Some(Resize::Exact(height, width)) => Some((height, width)),
                None => None,
            },
            self.crop,
        ];
        for (height, width) in sizes.into_iter().flatten() {
            if !(1..=MAX_SIDE).contains(&height) || !(1..=MAX_SIDE).contains(&width) {
                return Err(Error::preprocess(format!(
                    "preprocessing: a size of {height}×{width} pixels; sides are 1 to {MAX_SIDE}"
                )));
            }
        }
        Ok(())
    }

    fn check(&self, channels: usize) -> Result<()> {
        self.check_sizes()?;
        let refuse = |reason: String| Err(Error::Preprocess { reason });
        let Pixels::Normalized { mean, std } = &self.pixels else { return Ok(()) };
        if mean.len() != std.len() || (mean.len() != 1 && mean.len() != channels) {
            return refuse(format!(
                "preprocessing: {} means and {} standard deviations for images of {channels} \
                 channel(s); `unit` and `raw` fit any number",
                mean.len(),
                std.len()
            ));
        }
        match mean.iter().zip(std).find(|(m, s)| !m.is_finite() || !s.is_finite() || **s <= 0.0) {
            Some((m, s)) => refuse(format!(
                "preprocessing: mean {m} and standard deviation {s}; both must be finite and the \
                 second above zero"
            )),
            None => Ok(()),
        }
    }
}

/// `values[i] = tables[channel of i][pixels[i]]`.
pub(crate) fn look_up(tables: &[[f32; 256]], image: &Image, values: &mut [f32]) {
    match tables {
        [table] => {
            for (value, &byte) in values.iter_mut().zip(image.pixels()) {
                *value = table[usize::from(byte)];
            }
        }
        _ => {
            let pixels = image.pixels().chunks_exact(tables.len());
            for (values, pixel) in values.chunks_exact_mut(tables.len()).zip(pixels) {
                for ((value, &byte), table) in values.iter_mut().zip(pixel).zip(tables) {
                    *value = table[usize::from(byte)];
                }
            }
        }
    }
}

impl Resize {
    /// Height and width of a picture of `height × width` afterwards. As torchvision, the longer
    /// side is rounded down.
    pub fn size(self, height: usize, width: usize) -> (usize, usize) {
        match self {
            Self::Exact(height, width) => (height, width),
            Self::Shorter(side) if width <= height => (scaled(side, height, width), side),
            Self::Shorter(side) => (side, scaled(side, width, height)),
        }
    }
}

/// `side · long / short`, rounded down. A picture of one row of thousands of pixels would otherwise
/// grow without bound.
fn scaled(side: usize, long: usize, short: usize) -> usize {
    (side.saturating_mul(long) / short.max(1)).clamp(1, MAX_SIDE * 4)
}

/// In files and on the command line.
impl Preprocess {
    /// The names that [`from_metadata`](Self::from_metadata) looks at, without `preprocess.`.
    pub const KEYS: [&str; 5] = ["pixels", "mean", "std", "resize", "crop"];

    /// Names and values for a model file's metadata.
    pub fn to_metadata(&self) -> Vec<(String, String)> {
        let entry = |key: &str, value: String| (format!("{PREFIX}{key}"), value);
        let list = |values: &[f32]| values.iter().map(f32::to_string).collect::<Vec<_>>().join(",");
        let mut entries = match &self.pixels {
            Pixels::Raw => vec![entry("pixels", "raw".into())],
            Pixels::Unit => vec![entry("pixels", "unit".into())],
            Pixels::Normalized { mean, std } => vec![
                entry("pixels", "normalized".into()),
                entry("mean", list(mean)),
                entry("std", list(std)),
            ],
        };
        match self.resize {
            Some(Resize::Shorter(side)) => entries.push(entry("resize", side.to_string())),
            Some(Resize::Exact(h, w)) => entries.push(entry("resize", format!("{h}x{w}"))),
            None => {}
        }
        if let Some((height, width)) = self.crop {
            entries.push(entry("crop", format!("{height}x{width}")));
        }
        entries
    }

    /// The preprocessing among a model file's metadata, if there is one. Keys without `preprocess.` mean what the
    /// file's author pleases, and are not looked at.
    ///
    /// # Errors
    /// [`Error::Preprocess`] for a value that is not a number, a size or a known word.
    pub fn from_metadata<K: AsRef<str>, V: AsRef<str>>(
        entries: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Option<Self>> {
        let entries = entries.into_iter().collect::<Vec<_>>();
        Self::from_settings(entries.iter().filter_map(|(key, value)| {
            key.as_ref().strip_prefix(PREFIX).map(|key| (key, value.as_ref()))
        }))
    }

    /// The same from a file that holds nothing else, whose keys are [`KEYS`](Self::KEYS).
    ///
    /// # Errors
    /// As [`from_metadata`](Self::from_metadata).
    pub fn from_settings<K: AsRef<str>, V: AsRef<str>>(
        entries: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Option<Self>> {
        let (mut pixels, mut mean, mut std) = (None, None, None);
        let (mut resize, mut crop) = (None, None);
        for (key, value) in entries {
            let (key, value) = (key.as_ref(), value.as_ref());
            match key {
                "pixels" => pixels = Some(value.to_string()),
                "mean" => mean = Some(numbers(key, value)?),
                "std" => std = Some(numbers(key, value)?),
                "resize" => resize = Some(parse_resize(value)?),
                "crop" => crop = Some(parse_crop(value)?),
                _ => {}
            }
        }
        let pixels = match (pixels.as_deref(), mean, std) {
            (Some("raw"), None, None) => Pixels::Raw,
            (Some("unit"), None, None) => Pixels::Unit,
            (Some("normalized") | None, Some(mean), Some(std)) => Pixels::Normalized { mean, std },
            (None, None, None) if resize.is_none() && crop.is_none() => return Ok(None),
            (None, None, None) => Pixels::Unit,
            (word, mean, std) => {
                let given = [mean.map(|_| "mean"), std.map(|_| "std")];
                let given = given.into_iter().flatten().collect::<Vec<_>>().join(" and ");
                let what = match word {
                    None => format!("{given} alone"),
                    Some(word) if given.is_empty() => format!("pixels = {word:?} alone"),
                    Some(word) => format!("pixels = {word:?} with {given}"),
                };
                return Err(Error::preprocess(format!(
                    "preprocessing: {what}; write pixels = raw or unit without mean and std, or normalized \
                     with both"
                )));
            }
        };
        Ok(Some(Self { pixels, resize, crop }))
    }
}

fn numbers(key: &str, value: &str) -> Result<Vec<f32>> {
    let trimmed = value.trim().trim_start_matches('[').trim_end_matches(']');
    trimmed
        .split(',')
        .map(|number| number.trim().parse())
        .collect::<Result<_, _>>()
        .map_err(|_| Error::preprocess(format!("{key} = {value:?} is not a list of numbers")))
}

fn parse_size(value: &str) -> Option<(usize, Option<usize>)> {
    match value.split_once('x') {
        Some((height, width)) => {
            Some((height.trim().parse().ok()?, Some(width.trim().parse().ok()?)))
        }
        None => Some((value.trim().parse().ok()?, None)),
    }
}

fn parse_resize(value: &str) -> Result<Resize> {
    match parse_size(value) {
        Some((side, None)) => Ok(Resize::Shorter(side)),
        Some((height, Some(width))) => Ok(Resize::Exact(height, width)),
        None => Err(Error::preprocess(format!("resize = {value:?}; write 256 or 224x224"))),
    }
}

fn parse_crop(value: &str) -> Result<(usize, usize)> {
    match parse_size(value) {
        Some((side, width)) => Ok((side, width.unwrap_or(side))),
        None => Err(Error::preprocess(format!("crop = {value:?}; write 224 or 224x224"))),
    }
}

impl FromStr for Preprocess {
    type Err = Error;

    /// `imagenet`, `cifar10`, `cifar100`, `fashion`, `mnist`, `unit` or `raw`, and after it, if
    /// wanted, `,resize=256` or `,resize=224x224` and `,crop=224`.
    fn from_str(text: &str) -> Result<Self> {
        let mut parts = text.split(',');
        let name = parts.next().unwrap_or_default();
        let mut result = match name {
            "imagenet" => Self::imagenet(),
            "cifar10" => Self::cifar10(),
            "cifar100" => Self::cifar100(),
            "fashion" => Self::fashion(),
            "mnist" => Self::mnist(),
            "unit" => Self::unit(),
            "raw" => Self::raw(),
            _ => {
                return Err(Error::preprocess(format!(
                    "preprocessing {name:?} is unknown; choose imagenet, cifar10, cifar100, \
                     fashion, mnist, unit or raw"
                )));
            }
        };
        for part in parts {
            match part.split_once('=') {
                Some(("resize", value)) => result.resize = Some(parse_resize(value)?),
                Some(("crop", value)) => result.crop = Some(parse_crop(value)?),
                _ => {
                    return Err(Error::preprocess(format!(
                        "preprocessing option {part:?} is unknown; write resize=256 or crop=224"
                    )));
                }
            }
        }
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Sample;

    #[test]
    fn presets_compute_what_torchvision_computes() {
        let image = Image::new(3, 1, 1, vec![0, 128, 255]).unwrap();
        let values = |p: Preprocess| p.apply(image.clone()).unwrap().1;
        assert_eq!(values(Preprocess::raw()), [0.0, 128.0, 255.0]);
        assert_eq!(values(Preprocess::unit()), [0.0, 128.0 / 255.0, 1.0]);
        let expected = [-2.117904, 0.205182, 2.64];
        for (value, expected) in values(Preprocess::imagenet()).iter().zip(expected) {
            assert!((value - expected).abs() < 1e-5, "{value} {expected}");
        }
    }

    #[test]
    fn statistics_for_other_channels_are_refused_with_numbers() {
        let error = Preprocess::imagenet().output_shape([1, 28, 28]).unwrap_err().to_string();
        assert!(error.contains("3 means") && error.contains("1 channel"), "{error}");
        assert!(Preprocess::fashion().output_shape([3, 28, 28]).is_ok());
        assert!(Preprocess::normalized(&[0.0], &[0.0]).output_shape([1, 1, 1]).is_err());
        let huge = Preprocess { crop: Some((0, 1)), ..Preprocess::unit() };
        assert!(huge.output_shape([1, 1, 1]).is_err());
    }

    /// Pictures of different sizes and numbers of channels.
    struct Mixed(Vec<Image>);

    impl Dataset for Mixed {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn classes(&self) -> &[String] {
            &[]
        }
        fn shape(&self) -> Option<[usize; 3]> {
            None
        }
        fn get(&self, index: usize) -> Result<Sample> {
            Ok(Sample { image: self.0[index].clone(), label: 0 })
        }
    }

    #[test]
    fn absurd_sizes_are_refused_before_a_picture_is_read() {
        for crop in [(0, 8), (8, 4_000_000_000)] {
            let absurd = Preprocess { crop: Some(crop), ..Preprocess::unit() };
            assert!(absurd.fitted_to(&Mixed(vec![])).is_err(), "{crop:?}");
        }
    }

    #[test]
    fn statistics_are_measured_of_images_of_one_kind() {
        let image =
            |channels: usize, pixels: &[u8]| Image::new(channels, 1, 1, pixels.to_vec()).unwrap();
        let two = Mixed(vec![image(1, &[0]), image(1, &[255])]);
        let measured = Preprocess::measured(&two, 10).unwrap();
        assert_eq!(measured.pixels, Pixels::Normalized { mean: vec![0.5], std: vec![0.5] });
        let mixed = Mixed(vec![image(3, &[1, 2, 3]), image(1, &[4])]);
        let error = Preprocess::measured(&mixed, 2).unwrap_err().to_string();
        assert!(error.contains("3 and of 1 channels"), "{error}");
        assert!(Preprocess::measured(&Mixed(vec![]), 2).is_err());
    }

    #[test]
    fn sizes_follow_torchvision() {
        assert_eq!(Resize::Shorter(256).size(300, 400), (256, 341));
        assert_eq!(Resize::Shorter(256).size(400, 300), (341, 256));
        assert_eq!(Resize::Shorter(2).size(usize::MAX, 1).1, 2);
    }

    #[test]
    fn words_that_make_no_sense_are_refused() {
        for text in ["imagnet", "unit,resize=", "unit,crop=axb", "unit,flip"] {
            assert!(text.parse::<Preprocess>().is_err(), "{text}");
        }
        assert!(Preprocess::from_metadata([("preprocess.mean", "1,2,x")]).is_err());
        assert!(Preprocess::from_metadata([("preprocess.mean", "1")]).is_err());
        assert_eq!(Preprocess::from_metadata([("format", "pt")]).unwrap(), None);
        // Somebody else's, for pixels up to 255.
        let foreign =
            [("mean", "123.7,116.3,103.5"), ("std", "58.4,57.1,57.4"), ("crop", "center")];
        assert_eq!(Preprocess::from_metadata(foreign).unwrap(), None);
        let unit = Preprocess::from_settings([("pixels", "unit")]).unwrap();
        assert_eq!(unit, Some(Preprocess::unit()));
        let error = Preprocess::from_settings([("pixels", "x")]).unwrap_err().to_string();
        assert!(error.contains("pixels = \"x\" alone") && !error.contains("Some"), "{error}");
        let raw = [("pixels", "raw"), ("mean", "1"), ("std", "1")];
        let error = Preprocess::from_settings(raw).unwrap_err().to_string();
        assert!(error.contains("pixels = \"raw\" with mean and std;"), "{error}");
        let error = Preprocess::from_settings([("mean", "1")]).unwrap_err().to_string();
        assert!(error.contains("mean alone"), "{error}");
    }

    proptest! {
        #[test]
        fn metadata_survives_the_round_trip(
            mean in prop::collection::vec(-1f32..1.0, 1..4),
            sizes in any::<Option<(u8, u8)>>(),
        ) {
            let pixels = Pixels::Normalized { std: mean.iter().map(|m| m.exp()).collect(), mean };
            let size = sizes.map(|(h, w)| (usize::from(h), usize::from(w)));
            let resize = size.map(|(h, w)| Resize::Exact(h, w));
            let before = Preprocess { pixels, resize, crop: size };
            prop_assert_eq!(Preprocess::from_metadata(before.to_metadata()).unwrap(), Some(before));
        }
    }
}
