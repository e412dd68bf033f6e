//! The bordered copy of an input: NHWC with the padding written out, so that a kernel row of a
//! window is one contiguous run and no kernel knows about edges.

use crate::conv::ConvGeometry;
use crate::gemm::int8::encode;
use crate::parallel;
use crate::simd::Isa;

/// Bytes of bordered images that a pass writes before the kernel reads them: some of the L2 and L3
/// caches, and enough images for many threads when images are small.
const PASS: usize = 1 << 22;

/// The size of a bordered image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bordered {
    /// Input height, width, channels.
    size: [usize; 3],
    top: usize,
    left: usize,
    /// Height with borders.
    height: usize,
    /// Elements of a row with borders.
    pub(crate) row: usize,
}

impl Bordered {
    pub(crate) fn new(geometry: &ConvGeometry) -> Self {
        let [top, left, bottom, right] = geometry.attrs.padding;
        let [height, width] = geometry.in_size;
        let channels = geometry.in_channels;
        Self {
            size: [height, width, channels],
            top,
            left,
            height: height + top + bottom,
            row: (width + left + right) * channels,
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
        let [height, width, channels] = self.size;
        let border = form(zero_point, zero_point);
        let (before, inner) = (self.left * channels, width * channels);
        let rows = (parallel::CHUNK / self.row.max(1)).max(1);
        parallel::for_each_chunk(out, rows * self.row, |chunk, out| {
            for (i, out) in out.chunks_exact_mut(self.row).enumerate() {
                let row = chunk * rows + i;
                let (image, y) = (row / self.height, row % self.height);
                if y < self.top || y >= self.top + height {
                    out.fill(border);
                    continue;
                }
                let from = (image * height + y - self.top) * inner;
                out[..before].fill(border);
                let codes = &input[from..from + inner];
                encode(isa, form, codes, zero_point, &mut out[before..]);
                out[before + inner..].fill(border);
            }
        });
    }
}
