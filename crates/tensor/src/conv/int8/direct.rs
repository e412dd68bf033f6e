//! Implicit GEMM: the rows of the product are output pixels, `k` is a list of runs in the bordered
//! image. Nothing is unfolded.

use super::image::Bordered;
use crate::conv::{ConvAttrs, ConvGeometry};
use crate::gemm::int8::{Epilogue, Job, Panels, RowMap, Scratch, is_narrow, task};
use crate::simd::int8::{Int8, Product};
use crate::{Level, parallel, simd::dispatch};

/// The weights of a direct convolution: panels for each group.
pub(crate) struct Direct {
    groups: Vec<Panels<i8>>,
    /// Whether the panels are those of [`Int8::Narrow`].
    narrow: bool,
}

/// Rows of an output image that are worth being cut.
const MANY_ROWS: usize = 16;
/// Bytes of weights that stay in a cache while blocks pass.
const CACHED: usize = 1 << 18;
/// Most blocks that have memory at a time.
const BUFFERS: usize = 16;

/// The last run of the last row may end in the padding of a step.
fn behind<P: Product>() -> usize {
    P::GROUP * P::STEPS
}

/// The blocks of an image: see [`Direct::blocks`].
struct Blocks {
    /// Output rows of a block.
    rows: usize,
    /// Blocks of an image.
    count: usize,
    /// Rows of the bordered image that a block reads.
    height: usize,
}

impl Blocks {
    /// Elements of a block's part of the image.
    fn len<P: Product>(&self, border: &Bordered) -> usize {
        (self.height * border.row + behind::<P>()).next_multiple_of(64)
    }

    /// Blocks that have memory at a time.
    fn buffers(&self, batch: usize) -> usize {
        (batch * self.count).min(BUFFERS)
    }
}

/// The runs of a window: kernel rows where their pixels are neighbours, two of them together where
/// image rows lie side by side, else single taps.
struct Runs {
    rows: usize,
    taps: usize,
    /// Kernel rows of a run.
    side: usize,
    /// Values of a run.
    len: usize,
}

impl Runs {
    fn new<P: Product>(_product: P, shape: [usize; 4], attrs: &ConvAttrs) -> Self {
        let [_, channels, kernel_h, kernel_w] = shape;
        if attrs.dilation[1] != 1 || attrs.groups != 1 {
            return Self { rows: kernel_h, taps: kernel_w, side: 1, len: channels };
        }
        let beside = |side: usize| Self {
            rows: kernel_h.div_ceil(side),
            taps: 1,
            side,
            len: side * kernel_w * channels,
        };
        // Rows of few channels are shorter than what is multiplied together.
        let (alone, joined) = (beside(1), beside(Bordered::SIDE));
        let joins = attrs.dilation[0] == 1
            && attrs.stride[0].is_multiple_of(Bordered::SIDE)
            && channels <= Bordered::SIDE_CHANNELS;
        if joins && 4 * joined.depth::<P>() <= 3 * alone.depth::<P>() { joined } else { alone }
    }

    /// Values of all runs, with what pads them.
    fn depth<P: Product>(&self) -> usize {
        self.rows * self.taps * self.len.next_multiple_of(P::GROUP * P::STEPS)
    }

    fn border(&self, geometry: &ConvGeometry) -> Bordered {
        if self.side > 1 { Bordered::side_by_side(geometry) } else { Bordered::new(geometry) }
    }

    /// Rows of the border that a window sees, and that it moves down by.
    fn height(&self, shape: [usize; 4], attrs: &ConvAttrs) -> [usize; 2] {
        if self.side > 1 {
            [self.rows, attrs.stride[0] / self.side]
        } else {
            [(shape[2] - 1) * attrs.dilation[0] + 1, attrs.stride[0]]
        }
    }
}

/// `values[i] = filter[STEP·i + first]`: one tap of each channel.
fn every<const STEP: usize>(filter: &[i8], first: usize, values: &mut [i8]) {
    const MANY: usize = 8;
    let mut blocks = values.chunks_exact_mut(MANY);
    for (values, filter) in (&mut blocks).zip(filter.chunks_exact(MANY * STEP)) {
        let taps = &filter[first..][..(MANY - 1) * STEP + 1];
        for (i, value) in values.iter_mut().enumerate() {
            *value = taps[i * STEP];
        }
    }
    let rest = blocks.into_remainder();
    every_of(&filter[filter.len() - rest.len() * STEP..], STEP, first, rest);
}

/// [`every`] of a distance that the compiler does not know.
fn every_of(filter: &[i8], step: usize, first: usize, values: &mut [i8]) {
    for (value, taps) in values.iter_mut().zip(filter.chunks_exact(step)) {
        *value = taps[first];
    }
}

/// The panels of a group of `columns` outputs, whose filters are the first of `weights`.
fn pack<P: Product<W = i8>>(
    product: P,
    weights: &[i8],
    columns: usize,
    shape: [usize; 4],
    attrs: &ConvAttrs,
) -> Panels<i8> {
    let [_, channels, kernel_h, kernel_w] = shape;
    let (runs, taps) = (Runs::new(product, shape, attrs), kernel_h * kernel_w);
    Panels::pack(product, columns, runs.rows * runs.taps, runs.len, |column, run, values| {
        let filter = &weights[column * channels * taps..][..channels * taps];
        let (ky, kx) = (run / runs.taps * runs.side, run % runs.taps);
        for (i, values) in values.chunks_exact_mut(channels.max(1)).enumerate() {
            let (ky, kx) = (ky + i % runs.side, kx + i / runs.side);
            let tap = ky * kernel_w + kx;
            match taps {
                _ if ky >= kernel_h => values.fill(0),
                1 => every::<1>(filter, tap, values),
                9 => every::<9>(filter, tap, values),
                _ => every_of(filter, taps, tap, values),
            }
        }
    })
}

impl Direct {
    /// Bytes that the weights take packed: each group's outputs fill whole vectors, each run whole steps, so
    /// that small groups take many times what they are.
    pub(crate) fn packed_len(
        level: Level,
        weights: &[i8],
        shape: [usize; 4],
        attrs: &ConvAttrs,
    ) -> usize {
        fn of<P: Product>(product: P, shape: [usize; 4], attrs: &ConvAttrs) -> usize {
            let columns = (shape[0] / attrs.groups).next_multiple_of(<P::Isa as Int8>::LANES);
            let depth = Runs::new(product, shape, attrs).depth::<P>();
            attrs.groups.saturating_mul(columns).saturating_mul(depth)
        }
        let narrow = is_narrow(level, weights);
        dispatch!(level, isa => match isa.narrow() {
            Some(product) if narrow => of(product, shape, attrs),
            _ => of(isa.bytes(), shape, attrs),
        })
    }

    pub(crate) fn new(level: Level, weights: &[i8], shape: [usize; 4], attrs: &ConvAttrs) -> Self {
        let [outputs, channels, kernel_h, kernel_w] = shape;
        let columns = outputs / attrs.groups;
        let narrow = is_narrow(level, weights);
        let pack = |group: usize| {
            let weights = &weights[group * columns * channels * kernel_h * kernel_w..];
            dispatch!(level, isa => match isa.narrow() {
                Some(product) if narrow => pack(product, weights, columns, shape, attrs),
                _ => pack(isa.bytes(), weights, columns, shape, attrs),
            })
        };
        Self { groups: (0..attrs.groups).map(pack).collect(), narrow }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.groups.iter().map(Panels::bytes).sum()
    }

    /// What the sums hold too much of, once for each weight: [`Product::excess`].
    pub(crate) fn excess<I: Int8>(&self, zero_point: u8) -> i32 {
        if self.narrow { I::Narrow::excess(zero_point) } else { I::Bytes::excess(zero_point) }
    }

    pub(crate) fn scratch_len<I: Int8>(&self, isa: I, geometry: &ConvGeometry) -> usize {
        match isa.narrow() {
            Some(product) if self.narrow => self.scratch_of(product, geometry),
            _ => self.scratch_of(isa.bytes(), geometry),
        }
    }

    fn scratch_of<P: Product>(&self, product: P, geometry: &ConvGeometry) -> usize {
        let runs = Runs::new(product, geometry.weight_shape(), &geometry.attrs);
        let border = runs.border(geometry);
        let elements = match self.blocks(product, geometry, &runs, &border) {
            Some(blocks) => blocks.buffers(geometry.batch) * blocks.len::<P>(&border),
            None => border.images_per_pass(geometry.batch) * border.len() + behind::<P>(),
        };
        Scratch::bytes::<usize>(runs.rows * runs.taps) + Scratch::bytes::<P::X>(elements)
    }

    /// How an image is cut into blocks that stay in the cache between being bordered and multiplied:
    /// high images, and weights few enough to be read again for each block.
    fn blocks<P: Product>(
        &self,
        _product: P,
        geometry: &ConvGeometry,
        runs: &Runs,
        border: &Bordered,
    ) -> Option<Blocks> {
        let ConvGeometry { out_size: [height, width], attrs, .. } = *geometry;
        let [halo, step] = runs.height(geometry.weight_shape(), &attrs);
        let [panels] = self.groups.as_slice() else { return None };
        let row = width * panels.columns * panels.depth();
        let least = task::<P>(height.saturating_mul(row)) / row.max(1);
        // At most a half of what is copied is copied twice.
        let least = least.max((2 * halo.saturating_sub(step)).div_ceil(step));
        let fits = panels.bytes() <= CACHED && height >= MANY_ROWS && border.row > 0;
        fits.then(|| {
            // A power of two, which two threads and four share evenly.
            let count = 1 << (height / least.max(1)).max(1).ilog2();
            let rows = height.div_ceil(count);
            Blocks { rows, count: height.div_ceil(rows), height: (rows - 1) * step + halo }
        })
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
        let shape = geometry.weight_shape();
        let window = Runs::new(product, shape, &attrs);
        let border = window.border(geometry);
        let [_, step] = window.height(shape, &attrs);
        let runs = scratch.take::<usize>(window.rows * window.taps);
        for (run, offset) in runs.iter_mut().enumerate() {
            let (ky, kx) = (run / window.taps, run % window.taps);
            // Joined rows are those of a dilation of one.
            *offset = ky * attrs.dilation[0] * border.row + kx * attrs.dilation[1] * in_channels;
        }
        let whole = window.len.is_multiple_of(P::GROUP * P::STEPS);
        let in_place = P::RAW && attrs.padding == [0; 4] && whole && window.side == 1;
        let images = if in_place { batch } else { border.images_per_pass(batch) };
        let map = RowMap {
            width: geometry.out_size[1],
            height: geometry.out_size[0],
            pixel: attrs.stride[1] * window.side * in_channels,
            row: step * border.row,
            image: border.len(),
            start: 0,
        };
        if let Some(blocks) = self.blocks(product, geometry, &window, &border).filter(|_| !in_place)
        {
            // SAFETY: the caller's promise.
            return unsafe {
                self.run_blocks(
                    product, &blocks, &border, map, batch, runs, input, zero_point, epilogue,
                    scratch,
                );
            };
        }
        let len = if in_place { 0 } else { images * border.len() + behind::<P>() };
        let copy = scratch.take::<P::X>(len);
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
                    map: RowMap { start: group * (in_channels / attrs.groups), ..map },
                    runs,
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

    /// Borders and multiplies block by block, each on one thread.
    ///
    /// # Safety
    /// As [`Direct::run`].
    unsafe fn run_blocks<P: Product<W = i8>>(
        &self,
        product: P,
        blocks: &Blocks,
        border: &Bordered,
        map: RowMap,
        batch: usize,
        runs: &[usize],
        input: &[u8],
        zero_point: u8,
        epilogue: &Epilogue,
        mut scratch: Scratch,
    ) {
        let (len, all) = (blocks.len::<P>(border), batch * blocks.count);
        // None are planned for no images.
        let threads = parallel::threads();
        let buffers = blocks.buffers(batch).min(if threads == 1 { 1 } else { usize::MAX });
        parallel::for_each_chunk(scratch.take::<P::X>(buffers * len), len, |buffer, image| {
            for block in all * buffer / buffers..all * (buffer + 1) / buffers {
                let (n, first) = (block / blocks.count, block % blocks.count * blocks.rows);
                let height = blocks.rows.min(map.height - first);
                // Rows of the bordered image.
                let from = first * map.row / border.row;
                let rows = blocks.height.min(border.height - from);
                let part = &mut image[..rows * border.row];
                let from = n * border.height + from;
                border.write_rows(product.isa(), P::encode, input, zero_point, from, part);
                let job = Job::<P> {
                    image,
                    map: RowMap { height, ..map },
                    runs,
                    panels: &self.groups[0],
                    rows: height * map.width,
                    origin: [(n * map.height + first) * map.width, 0],
                };
                // SAFETY: blocks differ in rows; the rest is the caller's promise.
                unsafe { job.run_here(product, epilogue) };
            }
        });
    }
}
