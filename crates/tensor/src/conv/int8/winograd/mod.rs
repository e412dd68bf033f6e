//! Exact integer Winograd convolution for 3×3 windows of stride 1.
//!
//! ```text
//! for each wave of blocks of tiles:
//!     V[block][t][tile] = Bᵀ d B               for each tile of the wave
//!     for each block and panel of outputs:     the tasks
//!         for each stretch of channels:
//!             U[t] = G g Gᵀ                    from bytes: see `filter`
//!             M[tile][t] += V[t][tile] · U[t]  t small products: the GEMM tile of gemm::int8
//!         Y[tile] = (AᵀMA · q⁻¹ − 2^{2v}·c) >> 2v  (+ c)   and the epilogue
//! ```
//!
//! Lavin and Gray 2016 (arXiv:1509.09308), in integers that may wrap: see [`variant`].

mod filter;
mod transform;
mod variant;

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use self::filter::Filters;
use self::transform::{input_tile, output_tile};
pub(crate) use self::variant::Variant;
pub(crate) use self::variant::{F2x2, F4x4, F4x4Wide};
use super::image::Bordered;
use crate::conv::ConvGeometry;
use crate::gemm::int8::{Copies, Epilogue, Finish, Keep, MAX_LANES, Place, Scratch, Shared, Strip};
use crate::simd::dispatch;
use crate::simd::int8::{Int8, Product};
use crate::{Level, parallel};

/// Whether this build has the kernels.
pub(crate) const COMPILED: bool = cfg!(feature = "winograd");
/// Most tiles of a block. Filters are transformed once for each block: the more tiles the better.
const BLOCK: usize = 48; // a multiple of every ROW_STEP
/// Fewest tiles that many tiles are cut into blocks of.
const LEAST_BLOCK: usize = 24;
/// Bytes of transformed input that a block should stay below: half of a usual L2 cache.
const BLOCK_BYTES: usize = 240 << 10;
/// Tiles that a task transforms.
const TRANSFORM: usize = 8;
/// Products that a further thread is worth: some 15 µs of them.
const WORK: usize = 1 << 20;
/// Threads that compute at a time, at most: each needs memory of its own.
const WORKERS: usize = 64;

/// A convolution whose weights are ready to be transformed.
pub(crate) struct Winograd<V> {
    filters: Filters,
    /// The middle of what each output channel can reach, with a vector of zeros behind.
    centres: Vec<i32>,
    variant: PhantomData<V>,
}

/// How a geometry is cut: everything that follows from shapes.
struct Plan {
    border: Bordered,
    /// Rows and columns of tiles in an image.
    tiles: [usize; 2],
    images_per_pass: usize,
}

/// How the tiles of a pass lie in memory: `[block][position][tile][channel]`.
#[derive(Clone, Copy)]
struct Blocks {
    /// Tiles of the pass.
    tiles: usize,
    /// Tiles of a block; the last may have fewer.
    size: usize,
    /// Blocks of the pass.
    count: usize,
    /// Words of a tile: channels, padded to whole vectors.
    pixel: usize,
    /// Words of a position: a cache line more than its tiles, so that positions do not fall on the
    /// same cache sets.
    position: usize,
    /// Words of a block.
    len: usize,
}

impl Blocks {
    /// Even blocks.
    fn new(plan: &Plan, images: usize, positions: usize) -> Self {
        let largest = Self::largest(plan, images, positions);
        Self::of(plan, images, positions, largest.tiles.div_ceil(largest.count))
    }

    /// Blocks as large as those of any number of images up to this one: what memory is planned for.
    /// Even blocks of fewer tiles may be larger ones: 49 tiles are 2 of 25, 48 are 1 of 48.
    fn largest(plan: &Plan, images: usize, positions: usize) -> Self {
        let fit = BLOCK_BYTES / (positions * plan.border.pixel * size_of::<i16>()).max(1);
        Self::of(plan, images, positions, fit.clamp(LEAST_BLOCK, BLOCK))
    }

    fn of(plan: &Plan, images: usize, positions: usize, size: usize) -> Self {
        let tiles = images * plan.tiles[0] * plan.tiles[1];
        let size = size.min(tiles);
        let pixel = plan.border.pixel;
        let position = size * pixel + 64 / size_of::<i16>();
        Self {
            tiles,
            size,
            count: tiles.div_ceil(size),
            pixel,
            position,
            len: position * positions,
        }
    }

    /// The tiles of block `index`.
    fn range(&self, index: usize) -> Range<usize> {
        index * self.size..((index + 1) * self.size).min(self.tiles)
    }
}

impl<V: Variant> Winograd<V> {
    const POSITIONS: usize = V::TILE * V::TILE;

    pub(crate) fn new(level: Level, weights: &[i8], shape: [usize; 4]) -> Self {
        // What follows is not compiled then.
        if !COMPILED {
            unreachable!("the caller asks first");
        }
        let [outputs, channels, ..] = shape;
        let filters = dispatch!(level, isa => Filters::new(isa, weights, shape));
        let mut centres = vec![0; outputs + MAX_LANES];
        for (centre, filter) in centres.iter_mut().zip(weights.chunks_exact((channels * 9).max(1)))
        {
            // Codes lie in 0..=255, so Σxw has its middle at 127.5·Σw.
            let sum: i64 = filter.iter().map(|&w| i64::from(w)).sum();
            *centre = ((255 * sum) >> 1) as i32;
        }
        Self { filters, centres, variant: PhantomData }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.filters.bytes()
    }

    fn plan<I: Int8>(_isa: I, geometry: &ConvGeometry) -> Plan {
        let tiles = geometry.out_size.map(|size| size.div_ceil(V::OUT));
        let covered = tiles.map(|tiles| (tiles - 1) * V::OUT + V::TILE);
        let border = Bordered::at_least(geometry, covered, 2 * I::LANES);
        Plan { border, tiles, images_per_pass: border.images_per_pass(geometry.batch) }
    }

    /// Sums of a block of tiles for one panel.
    fn block_sums<I: Int8>(blocks: &Blocks) -> usize {
        blocks.size * Self::POSITIONS * I::Words::VECTORS * I::LANES
    }

    /// Bytes that a thread needs for transformed filters and sums.
    fn task_bytes<I: Int8>(isa: I, geometry: &ConvGeometry, blocks: &Blocks) -> usize {
        Scratch::bytes::<i16>(Filters::transformed_len::<I, V>(isa, geometry.in_channels))
            + Scratch::bytes::<i32>(Self::block_sums::<I>(blocks))
    }

    /// Bytes for each thread: those of its tasks, and a block of transformed tiles.
    fn worker_bytes<I: Int8>(isa: I, geometry: &ConvGeometry, blocks: &Blocks) -> usize {
        Self::task_bytes(isa, geometry, blocks) + Scratch::bytes::<i16>(blocks.len)
    }

    pub(crate) fn scratch_len<I: Int8>(isa: I, geometry: &ConvGeometry) -> usize {
        let plan = Self::plan(isa, geometry);
        let blocks = Blocks::largest(&plan, plan.images_per_pass, Self::POSITIONS);
        Scratch::bytes::<u8>(plan.images_per_pass * plan.border.len())
            + parallel::threads().min(WORKERS) * Self::worker_bytes(isa, geometry, &blocks)
    }

    /// The epilogue's bias is that of raw sums; the centre of each channel joins it here.
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
        if !COMPILED {
            unreachable!("there is none in this build");
        }
        let plan = Self::plan(isa, geometry);
        let images = plan.images_per_pass;
        let largest = Blocks::largest(&plan, images, Self::POSITIONS);
        let image = scratch.take::<u8>(images * plan.border.len());
        // As many as were planned for, though the pool may be another now.
        let fit = scratch.left() / Self::worker_bytes(isa, geometry, &largest);
        let pass = largest.tiles * Self::POSITIONS * geometry.in_channels * geometry.out_channels;
        let workers = parallel::threads().min(WORKERS).min(fit).min(pass / WORK).max(1);
        let filter_len = Filters::transformed_len::<I, V>(isa, geometry.in_channels);
        let transformed = scratch.take::<i16>(workers * largest.len);
        let task_bytes = Self::task_bytes(isa, geometry, &largest);
        let memory = scratch.take::<u8>(workers * task_bytes);
        let in_len = geometry.in_size[0] * geometry.in_size[1] * geometry.in_channels;
        for first in (0..geometry.batch).step_by(images) {
            let images = images.min(geometry.batch - first);
            let blocks = Blocks::new(&plan, images, Self::POSITIONS);
            let image = &mut image[..images * plan.border.len()];
            let input = &input[first * in_len..(first + images) * in_len];
            plan.border.write(isa, |code, _| code, input, zero_point, image);
            for wave in (0..blocks.count).step_by(workers) {
                let wave = wave..blocks.count.min(wave + workers);
                let tiles = (wave.clone(), workers);
                Self::transform(isa, &plan, &blocks, tiles, image, transformed);
                let tasks = wave.len() * self.filters.panels();
                let next = AtomicUsize::new(0);
                parallel::for_each_chunk(memory, task_bytes, |_, memory| {
                    let mut memory = Scratch::new(memory);
                    let filters = memory.take::<i16>(filter_len);
                    let sums = memory.take::<i32>(Self::block_sums::<I>(&largest));
                    loop {
                        let task = next.fetch_add(1, Ordering::Relaxed);
                        if task >= tasks {
                            break;
                        }
                        let panels = self.filters.panels();
                        let (index, panel) = (task / panels, task % panels);
                        let tiles = blocks.range(wave.start + index);
                        let words = &transformed[index * blocks.len..][..blocks.len];
                        self.products(isa, &blocks, words, tiles.len(), panel, filters, sums);
                        // SAFETY: tasks differ in tiles or in channels, waves and passes follow each
                        // other; the rest is the caller's promise.
                        unsafe {
                            self.outputs(isa, geometry, &plan, first, tiles, panel, sums, epilogue);
                        }
                    }
                });
            }
        }
    }

    /// `V` of the blocks of a wave, for so many threads.
    fn transform<I: Int8>(
        isa: I,
        plan: &Plan,
        blocks: &Blocks,
        (wave, workers): (Range<usize>, usize),
        image: &[u8],
        transformed: &mut [i16],
    ) {
        let [tiles_y, tiles_x] = plan.tiles;
        let strides = [plan.border.row, plan.border.pixel];
        let first = wave.start * blocks.size;
        let tiles = blocks.range(wave.end - 1).end - first;
        let out = Shared::new(transformed);
        // Too little work to share is one task.
        let share = if workers == 1 { tiles } else { TRANSFORM };
        parallel::for_each(tiles.div_ceil(share), |task| {
            for i in task * share..tiles.min((task + 1) * share) {
                let tile = first + i;
                let (n, y, x) =
                    (tile / tiles_x / tiles_y, tile / tiles_x % tiles_y, tile % tiles_x);
                let start =
                    n * plan.border.len() + y * V::OUT * strides[0] + x * V::OUT * strides[1];
                let last = (V::TILE - 1) * (strides[0] + strides[1]) + strides[1];
                let codes = &image[start..start + last];
                let at = i / blocks.size * blocks.len + i % blocks.size * blocks.pixel;
                isa.enter(
                    #[inline(always)]
                    || {
                        for c in (0..blocks.pixel).step_by(2 * I::LANES) {
                            input_tile::<I, V>(
                                isa,
                                // SAFETY: c + 2·LANES ≤ pixel, whole vectors, and the tile's last pixel
                                // ends at `last`.
                                #[inline(always)]
                                |y, x| unsafe {
                                    let at = y * strides[0] + x * strides[1] + c;
                                    isa.widen_codes(codes.get_unchecked(at..at + 2 * I::LANES))
                                },
                                // SAFETY: a tile's channels of a position are written by its task alone.
                                #[inline(always)]
                                |t, value| unsafe {
                                    let at = at + t * blocks.position + c;
                                    isa.store_half(value, out.slice(at, 2 * I::LANES));
                                },
                            );
                        }
                    },
                );
            }
        });
    }

    /// `M[tile][t][width]` of a block of tiles.
    fn products<I: Int8>(
        &self,
        isa: I,
        blocks: &Blocks,
        transformed: &[i16],
        tiles: usize,
        panel: usize,
        filters: &mut [i16],
        sums: &mut [i32],
    ) {
        let rows: [usize; BLOCK] = std::array::from_fn(|i| i.min(tiles - 1) * blocks.pixel);
        for index in 0..self.filters.stretches() {
            let stretch = self.filters.stretch(panel, index);
            self.filters.transform::<I, V>(isa, panel, stretch, filters);
            let strip = Strip::<I::Words> {
                image: transformed,
                rows: &rows[..tiles.next_multiple_of(I::Words::ROW_STEP)],
                runs: &[stretch.channel],
                last: (tiles - 1) * blocks.pixel + stretch.channel,
                steps: stretch.steps,
                panel: filters,
                width: stretch.width,
                copies: Copies {
                    count: Self::POSITIONS,
                    image: blocks.position,
                    panel: stretch.position,
                },
            };
            let keep = Keep {
                sums: Shared::new(sums),
                stride: Self::POSITIONS * stretch.width,
                add: stretch.channel > 0,
            };
            let place = Place { row: 0, rows: tiles, column: 0, columns: stretch.width };
            // SAFETY: `sums` is this call's alone.
            unsafe { strip.multiply(isa.words(), &keep, place) };
        }
    }

    /// Output transform and epilogue of a block of tiles.
    ///
    /// # Safety
    /// As [`Winograd::run`], for these tiles and the panel's channels.
    unsafe fn outputs<I: Int8>(
        &self,
        isa: I,
        geometry: &ConvGeometry,
        plan: &Plan,
        first: usize,
        block: Range<usize>,
        panel: usize,
        sums: &[i32],
        epilogue: &Epilogue,
    ) {
        let outputs = self.filters.outputs(panel);
        let width = outputs.len().next_multiple_of(I::LANES);
        let [out_h, out_w] = geometry.out_size;
        let [tiles_y, tiles_x] = plan.tiles;
        for (tile, sums) in block.zip(sums.chunks_exact(Self::POSITIONS * width)) {
            let (n, y, x) = (tile / tiles_x / tiles_y, tile / tiles_x % tiles_y, tile % tiles_x);
            let (y, x) = (y * V::OUT, x * V::OUT);
            let rows = V::OUT.min(out_h - y);
            let pixels = V::OUT.min(out_w - x);
            let pixel = ((first + n) * out_h + y) * out_w + x;
            isa.enter(
                #[inline(always)]
                || {
                    for v in (0..width).step_by(I::LANES) {
                        let column = outputs.start + v;
                        let columns = (outputs.end - column).min(I::LANES);
                        let centre = isa.load(&self.centres[column..]);
                        let bias = isa.add(isa.load(&epilogue.bias[column..]), centre);
                        let centre = isa.scale(centre, 1 << V::SHIFT);
                        let y = output_tile::<I, V>(
                            isa,
                            // SAFETY: the chunk holds `width` sums, whole vectors, of each position.
                            #[inline(always)]
                            |t| unsafe {
                                let at = t * width + v;
                                isa.load(sums.get_unchecked(at..at + I::LANES))
                            },
                            centre,
                            bias,
                        );
                        for (i, row) in y.iter().enumerate().take(rows) {
                            let [a, b, c, d] = row.map(|sums| [sums]);
                            let place =
                                Place { row: pixel + i * out_w, rows: pixels, column, columns };
                            // SAFETY: the caller's promise.
                            unsafe {
                                match pixels {
                                    _ if columns < I::LANES => {
                                        epilogue.ragged(isa, &[a, b, c, d], place);
                                    }
                                    4 => epilogue.whole(isa, &[a, b, c, d], place),
                                    3 => epilogue.whole(isa, &[a, b, c], place),
                                    2 => epilogue.whole(isa, &[a, b], place),
                                    _ => epilogue.whole(isa, &[a], place),
                                }
                            }
                        }
                    }
                },
            );
        }
    }
}
