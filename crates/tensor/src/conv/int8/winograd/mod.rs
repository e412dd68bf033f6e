//! Exact integer Winograd convolution for 3×3 windows of stride 1.
//!
//! ```text
//! for each block of tiles:
//!     V[t][tile] = Bᵀ d B                      for each tile: see `input`
//!     for each panel of outputs:
//!         for each stretch of channels, each row of positions, or all rows of filters that are kept:
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
use self::input::{Input, Pixels};
use self::transform::{input_tile, output_columns, output_rows};
pub(crate) use self::variant::Variant;
pub(crate) use self::variant::{F2x2, F4x4, F4x4Wide};
use crate::Level;
use crate::conv::ConvGeometry;
use crate::gemm::int8::{
    Codes, Copies, Epilogue, Finish, Keep, MAX_LANES, MAX_ROW_STEP, Place, Scratch, Sink, Strip,
};
use crate::parallel::{self, Shares};
use crate::shared::Shared;
use crate::simd::dispatch;
use crate::simd::int8::{Int8, Product};

/// Whether this build has the kernels.
pub(crate) const COMPILED: bool = cfg!(feature = "winograd");
/// Instructions of products that a further thread is worth: some 3 µs.
const WORK: usize = 1 << 13;
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

    /// Sums of a position of a tile for one panel. The last panel may have fewer outputs.
    const fn width<I: Int8>() -> usize {
        I::Words::VECTORS * I::LANES
    }

    /// Sums of a block of tiles for one panel.
    fn block_sums<I: Int8>(blocks: &Blocks) -> usize {
        blocks.size * Self::POSITIONS * Self::width::<I>()
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
        let tiles = block.tiles().iter();
        let mut patch = input.patch(patch);
        isa.enter(
            #[inline(always)]
            || {
                let mut pixels = [std::ptr::null(); 36];
                for (i, tile) in tiles.enumerate() {
                    input.tile::<V>(tile.place, &mut patch, &mut pixels);
                    let words = &mut words[i * blocks.pixel..];
                    // SAFETY: the blocks' pixels are the input's; nobody writes to the patch meanwhile.
                    unsafe {
                        if tile.is_whole::<V>() {
                            Self::transform_tile::<I, true>(isa, tile, &pixels, blocks, words);
                        } else {
                            Self::transform_tile::<I, false>(isa, tile, &pixels, blocks, words);
                        }
                    }
                }
            },
        );
    }

    /// From the first position on. Whole tiles have code of their own, where the number of points is known.
    ///
    /// # Safety
    /// A pixel of the blocks can be read at each of these.
    #[inline(always)]
    unsafe fn transform_tile<I: Int8, const WHOLE: bool>(
        isa: I,
        tile: &Tile,
        pixels: &Pixels,
        blocks: &Blocks,
        words: &mut [i16],
    ) {
        // Copies that stay in registers: for all the compiler knows, stores change what they are of.
        let (channels, position) = (blocks.pixel, blocks.position);
        assert!((Self::POSITIONS - 1) * position + channels <= words.len());
        let points = if WHOLE { [V::TILE; 2] } else { tile.points };
        for c in (0..channels).step_by(2 * I::LANES) {
            input_tile::<I, V>(
                isa,
                points,
                // SAFETY: c + 2·LANES ≤ channels, whole vectors; the caller's promise.
                #[inline(always)]
                |y, x| unsafe {
                    let from = pixels[y * V::TILE + x].add(c);
                    isa.widen_codes(std::slice::from_raw_parts(from, 2 * I::LANES))
                },
                // SAFETY: as above, of the last position.
                #[inline(always)]
                |t, value| unsafe {
                    let at = t * position + c;
                    isa.store_half(value, words.get_unchecked_mut(at..at + 2 * I::LANES));
                },
            );
        }
    }

    /// `M[tile][t]` of a block of tiles.
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
        let mut rows = [last * blocks.pixel; BLOCK + MAX_ROW_STEP];
        for (tile, row) in rows[..last].iter_mut().enumerate() {
            *row = tile * blocks.pixel;
        }
        let stretches = (0..self.filters.stretches()).map(|i| self.filters.stretch(panel, i));
        let together = self.filters.rows_together::<I, V>(filters);
        let rows_of = |stretch| (0..V::TILE).step_by(together).map(move |y| (stretch, y));
        for (stretch, row) in stretches.flat_map(rows_of) {
            let filters =
                self.filters.rows::<I, V>(isa, panel, stretch, row..row + together, filters);
            let keep = Keep {
                sums: Shared::new(sums),
                stride: Self::POSITIONS * Self::width::<I>(),
                add: stretch.channel > 0,
            };
            let start = row * V::TILE;
            for span in block.spans(start..start + together * V::TILE) {
                let (tiles, first) = (&span.tiles, span.positions.start);
                let strip = Strip::<I::Words> {
                    image: &transformed[first * blocks.position..],
                    rows: &rows[tiles.start..][..tiles.len().next_multiple_of(I::Words::ROW_STEP)],
                    runs: &[stretch.channel],
                    last: last * blocks.pixel + stretch.channel,
                    steps: stretch.steps,
                    once: false,
                    panel: &filters[(first - start) * Filters::position::<I>()..],
                    width: stretch.width,
                    copies: Copies {
                        count: span.positions.len(),
                        image: blocks.position,
                        panel: Filters::position::<I>(),
                        columns: Self::width::<I>(),
                    },
                };
                let place = Place {
                    row: tiles.start,
                    rows: tiles.len(),
                    column: first * Self::width::<I>(),
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
        let vectors_whole = outputs.len().is_multiple_of(I::LANES);
        let tiles = block.tiles().iter();
        isa.enter(
            #[inline(always)]
            || {
                for (tile, sums) in
                    tiles.zip(sums.chunks_exact(Self::POSITIONS * Self::width::<I>()))
                {
                    let outputs = outputs.clone();
                    // SAFETY: the caller's promise.
                    unsafe {
                        if tile.is_whole::<V>() && vectors_whole {
                            self.pixels::<I, true>(isa, geometry, tile, outputs, sums, epilogue);
                        } else {
                            self.pixels::<I, false>(isa, geometry, tile, outputs, sums, epilogue);
                        }
                    }
                }
            },
        );
    }

    /// A tile's. Whole ones of whole vectors have code of their own, where the number of points is known.
    ///
    /// # Safety
    /// As [`Winograd::outputs`], for this tile.
    #[inline(always)]
    unsafe fn pixels<I: Int8, const WHOLE: bool>(
        &self,
        isa: I,
        geometry: &ConvGeometry,
        tile: &Tile,
        outputs: Range<usize>,
        sums: &[i32],
        epilogue: &Epilogue,
    ) {
        assert!(sums.len() == Self::POSITIONS * Self::width::<I>());
        let width = outputs.len().next_multiple_of(I::LANES).min(Self::width::<I>());
        let [out_h, out_w] = geometry.out_size;
        let [n, y, x] = tile.place;
        let (y, x) = (y * V::OUT, x * V::OUT);
        // Tiles that are never trimmed may lie over the edge.
        let complete = WHOLE && V::TRIMMED;
        let [rows, pixels] = match complete {
            true => [V::OUT; 2],
            false => [V::OUT.min(out_h - y), V::OUT.min(out_w - x)],
        };
        let points = if WHOLE { [V::TILE; 2] } else { tile.points };
        let raised = V::raised(points);
        for v in (0..width).step_by(I::LANES) {
            let column = outputs.start + v;
            let lanes = if WHOLE { I::LANES } else { (outputs.end - column).min(I::LANES) };
            let row = (n * out_h + y) * out_w + x;
            let place = Place { row, rows: pixels, column, columns: lanes };
            let centre = isa.load(&self.centres[column..]);
            let bias = isa.add(isa.load(&epilogue.bias[column..]), centre);
            let columns = output_columns::<I, V>(
                isa,
                points[0],
                // SAFETY: `v` is a multiple of LANES below the width of each position.
                #[inline(always)]
                |t| unsafe {
                    let at = t * Self::width::<I>() + v;
                    isa.load(sums.get_unchecked(at..at + I::LANES))
                },
                isa.scale(centre, raised),
            );
            let row = output_rows::<I, V>(isa, points[1], columns, bias);
            let finish = Rows { isa, epilogue, place, count: rows, apart: out_w };
            // SAFETY: the caller's promise; a complete tile has `V::OUT` pixels in a row, which is 4 where tiles are trimmed.
            unsafe {
                if complete && let Sink::Requantize(codes) = &epilogue.sink {
                    // Row after row, from the registers that the columns are in.
                    finish.codes(codes, row);
                } else {
                    // Once, not in each of the ways to finish them, some of which loop over rows: what a loop works
                    // with lies in memory, and would be written there for all ways.
                    let rows = [row(0), row(1), row(2), row(3)];
                    finish.run::<V>(
                        #[inline(always)]
                        |y| rows[y],
                    );
                }
            }
        }
    }
}

/// Rows of a tile, a vector of channels of each pixel.
struct Rows<'a, I> {
    isa: I,
    epilogue: &'a Epilogue<'a>,
    /// The first row.
    place: Place,
    count: usize,
    /// Pixels from a row to the next.
    apart: usize,
}

impl<I: Int8> Rows<'_, I> {
    /// # Safety
    /// As [`Winograd::outputs`], for these rows.
    #[inline(always)]
    unsafe fn run<V: Variant>(self, sums: impl Fn(usize) -> [[I::Acc; 1]; 4]) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.place.rows {
                _ if self.place.columns < I::LANES => self.ragged(sums),
                4 if V::OUT == 4 => self.whole::<4>(sums),
                3 if V::OUT == 4 => self.whole::<3>(sums),
                2 => self.whole::<2>(sums),
                _ => self.whole::<1>(sums),
            }
        }
    }

    /// Codes alone, of a tile that has four pixels in each row.
    ///
    /// # Safety
    /// As [`Winograd::outputs`], for these rows, which have four pixels.
    #[inline(always)]
    unsafe fn codes(self, codes: &Codes, sums: impl Fn(usize) -> [[I::Acc; 1]; 4]) {
        debug_assert_eq!(self.place.rows, 4);
        let (channels, groups) = (self.epilogue.channels, [self.count, self.apart]);
        // SAFETY: the caller's promise.
        unsafe { codes.groups(self.isa, channels, self.place, groups, sums) }
    }

    /// # Safety
    /// As [`Winograd::outputs`], for these rows.
    #[inline(always)]
    unsafe fn whole<const PIXELS: usize>(self, sums: impl Fn(usize) -> [[I::Acc; 1]; 4]) {
        let groups = [self.count, self.apart];
        // SAFETY: the caller's promise.
        unsafe {
            self.epilogue.groups(
                self.isa,
                self.place,
                groups,
                #[inline(always)]
                |row| {
                    let row = sums(row);
                    let mut pixels = [row[0]; PIXELS];
                    pixels.copy_from_slice(&row[..PIXELS]);
                    pixels
                },
            );
        }
    }

    /// Of fewer channels than a vector has.
    ///
    /// # Safety
    /// As [`Winograd::outputs`], for these rows.
    #[inline(always)]
    unsafe fn ragged(self, sums: impl Fn(usize) -> [[I::Acc; 1]; 4]) {
        for row in 0..self.count {
            let place = Place { row: self.place.row + row * self.apart, ..self.place };
            // SAFETY: the caller's promise.
            unsafe { self.epilogue.ragged(self.isa, &sums(row), place) };
        }
    }
}
