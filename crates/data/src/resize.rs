//! Resizing as Pillow does it, and so torchvision on pictures: bilinear with antialiasing, in 8-bit
//! fixed point, rows first.
//!
//! Each output pixel is a weighted mean of the input pixels within `support = max(scale, 1)` of its
//! center, the weights a triangle of that half-width. Weights are rounded to 22 bits, each of the
//! two passes rounds to a byte, and so the result equals Pillow's byte for byte.
//!
//! Source: Pillow, `Image.resize(…, BILINEAR)`; torchvision `Resize(…, antialias=True)`.

use std::ops::Range;

use crate::Image;

/// 32 bits, less 8 of the pixel, less 2 of headroom.
const PRECISION: u32 = 32 - 8 - 2;

/// What one output pixel sees along one axis.
struct Window {
    inputs: Range<usize>,
    weights: Vec<i32>,
}

/// The windows of an axis that goes from `input` pixels to `output` pixels.
fn windows(input: usize, output: usize) -> Vec<Window> {
    let scale = input as f64 / output as f64;
    let support = scale.max(1.0);
    // In Pillow's order of operations, so that each weight is the same number.
    let steepness = 1.0 / support;
    (0..output)
        .map(|i| {
            let center = (i as f64 + 0.5) * scale;
            let first = (center - support + 0.5).max(0.0) as usize;
            let last = ((center + support + 0.5).max(0.0) as usize).min(input);
            let raw: Vec<f64> = (first..last)
                .map(|x| (1.0 - ((x as f64 - center + 0.5) * steepness).abs()).max(0.0))
                .collect();
            let total: f64 = raw.iter().sum();
            let weight = |w: &f64| (0.5 + w / total * f64::from(1 << PRECISION)) as i32;
            let weights = raw.iter().map(weight).collect();
            Window { inputs: first..last, weights }
        })
        .collect()
}

impl Image {
    /// The picture with another number of pixels, bilinear and antialiased, equal to Pillow's and
    /// torchvision's byte for byte. A side of zero becomes one.
    pub fn resize(&self, height: usize, width: usize) -> Self {
        let (height, width) = (height.max(1), width.max(1));
        let mut image = self.clone();
        if width != image.width() {
            let windows = windows(image.width(), width);
            image = match image.channels() {
                1 => image.resample_columns::<1>(&windows),
                3 => image.resample_columns::<3>(&windows),
                _ => image.resample_columns_of_any(&windows),
            };
        }
        if height != image.height() {
            image = image.resample_rows(&windows(image.height(), height));
        }
        image
    }

    /// The middle `height × width` pixels; black where the picture is smaller, as torchvision pads.
    ///
    /// # Panics
    /// If the window is empty.
    pub fn center_crop(&self, height: usize, width: usize) -> Self {
        // torchvision: int(round((h - th) / 2)), and round is to even.
        let start = |size: usize, part: usize| {
            if size >= part {
                ((size - part) as f64 / 2.0).round_ties_even() as isize
            } else {
                // Padding: the smaller half comes first.
                -(((part - size) / 2) as isize)
            }
        };
        self.crop(start(self.height(), height), start(self.width(), width), height, width)
    }

    fn resample_columns<const C: usize>(&self, windows: &[Window]) -> Self {
        let row = self.width() * C;
        let mut pixels = Vec::with_capacity(self.height() * windows.len() * C);
        for row in self.pixels().chunks_exact(row) {
            let (row, _) = row.as_chunks::<C>();
            for window in windows {
                let mut sums = [HALF; C];
                for (pixel, &weight) in row[window.inputs.clone()].iter().zip(&window.weights) {
                    for (sum, &byte) in sums.iter_mut().zip(pixel) {
                        *sum += i32::from(byte) * weight;
                    }
                }
                pixels.extend(sums.map(to_byte));
            }
        }
        self.with_pixels(self.height(), windows.len(), pixels)
    }

    fn resample_columns_of_any(&self, windows: &[Window]) -> Self {
        let channels = self.channels();
        let mut pixels = Vec::with_capacity(self.height() * windows.len() * channels);
        for row in self.pixels().chunks_exact(self.width() * channels) {
            for window in windows {
                for c in 0..channels {
                    let bytes = window.inputs.clone().map(|x| row[x * channels + c]);
                    let terms = bytes.zip(&window.weights).map(|(b, w)| i32::from(b) * w);
                    pixels.push(to_byte(HALF + terms.sum::<i32>()));
                }
            }
        }
        self.with_pixels(self.height(), windows.len(), pixels)
    }

    fn resample_rows(&self, windows: &[Window]) -> Self {
        let row = self.width() * self.channels();
        let mut pixels = Vec::with_capacity(windows.len() * row);
        let mut sums = vec![0; row];
        for window in windows {
            sums.fill(HALF);
            let rows = self.pixels().chunks_exact(row).skip(window.inputs.start);
            for (bytes, &weight) in rows.zip(&window.weights) {
                for (sum, &byte) in sums.iter_mut().zip(bytes) {
                    *sum += i32::from(byte) * weight;
                }
            }
            pixels.extend(sums.iter().map(|&sum| to_byte(sum)));
        }
        self.with_pixels(windows.len(), self.width(), pixels)
    }
}

/// One half, so that shifting rounds.
const HALF: i32 = 1 << (PRECISION - 1);

fn to_byte(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_picture_stays_constant() {
        let image = Image::new(1, 5, 7, vec![200; 35]).unwrap();
        for (height, width) in [(1, 1), (3, 2), (5, 7), (11, 30)] {
            assert!(image.resize(height, width).pixels().iter().all(|&p| p == 200));
        }
    }

    #[test]
    fn halving_averages_with_a_triangle() {
        // Weights 1/8 3/8 3/8 1/8 inside, cut and renormalised at the border.
        let image = Image::new(1, 1, 6, vec![0, 0, 0, 80, 80, 80]).unwrap();
        assert_eq!(image.resize(1, 3).pixels(), [0, 40, 80]);
    }

    #[test]
    fn the_middle_is_where_torchvision_finds_it() {
        let image = Image::new(1, 1, 5, vec![1, 2, 3, 4, 5]).unwrap();
        assert_eq!(image.center_crop(1, 3).pixels(), [2, 3, 4]);
        assert_eq!(image.center_crop(1, 2).pixels(), [3, 4]);
        assert_eq!(image.center_crop(1, 8).pixels(), [0, 1, 2, 3, 4, 5, 0, 0]);
    }
}
