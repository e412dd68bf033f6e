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
    /// Input height, width, channels.
    size: [usize; 3],
    top: usize,
    left: usize,
    /// Height with borders.
    pub(crate) height: usize,
    /// Elements of a row with borders.
    pub(crate) row: usize,
    /// Elements of a pixel: its channels and what pads them.
    pub(crate) pixel: usize,
}

impl Bordered {
    pub(crate) fn new(geometry: &ConvGeometry) -> Self {
        Self::at_least(geometry, [0; 2], 1)
    }

    /// An image of at least `size` pixels, whose channels are padded to a multiple of `vector`.
    pub(crate) fn at_least(geometry: &ConvGeometry, size: [usize; 2], vector: usize) -> Self {
        let [top, left, bottom, right] = geometry.attrs.padding;
        let [height, width] = geometry.in_size;
        let channels = geometry.in_channels;
        let pixel = channels.next_multiple_of(vector);
        Self {
            size: [height, width, channels],
            top,
            left,
            height: (height + top + bottom).max(size[0]),
            row: (width + left + right).max(size[1]) * pixel,
            pixel,
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
        let [height, width, channels] = self.size;
        let border = form(zero_point, zero_point);
        let (before, inner) = (self.left * self.pixel, width * self.pixel);
        for (i, out) in out.chunks_exact_mut(self.row).enumerate() {
            let (image, y) = ((first + i) / self.height, (first + i) % self.height);
            if y < self.top || y >= self.top + height {
                out.fill(border);
                continue;
            }
            let codes = &input[(image * height + y - self.top) * width * channels..];
            out[..before].fill(border);
            out[before + inner..].fill(border);
            let out = &mut out[before..before + inner];
            if self.pixel == channels {
                encode(isa, form, codes, zero_point, out);
                continue;
            }
            let pixels = out.chunks_exact_mut(self.pixel);
            for (out, codes) in pixels.zip(codes.chunks_exact(channels)) {
                out[channels..].fill(border);
                encode(isa, form, codes, zero_point, &mut out[..channels]);
            }
        }
    }
}
