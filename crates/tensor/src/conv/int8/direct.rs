//! Implicit GEMM: the rows of the product are output pixels, `k` is a list of runs in the bordered
//! image. Nothing is unfolded.

use super::image::Bordered;
use crate::conv::{ConvAttrs, ConvGeometry};
use crate::gemm::int8::{Epilogue, Job, Panels, RowMap, Scratch, is_narrow};
use crate::simd::int8::{Int8, Product};
use crate::{Level, parallel, simd::dispatch};

/// The weights of a direct convolution: panels for each group.
pub(crate) struct Direct {
    groups: Vec<Panels<i8>>,
    /// Whether the panels are those of [`Int8::Narrow`].
    narrow: bool,
    /// Whether the panels hold the runs of a window as one.
    joined: bool,
}

/// The runs of a window: kernel rows where their pixels are neighbours, else single taps.
struct Runs {
    rows: usize,
    taps: usize,
    /// Values of a run.
    len: usize,
}

impl Runs {
    fn new(shape: [usize; 4], attrs: &ConvAttrs) -> Self {
        let [_, channels, kernel_h, kernel_w] = shape;
        if attrs.dilation[1] == 1 && attrs.groups == 1 {
            Self { rows: kernel_h, taps: 1, len: kernel_w * channels }
        } else {
            Self { rows: kernel_h, taps: kernel_w, len: channels }
        }
    }

    /// Whether `P` multiplies them as one: if padding each would at least double them.
    fn joined<P: Product>(&self, _product: P) -> bool {
        let (count, step) = (self.rows * self.taps, P::GROUP * P::STEPS);
        count > 1
            && count * self.len <= P::JOINED
            && 2 * (count * self.len).next_multiple_of(step)
                <= count * self.len.next_multiple_of(step)
    }
}

impl Direct {
    pub(crate) fn new(level: Level, weights: &[i8], shape: [usize; 4], attrs: &ConvAttrs) -> Self {
        let [outputs, channels, kernel_h, kernel_w] = shape;
        let runs = Runs::new(shape, attrs);
        let columns = outputs / attrs.groups;
        let narrow = is_narrow(level, weights);
        let joined = dispatch!(level, isa => match isa.narrow() {
            Some(product) if narrow => runs.joined(product),
            _ => runs.joined(isa.bytes()),
        });
        let pack = |group: usize| {
            let read_run = |column: usize, run: usize, values: &mut [i8]| {
                let (taps, filter) = (kernel_h * kernel_w, channels * kernel_h * kernel_w);
                let filter = &weights[(group * columns + column) * filter..][..filter];
                let first = run / runs.taps * kernel_w + run % runs.taps;
                for (kx, values) in values.chunks_exact_mut(channels.max(1)).enumerate() {
                    for (value, taps) in values.iter_mut().zip(filter.chunks_exact(taps)) {
                        *value = taps[first + kx];
                    }
                }
            };
            let runs_of_a_pack = if joined { runs.rows * runs.taps } else { 1 };
            let read = |column: usize, pack: usize, values: &mut [i8]| {
                for (i, values) in values.chunks_exact_mut(runs.len.max(1)).enumerate() {
                    read_run(column, pack * runs_of_a_pack + i, values);
                }
            };
            let (count, len) = (runs.rows * runs.taps / runs_of_a_pack, runs.len * runs_of_a_pack);
            dispatch!(level, isa => match isa.narrow() {
                Some(product) if narrow => Panels::pack(product, columns, count, len, read),
                _ => Panels::pack(isa.bytes(), columns, count, len, read),
            })
        };
        Self { groups: (0..attrs.groups).map(pack).collect(), narrow, joined }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.groups.iter().map(Panels::bytes).sum()
    }

    /// What the sums hold too much of, once for each weight: [`Product::excess`].
    pub(crate) fn excess<I: Int8>(&self, zero_point: u8) -> i32 {
        if self.narrow { I::Narrow::excess(zero_point) } else { I::Bytes::excess(zero_point) }
    }

    pub(crate) fn scratch_len<I: Int8>(isa: I, geometry: &ConvGeometry) -> usize {
        // Narrow weights read codes as they are, in no more memory.
        Self::scratch_of(isa.bytes(), geometry)
    }

    fn scratch_of<P: Product>(_product: P, geometry: &ConvGeometry) -> usize {
        let border = Bordered::new(geometry);
        let images = border.images_per_pass(geometry.batch);
        let [_, _, kernel_h, kernel_w] = geometry.weight_shape();
        Scratch::bytes::<usize>(kernel_h * kernel_w)
            + Scratch::bytes::<P::X>(images * border.len() + P::GROUP * P::STEPS)
    }

    /// # Safety
    /// Nobody else touches the epilogue's output meanwhile.
    pub(crate) unsafe fn run<I: Int8>(
        &self,
        isa: I,
        geometry: &ConvGeometry,
        input: &[u8],
        zero_point: u8,
        epilogue: &Epilogue,
        scratch: Scratch,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            match isa.narrow() {
                Some(product) if self.narrow => {
                    self.run_on(product, geometry, input, zero_point, epilogue, scratch);
                }
                _ => self.run_on(isa.bytes(), geometry, input, zero_point, epilogue, scratch),
            }
        }
    }

    /// # Safety
    /// As [`Direct::run`].
    unsafe fn run_on<P: Product<W = i8>>(
        &self,
        product: P,
        geometry: &ConvGeometry,
        input: &[u8],
        zero_point: u8,
        epilogue: &Epilogue,
        mut scratch: Scratch,
    ) {
        let ConvGeometry { batch, in_channels, out_channels, attrs, .. } = *geometry;
        let (border, shape) = (Bordered::new(geometry), geometry.weight_shape());
        let window = Runs::new(shape, &attrs);
        let runs = scratch.take::<usize>(window.rows * window.taps);
        for (run, offset) in runs.iter_mut().enumerate() {
            let (ky, kx) = (run / window.taps, run % window.taps);
            *offset = ky * attrs.dilation[0] * border.row + kx * attrs.dilation[1] * in_channels;
        }
        let whole = window.len.is_multiple_of(P::GROUP * P::STEPS);
        let in_place = P::RAW && attrs.padding == [0; 4] && whole;
        let images = if in_place { batch } else { border.images_per_pass(batch) };
        // The last run of the last row may end in the padding of a step.
        let behind = P::GROUP * P::STEPS;
        let copy = scratch.take::<P::X>(if in_place { 0 } else { images * border.len() + behind });
        let pixels = geometry.out_size[0] * geometry.out_size[1];
        let in_len = geometry.in_size[0] * geometry.in_size[1] * in_channels;
        for first in (0..batch).step_by(images.max(1)) {
            let images = images.min(batch - first);
            let input = &input[first * in_len..(first + images) * in_len];
            let image: &[P::X] = if in_place {
                bytemuck::cast_slice(input)
            } else {
                let inner = &mut copy[..images * border.len()];
                border.write(product.isa(), P::encode, input, zero_point, inner);
                copy
            };
            parallel::for_each(attrs.groups, |group| {
                let job = Job::<P> {
                    image,
                    map: RowMap {
                        width: geometry.out_size[1],
                        height: geometry.out_size[0],
                        pixel: attrs.stride[1] * in_channels,
                        row: attrs.stride[0] * border.row,
                        image: border.len(),
                        start: group * (in_channels / attrs.groups),
                    },
                    runs,
                    joined: self.joined.then_some(window.len),
                    panels: &self.groups[group],
                    rows: images * pixels,
                    origin: [first * pixels, group * (out_channels / attrs.groups)],
                };
                // SAFETY: groups differ in columns, passes follow each other; the rest is the
                // caller's promise.
                unsafe { job.run(product, epilogue) };
            });
        }
    }
}
