//! Brightness, contrast, saturation and hue, as Pillow computes them, and so torchvision on
//! pictures.
//!
//! Source: Pillow's `ImageEnhance`, `Blend.c` and `Convert.c`; torchvision's
//! `transforms.functional`, backend PIL.

use crate::Image;

impl Image {
    /// Every byte times `factor`.
    pub fn adjust_brightness(&mut self, factor: f32) {
        self.blend(factor, |_, _| 0);
    }

    /// Every byte's distance from the mean gray of the picture times `factor`.
    pub fn adjust_contrast(&mut self, factor: f32) {
        let area = self.height() * self.width();
        let sum: u64 = self.pixels().chunks(self.channels()).map(|p| u64::from(gray(p))).sum();
        let mean = (sum as f64 / area as f64 + 0.5) as u8;
        self.blend(factor, |_, _| mean);
    }

    /// Every pixel's distance from its own gray times `factor`; zero makes a gray picture. Pictures
    /// without three channels stay as they are.
    pub fn adjust_saturation(&mut self, factor: f32) {
        if self.channels() == 3 {
            self.blend(factor, |pixel, _| gray(pixel));
        }
    }

    /// Turns the hue of every pixel by `turn` of the color circle (−0.5 to 0.5). Pictures without
    /// three channels stay as they are.
    pub fn adjust_hue(&mut self, turn: f64) {
        if self.channels() != 3 {
            return;
        }
        // As NumPy: towards zero, then modulo 256.
        let turn = (turn * 255.0) as i32 as u8;
        for pixel in self.pixels_mut().chunks_exact_mut(3) {
            let [hue, saturation, value] = to_hsv([pixel[0], pixel[1], pixel[2]]);
            pixel.copy_from_slice(&from_hsv([hue.wrapping_add(turn), saturation, value]));
        }
    }

    /// `from + factor · (byte − from)`, `from` being a function of the pixel and the channel.
    fn blend(&mut self, factor: f32, from: impl Fn(&[u8], usize) -> u8) {
        // Exact, and what Pillow does instead of the formula.
        if factor == 1.0 {
            return;
        }
        let channels = self.channels();
        let mut before = vec![0; channels];
        for pixel in self.pixels_mut().chunks_exact_mut(channels) {
            before.copy_from_slice(pixel);
            for (c, byte) in pixel.iter_mut().enumerate() {
                let from = i32::from(from(&before, c));
                let mixed = from as f32 + factor * (i32::from(*byte) - from) as f32;
                // Pillow truncates; so does `as`, which also clamps.
                *byte = mixed as u8;
            }
        }
    }
}

/// ITU-R 601 luma in 16-bit fixed point.
fn gray(pixel: &[u8]) -> u8 {
    match *pixel {
        [r, g, b] => {
            let sum = u32::from(r) * 19595 + u32::from(g) * 38470 + u32::from(b) * 7471;
            ((sum + 0x8000) >> 16) as u8
        }
        // One channel is gray already; of others, the first stands for all.
        [first, ..] => first,
        [] => 0,
    }
}

/// In Pillow's mixture of `f32` and `f64`, which decides about the last bit.
fn to_hsv([r, g, b]: [u8; 3]) -> [u8; 3] {
    let (high, low) = (r.max(g).max(b), r.min(g).min(b));
    if high == low {
        return [0, 0, high];
    }
    let range = f32::from(high - low);
    let saturation = range / f32::from(high);
    let below = |byte: u8| f32::from(high - byte) / range;
    let (rc, gc, bc) = (below(r), below(g), below(b));
    let sector = if r == high {
        bc - gc
    } else if g == high {
        (2.0 + f64::from(rc) - f64::from(bc)) as f32
    } else {
        (4.0 + f64::from(gc) - f64::from(rc)) as f32
    };
    let hue = ((f64::from(sector) / 6.0 + 1.0) % 1.0) as f32;
    [(f64::from(hue) * 255.0) as u8, (f64::from(saturation) * 255.0) as u8, high]
}

fn from_hsv([hue, saturation, value]: [u8; 3]) -> [u8; 3] {
    if saturation == 0 {
        return [value; 3];
    }
    let position = f64::from(f32::from(hue)) * 6.0 / 255.0;
    let sector = position.floor();
    let f = f64::from((position - sector) as f32);
    let fs = f64::from((f64::from(saturation) / 255.0) as f32);
    let v = f64::from(value);
    let byte = |x: f64| x.round() as u8;
    let (p, q, t) =
        (byte(v * (1.0 - fs)), byte(v * (1.0 - fs * f)), byte(v * (1.0 - fs * (1.0 - f))));
    match sector as u8 % 6 {
        0 => [value, t, p],
        1 => [q, value, p],
        2 => [p, value, t],
        3 => [p, q, value],
        4 => [t, p, value],
        _ => [value, p, q],
    }
}
