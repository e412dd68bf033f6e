//! One filter a channel: vectors of channels, tap by tap, on the raw codes of the bordered image.

use super::image::Bordered;
use crate::conv::ConvGeometry;
use crate::gemm::int8::{Epilogue, Finish, MAX_LANES, Place, Scratch};
use crate::parallel;
use crate::simd::int8::Int8;

/// The weights: `[tap][channel]`, widened, with a vector of zeros behind: a vector that begins in one tap's
/// row may end in the next one's, whose lanes nobody looks at.
pub(crate) struct Depthwise {
    weights: Vec<i32>,
    stride: usize,
}

impl Depthwise {
    pub(crate) fn new(weights: &[i8], shape: [usize; 4]) -> Self {
        let [channels, _, kernel_h, kernel_w] = shape;
        let (taps, stride) = (kernel_h * kernel_w, channels);
        let mut packed = vec![0; taps * stride + MAX_LANES];
        for (i, &weight) in weights.iter().enumerate() {
            packed[i % taps * stride + i / taps] = weight.into();
        }
        Self { weights: packed, stride }
    }

    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&self.weights[..])
    }

    pub(crate) fn scratch_len(geometry: &ConvGeometry) -> usize {
        let border = Bordered::new(geometry);
        Scratch::bytes::<u8>(border.images_per_pass(geometry.batch) * border.len() + MAX_LANES)
    }

    /// The border holds the zero point: the sums are raw, the epilogue's bias takes it out.
    ///
    /// # Safety
    /// Nobody else touches the epilogue's output meanwhile.
    pub(crate) unsafe fn run<I: Int8>(
        &self,
        isa: I,
        geometry: &ConvGeometry,
        input: &[u8],
        zero_point: u8,
        epilogue: &Epilogue,
        mut scratch: Scratch,
    ) {
        let border = Bordered::new(geometry);
        let ConvGeometry { batch, in_size: [height, width], in_channels: channels, .. } = *geometry;
        let images = border.images_per_pass(batch);
        let image = scratch.take::<u8>(images * border.len() + MAX_LANES);
        let rows = geometry.out_size[0];
        for first in (0..batch).step_by(images) {
            let images = images.min(batch - first);
            let input = &input[first * height * width * channels..];
            let copy = &mut image[..images * border.len()];
            border.write(isa, |code, _| code, input, zero_point, copy);
            let image = &*image; // from here on shared
            parallel::for_each(images * rows, |task| {
                let start = task / rows * border.len();
                // SAFETY: each task has its own output row; the rest is the caller's promise.
                unsafe {
                    self.row(
                        isa,
                        geometry,
                        &image[start..],
                        [first * rows + task, task % rows],
                        epilogue,
                    );
                }
            });
        }
    }

    /// One row of output pixels: row `index[0]` of the output, `index[1]` of its image.
    unsafe fn row<I: Int8>(
        &self,
        isa: I,
        geometry: &ConvGeometry,
        image: &[u8],
        index: [usize; 2],
        epilogue: &Epilogue,
    ) {
        let ConvGeometry { in_channels: channels, out_size: [_, width], kernel, attrs, .. } =
            *geometry;
        let image_row = Bordered::new(geometry).row;
        for x in 0..width {
            let window = index[1] * attrs.stride[0] * image_row + x * attrs.stride[1] * channels;
            let pixel = index[0] * width + x;
            isa.enter(
                #[inline(always)]
                || {
                    for c in (0..channels).step_by(I::LANES) {
                        let mut acc = isa.load(&epilogue.bias[c..]);
                        let mut weights = &self.weights[c..];
                        for ky in 0..kernel[0] {
                            for kx in 0..kernel[1] {
                                let at = window
                                    + ky * attrs.dilation[0] * image_row
                                    + kx * attrs.dilation[1] * channels;
                                acc = isa.tap(acc, &image[at + c..], weights);
                                weights = weights.get(self.stride..).unwrap_or(&[]);
                            }
                        }
                        let columns = (channels - c).min(I::LANES);
                        let place = Place { row: pixel, rows: 1, column: c, columns };
                        // SAFETY: the caller's promise.
                        unsafe {
                            if columns == I::LANES {
                                epilogue.whole(isa, &[[acc]], place);
                            } else {
                                epilogue.ragged(isa, &[[acc]], place);
                            }
                        }
                    }
                },
            );
        }
    }
}
