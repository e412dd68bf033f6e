//! The bordered copy of an input: NHWC with the padding written out, so that a kernel row of a
//! window is one contiguous run and no kernel knows about edges.

use crate::conv::ConvGeometry;
use crate::gemm::int8::encode;
use crate::parallel;
use crate::simd::Isa;

/// Bytes of bordered images that a pass writes before the kernel reads them: a part of the L2 cache,
/// and enough images for some threads when images are small.
const PASS: usize = 1 << 19;

/// The size of a bordered image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bordered {
    /// Input height and width.
    size: [usize; 2],
    top: usize,
    left: usize,
    /// Height with borders.
    pub(crate) height: usize,
    /// Elements of a row with borders.
    pub(crate) row: usize,
    /// Elements of a pixel: its channels.
    pixel: usize,
    /// Image rows that lie side by side in a row of this, pixel by pixel.
    side: usize,
}

impl Bordered {
    pub(crate) fn new(geometry: &ConvGeometry) -> Self {
        let [top, left, bottom, right] = geometry.attrs.padding;
        let [height, width] = geometry.in_size;
        let pixel = geometry.in_channels;
        Self {
            size: [height, width],
            top,
            left,
            height: height + top + bottom,
            row: (width + left + right) * pixel,
            pixel,
            side: 1,
        }
    }

    /// The most channels of rows that lie side by side.
    pub(crate) const SIDE_CHANNELS: usize = 4;
    /// How many rows lie side by side.
    pub(crate) const SIDE: usize = 2;

    /// Two image rows lie side by side: the first pixel of each, the second of each, and so on. A run
    /// of a window is then twice as long, and there are half as many.
    pub(crate) fn side_by_side(geometry: &ConvGeometry) -> Self {
        let border = Self::new(geometry);
        Self {
            height: border.height.div_ceil(Self::SIDE),
            row: border.row * Self::SIDE,
            side: Self::SIDE,
            ..border
        }
    }

    /// Elements of one image.
    pub(crate) fn len(&self) -> usize {
        self.height * self.row
    }

    /// How many images a pass handles.
    pub(crate) fn images_per_pass(&self, batch: usize) -> usize {
        (PASS / self.len().max(1)).clamp(1, batch.max(1))
    }

    /// Writes images with their borders, `form(code, zero_point)` for each code.
    pub(crate) fn write<I: Isa, X: Copy + Send + Sync>(
        &self,
        isa: I,
        form: impl Fn(u8, u8) -> X + Copy + Sync + Send,
        input: &[u8],
        zero_point: u8,
        out: &mut [X],
    ) {
        let rows = (parallel::CODES / self.row.max(1)).max(1);
        parallel::for_each_chunk(out, rows * self.row, |chunk, out| {
            self.write_rows(isa, form, input, zero_point, chunk * rows, out);
        });
    }

    /// Writes the rows that fill `out`, from row `first` of all images' on.
    pub(crate) fn write_rows<I: Isa, X: Copy>(
        &self,
        isa: I,
        form: impl Fn(u8, u8) -> X + Copy,
        input: &[u8],
        zero_point: u8,
        first: usize,
        out: &mut [X],
    ) {
        let border = form(zero_point, zero_point);
        for (i, out) in out.chunks_exact_mut(self.row).enumerate() {
            let (image, row) = ((first + i) / self.height, (first + i) % self.height);
            if self.side == 1 {
                self.write_row(isa, form, self.codes(input, image, row), zero_point, out);
                continue;
            }
            let codes = [0, 1].map(|side| self.codes(input, image, row * Self::SIDE + side));
            let form = |code| form(code, zero_point);
            match self.pixel {
                1 => self.write_pair::<X, 1>(form, codes, border, out),
                2 => self.write_pair::<X, 2>(form, codes, border, out),
                3 => self.write_pair::<X, 3>(form, codes, border, out),
                4 => self.write_pair::<X, 4>(form, codes, border, out),
                channels => unreachable!("{channels} channels side by side"),
            }
        }
    }

    /// The codes of row `y` of a bordered image, unless it is border.
    fn codes<'a>(&self, input: &'a [u8], image: usize, y: usize) -> Option<&'a [u8]> {
        let [height, width] = self.size;
        let y = y.checked_sub(self.top).filter(|&y| y < height)?;
        Some(&input[(image * height + y) * width * self.pixel..][..width * self.pixel])
    }

    fn write_row<I: Isa, X: Copy>(
        &self,
        isa: I,
        form: impl Fn(u8, u8) -> X + Copy,
        codes: Option<&[u8]>,
        zero_point: u8,
        out: &mut [X],
    ) {
        let border = form(zero_point, zero_point);
        let Some(codes) = codes else { return out.fill(border) };
        let (before, inner) = (self.left * self.pixel, self.size[1] * self.pixel);
        out[..before].fill(border);
        out[before + inner..].fill(border);
        encode(isa, form, codes, zero_point, &mut out[before..before + inner]);
    }

    /// Writes two rows of `C` channels side by side.
    fn write_pair<X: Copy, const C: usize>(
        &self,
        form: impl Fn(u8) -> X,
        codes: [Option<&[u8]>; Self::SIDE],
        border: X,
        out: &mut [X],
    ) {
        let (before, inner) = (self.left * Self::SIDE * C, self.size[1] * Self::SIDE * C);
        out[..before].fill(border);
        out[before + inner..].fill(border);
        let out = &mut out[before..before + inner];
        if let [Some(a), Some(b)] = codes {
            let pixels = a.as_chunks::<C>().0.iter().zip(b.as_chunks::<C>().0);
            for (out, (a, b)) in out.chunks_exact_mut(2 * C).zip(pixels) {
                out[..C].copy_from_slice(&a.map(&form));
                out[C..].copy_from_slice(&b.map(&form));
            }
            return;
        }
        out.fill(border);
        for (side, codes) in codes.into_iter().enumerate() {
            let pixels = codes.unwrap_or(&[]).as_chunks::<C>().0;
            for (out, codes) in out.chunks_exact_mut(2 * C).zip(pixels) {
                out[side * C..][..C].copy_from_slice(&codes.map(&form));
            }
        }
    }
}
