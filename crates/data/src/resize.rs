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

/// The windows of an axis that goes from the `input` pixels inside `span` to `output` pixels.
fn windows(input: usize, span: Range<f64>, output: usize) -> Vec<Window> {
    let scale = (span.end - span.start) / output as f64;
    let support = scale.max(1.0);
    // In Pillow's order of operations, so that each weight is the same number.
    let steepness = 1.0 / support;
    (0..output)
        .map(|i| {
            let center = span.start + (i as f64 + 0.5) * scale;
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
        let whole = |side: usize| 0.0..side as f64;
        self.resize_part(whole(self.height()), whole(self.width()), height, width)
    }

    /// The middle `height × width` pixels; black where the picture is smaller, as torchvision pads.
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

    /// Resizes the rows and columns inside `rows` and `columns`.
    fn resize_part(
        &self,
        rows: Range<f64>,
        columns: Range<f64>,
        height: usize,
        width: usize,
    ) -> Self {
        let (height, width) = (height.max(1), width.max(1));
        let mut image = self.clone();
        if width != image.width() || columns != (0.0..image.width() as f64) {
            image = image.resample_columns(&windows(image.width(), columns, width));
        }
        if height != image.height() || rows != (0.0..image.height() as f64) {
            image = image.resample_rows(&windows(image.height(), rows, height));
        }
        image
    }

    fn resample_columns(&self, windows: &[Window]) -> Self {
        let [channels, height, _] = self.shape();
        Self::from_fn([channels, height, windows.len()], |y, x, c| {
            let window = &windows[x];
            let pixels = window.inputs.clone().map(|x| self.at(y, x, c));
            mean(pixels.zip(window.weights.iter().copied()))
        })
    }

    fn resample_rows(&self, windows: &[Window]) -> Self {
        let [channels, _, width] = self.shape();
        Self::from_fn([channels, windows.len(), width], |y, x, c| {
            let window = &windows[y];
            let pixels = window.inputs.clone().map(|y| self.at(y, x, c));
            mean(pixels.zip(window.weights.iter().copied()))
        })
    }
}

/// `Σ pixel · weight`, rounded, as a byte.
fn mean(terms: impl Iterator<Item = (u8, i32)>) -> u8 {
    let half = 1 << (PRECISION - 1);
    let sum = terms.fold(half, |sum: i32, (pixel, weight)| sum + i32::from(pixel) * weight);
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
