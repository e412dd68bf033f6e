use crate::{Error, Result};

/// One picture of bytes: `height × width` pixels of `channels` bytes each, rows from the top,
/// channels innermost (RGB, or one gray channel).
#[derive(Clone, PartialEq, Eq)]
pub struct Image {
    channels: usize,
    height: usize,
    width: usize,
    pixels: Vec<u8>,
}

impl Image {
    /// A picture from its pixels in `height, width, channels` order.
    ///
    /// # Errors
    /// [`Error::DataSet`] if the number of bytes does not fit, or there are no pixels.
    pub fn new(channels: usize, height: usize, width: usize, pixels: Vec<u8>) -> Result<Self> {
        let len = channels.checked_mul(height).and_then(|rows| rows.checked_mul(width));
        if len != Some(pixels.len()) || pixels.is_empty() {
            let reason = format!(
                "an image of {channels} channels and {height}×{width} pixels cannot be made of {} \
                 bytes",
                pixels.len()
            );
            return Err(Error::DataSet { reason });
        }
        Ok(Self { channels, height, width, pixels })
    }

    /// The same, from channel planes (`channels, height, width` order, as CIFAR stores them).
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn from_planes(
        channels: usize,
        height: usize,
        width: usize,
        planes: &[u8],
    ) -> Result<Self> {
        let area = height.saturating_mul(width).max(1);
        let mut pixels = vec![0; planes.len()];
        for (c, plane) in planes.chunks(area).enumerate() {
            for (pixel, &value) in pixels.chunks_mut(channels.max(1)).zip(plane) {
                if let Some(target) = pixel.get_mut(c) {
                    *target = value;
                }
            }
        }
        Self::new(channels, height, width, pixels)
    }

    /// The picture whose byte at `(y, x, channel)` is `f(y, x, channel)`; the sizes are not zero.
    pub(crate) fn from_fn(
        [channels, height, width]: [usize; 3],
        mut f: impl FnMut(usize, usize, usize) -> u8,
    ) -> Self {
        let mut pixels = Vec::with_capacity(channels * height * width);
        for y in 0..height {
            for x in 0..width {
                pixels.extend((0..channels).map(|c| f(y, x, c)));
            }
        }
        Self { channels, height, width, pixels }
    }

    /// A picture of as many channels; the caller brings `height × width` pixels of them.
    pub(crate) fn with_pixels(&self, height: usize, width: usize, pixels: Vec<u8>) -> Self {
        debug_assert_eq!(pixels.len(), self.channels * height * width);
        Self { channels: self.channels, height, width, pixels }
    }

    /// How many bytes a pixel has.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// How many rows there are.
    pub fn height(&self) -> usize {
        self.height
    }

    /// How many pixels a row has.
    pub fn width(&self) -> usize {
        self.width
    }

    /// `[channels, height, width]`: the shape of the tensor the picture becomes.
    pub fn shape(&self) -> [usize; 3] {
        [self.channels, self.height, self.width]
    }

    /// The bytes in `height, width, channels` order.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    pub(crate) fn pixels_mut(&mut self) -> &mut [u8] {
        &mut self.pixels
    }

    /// The byte of one channel of one pixel.
    #[cfg(test)]
    pub(crate) fn at(&self, y: usize, x: usize, c: usize) -> u8 {
        self.pixels[(y * self.width + x) * self.channels + c]
    }

    /// The brightness alone: 0.299 R + 0.587 G + 0.114 B, as Pillow's `convert("L")` rounds it; a picture that is
    /// not of three channels as it is.
    pub fn into_gray(self) -> Self {
        if self.channels != 3 {
            return self;
        }
        let gray = |rgb: &[u8; 3]| {
            let [r, g, b] = rgb.map(u32::from);
            ((19_595 * r + 38_470 * g + 7_471 * b + 0x8000) >> 16) as u8
        };
        let pixels = self.pixels.as_chunks().0.iter().map(gray).collect();
        Self { channels: 1, pixels, ..self }
    }

    /// The `height × width` window whose upper left corner is at `(top, left)`. What lies outside
    /// the picture is black (zero), as after torchvision's padding.
    ///
    /// # Panics
    /// If the window is empty.
    pub fn crop(&self, top: isize, left: isize, height: usize, width: usize) -> Self {
        assert!(height > 0 && width > 0, "a window of {height}×{width} pixels");
        let pixels = vec![0; height * width * self.channels];
        let mut result = Self { channels: self.channels, height, width, pixels };
        // The columns that exist: x + left in 0..self.width.
        let first = left.saturating_neg().clamp(0, width as isize) as usize;
        let last = (self.width as isize).saturating_sub(left).clamp(first as isize, width as isize);
        let run = (last as usize - first) * self.channels;
        if run == 0 {
            return result;
        }
        for y in 0..height {
            let source = top.saturating_add(y as isize);
            if (0..self.height as isize).contains(&source) {
                let x = (left + first as isize) as usize;
                let from = (source as usize * self.width + x) * self.channels;
                let to = (y * width + first) * self.channels;
                result.pixels[to..to + run].copy_from_slice(&self.pixels[from..from + run]);
            }
        }
        result
    }

    /// The picture in a mirror: left and right exchanged.
    pub fn flip_horizontal(&mut self) {
        let channels = self.channels;
        for row in self.pixels.chunks_mut(self.width * channels) {
            for x in 0..self.width / 2 {
                for c in 0..channels {
                    row.swap(x * channels + c, (self.width - 1 - x) * channels + c);
                }
            }
        }
    }
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Image {}×{}×{}", self.channels, self.height, self.width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counting() -> Image {
        Image::new(1, 2, 3, vec![1, 2, 3, 4, 5, 6]).unwrap()
    }

    #[test]
    fn planes_become_pixels() {
        let image = Image::from_planes(3, 1, 2, &[1, 2, 3, 4, 5, 6]).unwrap();
        assert_eq!(image.pixels(), [1, 3, 5, 2, 4, 6]);
    }

    #[test]
    fn brightness_is_pillows() {
        let pixels =
            [[255; 3], [1, 2, 3], [200, 10, 77], [0, 255, 0], [17, 99, 254], [128, 127, 126]];
        let image = Image::new(3, 2, 3, pixels.concat()).unwrap();
        assert_eq!(image.into_gray().pixels(), [255, 2, 74, 150, 92, 127]);
        for gray in 0..=255 {
            let image = Image::new(3, 1, 1, vec![gray; 3]).unwrap();
            assert_eq!(image.into_gray().pixels(), [gray]);
        }
        assert_eq!(counting().into_gray(), counting());
    }

    #[test]
    fn a_window_beyond_the_picture_is_black_there() {
        assert_eq!(counting().crop(-1, -1, 3, 3).pixels(), [0, 0, 0, 0, 1, 2, 0, 4, 5]);
        assert_eq!(counting().crop(1, 2, 2, 2).pixels(), [6, 0, 0, 0]);
        assert_eq!(counting().crop(0, 7, 1, 2).pixels(), [0, 0]);
        assert_eq!(counting().crop(0, -7, 1, 2).pixels(), [0, 0]);
        for far in [isize::MIN, isize::MAX] {
            assert_eq!(counting().crop(far, 0, 2, 1).pixels(), [0, 0]);
            assert_eq!(counting().crop(0, far, 1, 2).pixels(), [0, 0]);
        }
    }

    #[test]
    #[should_panic(expected = "a window of 2×0 pixels")]
    fn an_empty_window_is_no_picture() {
        counting().crop(0, 0, 2, 0);
    }

    #[test]
    fn a_mirror_twice_changes_nothing() {
        let mut image = counting();
        image.flip_horizontal();
        assert_eq!(image.pixels(), [3, 2, 1, 6, 5, 4]);
        image.flip_horizontal();
        assert_eq!(image, counting());
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        assert!(Image::new(3, 2, 2, vec![0; 11]).is_err());
        assert!(Image::new(usize::MAX, 2, 2, vec![0; 4]).is_err());
        assert!(Image::new(0, 2, 2, vec![]).is_err());
        assert!(Image::from_planes(0, 0, 0, &[1]).is_err());
    }
}
