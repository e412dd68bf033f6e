//! Exact integer Winograd convolution for 3×3 windows of stride 1.
//!
//! ```text
//! for each block of tiles:
//!     V[t][tile] = Bᵀ d B                      for each tile: see `input`
//!     for each panel of outputs:
//!         for each stretch of channels, each row of positions:
//!             U[t] = G g Gᵀ                    from bytes: see `filter`
//!             M[tile][t] += V[t][tile] · U[t]  small products: the GEMM tile of gemm::int8
//!         Y[tile] = (AᵀMA · q⁻¹ − 2^{2v}·c) >> 2v  (+ c)   and the epilogue
//! ```
//!
//! Threads take whole blocks, and share the panels of those that do not divide among them: each then makes
//! `V` for itself, which costs less than waiting for another thread to have made it.
//!
//! Lavin and Gray 2016 (arXiv:1509.09308), in integers that may wrap: see [`variant`]. Tiles over the edge of the
//! output have fewer positions: see [`blocks`].

mod blocks;
mod filter;
mod input;
mod transform;
mod variant;

use std::marker::PhantomData;
use std::ops::Range;

use self::blocks::{BLOCK, Block, Blocks, Tile};
use self::filter::{Filters, Transformed};
use self::input::Input;
use self::transform::{input_tile, output_tile};
pub(crate) use self::variant::Variant;
pub(crate) use self::variant::{F2x2, F4x4, F4x4Wide};
use crate::Level;
use crate::conv::ConvGeometry;
use crate::gemm::int8::{
    Copies, Epilogue, Finish, Keep, MAX_LANES, MAX_ROW_STEP, Place, Scratch, Strip,
};
use crate::parallel::{self, Shares};
use crate::shared::Shared;
use crate::simd::dispatch;
use crate::simd::int8::{Int8, Product};

/// Whether this build has the kernels.
pub(crate) const COMPILED: bool = cfg!(feature = "winograd");
/// Instructions of products that a further thread is worth: some 5 µs.
const WORK: usize = 1 << 14;
/// Threads that compute at a time, at most: each needs memory of its own.
const WORKERS: usize = 64;

/// A convolution whose weights are ready to be transformed.
pub(crate) struct Winograd<V> {
    filters: Filters,
    /// The middle of what each output channel can reach, with a vector of zeros behind.
    centres: Vec<i32>,
    variant: PhantomData<V>,
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

    /// Sums of a block of tiles for one panel.
    fn block_sums<I: Int8>(blocks: &Blocks) -> usize {
        blocks.size * Self::POSITIONS * I::Words::VECTORS * I::LANES
    }

    /// Words of transformed filters for each thread.
    fn filters_len<I: Int8>(isa: I, geometry: &ConvGeometry) -> usize {
        Filters::transformed_len::<I, V>(isa, geometry.out_channels, geometry.in_channels)
    }

    /// Bytes for each thread: a block of transformed tiles, transformed filters, sums, a patch.
    fn worker_bytes<I: Int8>(isa: I, geometry: &ConvGeometry, blocks: &Blocks) -> usize {
        Scratch::bytes::<i16>(blocks.len)
            + Scratch::bytes::<i16>(Self::filters_len(isa, geometry))
            + Scratch::bytes::<i32>(Self::block_sums::<I>(blocks))
            + Scratch::bytes::<u8>(Input::patch_len::<V>(blocks.pixel))
    }

    pub(crate) fn scratch_len<I: Int8>(isa: I, geometry: &ConvGeometry) -> usize {
        let blocks = Blocks::largest::<I, V>(geometry);
        let workers = parallel::threads().min(WORKERS);
        Scratch::bytes::<u8>(workers * Self::worker_bytes(isa, geometry, &blocks))
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
        let blocks = Blocks::new::<I, V>(geometry);
        let input = Input::new(geometry, blocks.pixel, input, zero_point);
        // As many as were planned for, though the pool may be another now.
        let bytes = Self::worker_bytes(isa, geometry, &Blocks::largest::<I, V>(geometry));
        let products = [Self::POSITIONS, geometry.in_channels, geometry.out_channels]
            .into_iter()
            .fold(blocks.tiles, usize::saturating_mul);
        let work = products / (I::LANES * I::Words::GROUP);
        let fit = (scratch.room::<u8>() / bytes).min(WORKERS);
        let workers = parallel::threads().min(fit).min(work / WORK).max(1);
        let panels = self.filters.panels();
        let whole = blocks.count - blocks.count % workers;
        let blocks_whole = Shares::new(whole, workers);
        let blocks_shared = Shares::new((blocks.count - whole) * panels, workers);
        parallel::for_each_chunk(scratch.take::<u8>(workers * bytes), bytes, |_, memory| {
            let mut memory = Scratch::new(memory);
            let words = memory.take::<i16>(blocks.len);
            let filters = memory.take(Self::filters_len(isa, geometry));
            let mut filters = Transformed::new(filters, blocks.count > workers);
            let sums = memory.take::<i32>(Self::block_sums::<I>(&blocks));
            let patch = memory.take::<u8>(Input::patch_len::<V>(blocks.pixel));
            let mut transformed: Option<(usize, Block)> = None;
            let thread = parallel::thread();
            loop {
                let (index, panels) = if let Some(block) = blocks_whole.take(thread) {
                    (block, 0..panels)
                } else if let Some(task) = blocks_shared.take(thread) {
                    (whole + task / panels, task % panels..task % panels + 1)
                } else {
                    break;
                };
                let block = match &mut transformed {
                    Some((of, block)) if *of == index => block,
                    other => {
                        let (_, block) = other.insert((index, blocks.block(index)));
                        Self::transform(isa, &input, &blocks, block, patch, words);
                        block
                    }
                };
                for panel in panels {
                    self.products(isa, &blocks, block, words, panel, &mut filters, sums);
                    // SAFETY: tasks differ in tiles or in channels; the rest is the caller's promise.
                    unsafe { self.outputs(isa, geometry, block, panel, sums, epilogue) };
                }
            }
        });
    }

    /// `V` of a block of tiles.
    fn transform<I: Int8>(
        isa: I,
        input: &Input,
        blocks: &Blocks,
        block: &Block,
        patch: &mut [u8],
        words: &mut [i16],
    ) {
        for (i, tile) in block.tiles().iter().enumerate() {
            let codes = input.tile::<V>(tile.place, patch);
            if tile.is_whole::<V>() {
                Self::transform_tile::<I, true>(isa, tile, codes, blocks, i, words);
            } else {
                Self::transform_tile::<I, false>(isa, tile, codes, blocks, i, words);
            }
        }
    }

    /// Place `i` of a block. Whole tiles have code of their own, where the number of points is known.
    #[inline(always)]
    fn transform_tile<I: Int8, const WHOLE: bool>(
        isa: I,
        tile: &Tile,
        (codes, [row, pixel]): input::Codes,
        blocks: &Blocks,
        i: usize,
        words: &mut [i16],
    ) {
        assert!((V::TILE - 1) * (row + pixel) + blocks.pixel <= codes.len());
        assert!((Self::POSITIONS - 1) * blocks.position + (i + 1) * blocks.pixel <= words.len());
        isa.enter(
            #[inline(always)]
            || {
                // A copy that stays in registers: for all the compiler knows, stores change what it is of.
                let position = blocks.position;
                let points = if WHOLE { [V::TILE; 2] } else { tile.points };
                for c in (0..blocks.pixel).step_by(2 * I::LANES) {
                    input_tile::<I, V>(
                        isa,
                        points,
                        // SAFETY: c + 2·LANES ≤ pixel, whole vectors; the last pixel has as many codes
                        // by the assertion.
                        #[inline(always)]
                        |y, x| unsafe {
                            let at = y * row + x * pixel + c;
                            isa.widen_codes(codes.get_unchecked(at..at + 2 * I::LANES))
                        },
                        // SAFETY: as above, of the last position.
                        #[inline(always)]
                        |t, value| unsafe {
                            let at = t * position + i * blocks.pixel + c;
                            isa.store_half(value, words.get_unchecked_mut(at..at + 2 * I::LANES));
                        },
                    );
                }
            },
        );
    }

    /// `M[tile][t][width]` of a block of tiles.
    fn products<I: Int8>(
        &self,
        isa: I,
        blocks: &Blocks,
        block: &Block,
        transformed: &[i16],
        panel: usize,
        filters: &mut Transformed,
        sums: &mut [i32],
    ) {
        let last = block.tiles().len() - 1;
        let rows: [usize; BLOCK + MAX_ROW_STEP] =
            std::array::from_fn(|tile| tile.min(last) * blocks.pixel);
        let stretches = (0..self.filters.stretches()).map(|i| self.filters.stretch(panel, i));
        for (stretch, row) in stretches.flat_map(|stretch| (0..V::TILE).map(move |y| (stretch, y)))
        {
            let filters = self.filters.row::<I, V>(isa, panel, stretch, row, filters);
            let keep = Keep {
                sums: Shared::new(sums),
                stride: Self::POSITIONS * stretch.width,
                add: stretch.channel > 0,
            };
            let start = row * V::TILE;
            for span in block.spans(start..start + V::TILE) {
                let (tiles, first) = (&span.tiles, span.positions.start);
                let strip = Strip::<I::Words> {
                    image: &transformed[first * blocks.position..],
                    rows: &rows[tiles.start..][..tiles.len().next_multiple_of(I::Words::ROW_STEP)],
                    runs: &[stretch.channel],
                    last: last * blocks.pixel + stretch.channel,
                    steps: stretch.steps,
                    panel: &filters[(first - start) * stretch.position..],
                    width: stretch.width,
                    copies: Copies {
                        count: span.positions.len(),
                        image: blocks.position,
                        panel: stretch.position,
                    },
                };
                let place = Place {
                    row: tiles.start,
                    rows: tiles.len(),
                    column: first * stretch.width,
                    columns: stretch.width,
                };
                // SAFETY: `sums` is this call's alone.
                unsafe { strip.multiply(isa.words(), &keep, place) };
            }
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
        block: &Block,
        panel: usize,
        sums: &[i32],
        epilogue: &Epilogue,
    ) {
        let outputs = self.filters.outputs(panel);
        let width = outputs.len().next_multiple_of(I::LANES);
        for (tile, sums) in block.tiles().iter().zip(sums.chunks_exact(Self::POSITIONS * width)) {
            let outputs = outputs.clone();
            // SAFETY: the caller's promise.
            unsafe {
                if tile.is_whole::<V>() {
                    self.output_pixels::<I, true>(isa, geometry, tile, outputs, sums, epilogue);
                } else {
                    self.output_pixels::<I, false>(isa, geometry, tile, outputs, sums, epilogue);
                }
            }
        }
    }

    /// A tile's. Whole ones have code of their own, where the number of points is known.
    ///
    /// # Safety
    /// As [`Winograd::outputs`], for this tile.
    #[inline(always)]
    unsafe fn output_pixels<I: Int8, const WHOLE: bool>(
        &self,
        isa: I,
        geometry: &ConvGeometry,
        tile: &Tile,
        outputs: Range<usize>,
        sums: &[i32],
        epilogue: &Epilogue,
    ) {
        let width = sums.len() / Self::POSITIONS;
        let [out_h, out_w] = geometry.out_size;
        let [n, y, x] = tile.place;
        let (y, x) = (y * V::OUT, x * V::OUT);
        let [rows, pixels] = match WHOLE && V::TRIMMED {
            true => [V::OUT; 2],
            false => [V::OUT.min(out_h - y), V::OUT.min(out_w - x)],
        };
        let pixel = (n * out_h + y) * out_w + x;
        isa.enter(
            #[inline(always)]
            || {
                let points = if WHOLE { [V::TILE; 2] } else { tile.points };
                let raised = V::raised(points);
                for v in (0..width).step_by(I::LANES) {
                    let column = outputs.start + v;
                    let columns = (outputs.end - column).min(I::LANES);
                    let centre = isa.load(&self.centres[column..]);
                    let bias = isa.add(isa.load(&epilogue.bias[column..]), centre);
                    let centre = isa.scale(centre, raised);
                    let y = output_tile::<I, V>(
                        isa,
                        points,
                        // SAFETY: there are `width` sums, whole vectors, of each position.
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
                        let place = Place { row: pixel + i * out_w, rows: pixels, column, columns };
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
