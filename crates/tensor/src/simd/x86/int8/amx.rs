//! Tiles: sixteen rows of 64 codes times sixteen columns of 64 weights in one instruction.
//!
//! A tile of codes is read from the image where it lies: its rows are pixels at one distance from
//! each other. That holds along an image row, and, where the border makes the distance between image
//! rows a multiple of it, along a whole image, if the few pixels between the rows are multiplied too
//! and dropped: see [`Lines`]. The panels are those of [`Quads`], whose memory order is a tile's.
//!
//! Sums leave the tiles through memory, some rows at a time, into the epilogue of every other product, while
//! the next tiles are multiplied; those that stay `i32` are written where they belong.

mod lines;
mod multiply;

use std::arch::asm;
use std::arch::x86_64::{_mm_sfence, _mm512_stream_si512};
use std::ops::Range;

use self::lines::{FINISHED, Lines, Tile, Unfinished};
use self::multiply::{Configured, HEIGHT, LANES, LINE, multiply};
use super::avx512::Quads;
use crate::gemm::int8::{Epilogue, Finish, Job, Place, Sink};
use crate::simd::Isa;
use crate::simd::int8::{Int8, Product};
use crate::simd::x86::Amx;

/// Fewer rows than this are multiplied by vectors: tiles would have to be set up for little work.
const FEWEST: usize = 4;
/// The sums of a matrix product that has so many go past the caches: nobody would find all of them there
/// later, and their lines need not be fetched before they are written. (Those of a convolution are
/// training's, which reads them at once.)
const STREAMED: usize = 1 << 18;

/// `tdpbusd` on raw codes.
#[derive(Clone, Copy, Debug)]
pub struct Tiles(Quads<Amx>);

impl Tiles {
    #[inline(always)]
    pub(super) fn new(isa: Amx) -> Self {
        Self(Quads::new(isa))
    }
}

impl Product for Tiles {
    type Isa = Amx;
    type X = u8;
    type W = i8;
    const GROUP: usize = 4;
    const RAW: bool = true;
    const ROWS: usize = Quads::<Amx>::ROWS;
    // Four tiles of sums, two of codes, two of weights: all there are.
    const VECTORS: usize = 2;
    const STEPS: usize = LINE / 4;
    // Some twenty microseconds: of a larger block the rows would not stay in the L2 cache.
    const TASK: usize = 1 << 24;

    #[inline(always)]
    fn isa(self) -> Amx {
        self.0.isa()
    }
    #[inline(always)]
    fn encode(x: u8, zero: u8) -> u8 {
        Quads::<Amx>::encode(x, zero)
    }
    #[inline(always)]
    fn excess(zero: u8) -> i32 {
        Quads::<Amx>::excess(zero)
    }
    #[inline(always)]
    fn spin(self, acc: <Amx as Int8>::Acc) -> <Amx as Int8>::Acc {
        self.0.spin(acc)
    }
    #[inline(always)]
    unsafe fn step<const MR: usize, const NV: usize>(
        self,
        acc: &mut [[<Amx as Int8>::Acc; NV]; MR],
        x: &[*const u8; MR],
        offset: usize,
        w: *const i8,
    ) {
        // SAFETY: the caller's promise.
        unsafe { self.0.step(acc, x, offset, w) }
    }

    unsafe fn multiply(
        self,
        job: &Job<'_, Self>,
        rows: Range<usize>,
        panel: usize,
        epilogue: &Epilogue<'_>,
    ) {
        let lines = Lines::new(&job.map, job.rows);
        if rows.len().min(lines.len) < FEWEST || job.panels.steps == 0 {
            // SAFETY: the caller's promise.
            return unsafe { job.in_registers(self, rows, panel, epilogue) };
        }
        let run = job.runs.iter().max().unwrap_or(&0) + job.panels.steps * Self::GROUP;
        let reach = run + (lines.height() - 1) * job.map.pixel;
        let weights = job.panels.panel(panel);
        assert!(job.panels.depth() * job.panels.panel_width(panel) <= weights.len());
        let streams = match &epilogue.sink {
            Sink::Accumulate(out) => {
                job.map.height == 1
                    && out.is_large(STREAMED, LINE)
                    && epilogue.channels.is_multiple_of(LANES)
                    && job.origin[1].is_multiple_of(LANES)
                    && job.panels.columns.is_multiple_of(LANES)
            }
            Sink::Scale { .. } | Sink::Requantize { .. } => false,
        };
        let first = panel * job.panels.width;
        let columns = (job.panels.columns - first).min(job.panels.panel_width(panel));
        // What every row would look up is looked up once.
        let epilogue = epilogue.part(job.origin[0], first + job.origin[1]);
        let block =
            Block { isa: self.isa(), job, lines, weights, reach, streams, columns, epilogue };
        self.isa().enter(
            #[inline(always)]
            || {
                // A run shorter than a row of a tile is read no further than it reaches.
                let bytes = if job.panels.steps == Self::STEPS { job.panels.len } else { LINE };
                let _configured = Configured::new(self.isa(), lines.height(), bytes);
                match job.panels.panel_width(panel) / LANES {
                    // SAFETY: tiles are configured; the rest is the caller's promise.
                    1 => unsafe { block.run::<1>(rows) },
                    // SAFETY: as above.
                    2 => unsafe { block.run::<2>(rows) },
                    vectors => unreachable!("a panel of {vectors} vectors"),
                }
            },
        );
    }

    fn limit(self, steps: usize) -> u64 {
        let _configured = Configured::new(self.isa(), HEIGHT, LINE);
        for _ in 0..steps {
            // SAFETY: the token proves the instructions, and tiles are configured.
            unsafe {
                asm!(
                    "tdpbusd tmm0, tmm4, tmm6",
                    "tdpbusd tmm1, tmm4, tmm7",
                    "tdpbusd tmm2, tmm5, tmm6",
                    "tdpbusd tmm3, tmm5, tmm7",
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    options(nomem, nostack, preserves_flags)
                );
            }
        }
        (steps * 4 * HEIGHT * LANES * LINE) as u64
    }
}

/// Some rows times a panel.
struct Block<'a> {
    isa: Amx,
    job: &'a Job<'a, Tiles>,
    lines: Lines,
    weights: &'a [i8],
    /// How far behind its first a tile reads the image.
    reach: usize,
    /// Whether the sums go past the caches.
    streams: bool,
    /// How many of the panel's columns exist.
    columns: usize,
    /// From the first row of the product and the first column of the panel on.
    epilogue: Epilogue<'a>,
}

impl Block<'_> {
    /// # Safety
    /// Tiles are configured for the lines' height. Nobody else touches this place of the output.
    #[inline(always)]
    unsafe fn run<const NV: usize>(&self, rows: Range<usize>) {
        let Self { job, lines, .. } = self;
        // What sums start from that the tiles themselves write.
        let mut bias = [0; 2 * LANES];
        let vectors = self.epilogue.bias::<_, NV>(self.isa, 0);
        for (v, vector) in vectors.into_iter().enumerate() {
            self.isa.store(vector, &mut bias[v * LANES..]);
        }
        let ((line, mut place), (last_line, last)) =
            (lines.place(rows.start), lines.place(rows.end - 1));
        // Sums are multiplied into one of them while those of the other are finished.
        let mut sums = [Sums::ZERO; 2];
        let [mut here, mut there] = sums.each_mut();
        let mut unfinished = Unfinished::NOTHING;
        let mut waiting = None;
        for line in line..=last_line {
            let end = if line == last_line { last + 1 } else { lines.len };
            let start = lines.start(&job.map, line);
            while place < end {
                let first = place.min(lines.len - lines.height());
                let to = end.min(first + lines.height());
                let offset = start + first * job.map.pixel;
                let tile = Tile { offset, line, first, from: place, to };
                place = to;
                waiting = match waiting {
                    None => Some(tile),
                    Some(earlier) => {
                        let tiles = [earlier, tile];
                        // SAFETY: the caller's promise.
                        unfinished =
                            unsafe { self.tiles::<2, NV>(tiles, &bias, here, unfinished, there) };
                        (here, there) = (there, here);
                        None
                    }
                };
            }
            place = 0;
        }
        // SAFETY: the caller's promise.
        unsafe {
            if let Some(tile) = waiting {
                unfinished = self.tiles::<1, NV>([tile], &bias, here, unfinished, there);
                there = here;
            }
            while self.finish_some::<NV>(&mut unfinished, there) {}
        }
        if self.streams {
            // SAFETY: every CPU with tiles has it. Other threads see the sums when they see what follows.
            unsafe { _mm_sfence() };
        }
    }

    /// Multiplies some tiles into `sums`, and meanwhile finishes what is `unfinished` of the
    /// `earlier` ones: the processor multiplies tiles and vectors at the same time, but looks too
    /// little ahead to find both by itself.
    ///
    /// # Safety
    /// As [`Block::run`].
    #[inline(always)]
    unsafe fn tiles<const R: usize, const NV: usize>(
        &self,
        tiles: [Tile; R],
        bias: &[i32; 2 * LANES],
        sums: &mut Sums,
        mut unfinished: Unfinished,
        earlier: &Sums,
    ) -> Unfinished {
        let Self { job, lines, .. } = self;
        let units = job.panels.steps / Tiles::STEPS;
        for tile in tiles {
            assert!(tile.offset + self.reach <= job.image.len());
        }
        let (x, pixel) = (tiles.map(|tile| job.image[tile.offset..].as_ptr()), job.map.pixel);
        // SAFETY: the caller's promise.
        let in_place = unsafe { self.in_place::<R, NV>(&tiles) }.filter(|_| !self.streams);
        let (to, stride) = in_place.unwrap_or((sums.0.as_mut_ptr(), NV * LANES));
        // Where there are few units, more is finished behind each.
        let each = (2 * HEIGHT / FINISHED).div_ceil(job.runs.len() * units);
        // SAFETY: every place of a tile, each run and all of its steps lie in the image, as `reach` says; the panel holds a tile of weights for each vector and unit of each run; the sums
        // belong to this task, or to the output's rows and columns that it owns, and the unfinished
        // ones to others of its rows.
        unsafe {
            multiply::<R, NV>(
                x,
                pixel,
                job.runs,
                units,
                self.weights,
                // Sums that are finished get it there, from registers.
                in_place.is_some().then_some(bias),
                to,
                stride,
                #[inline(always)]
                || {
                    for _ in 0..each {
                        self.finish_some::<NV>(&mut unfinished, earlier);
                    }
                },
            );
            while self.finish_some::<NV>(&mut unfinished, earlier) {}
        }
        if in_place.is_some() { Unfinished::NOTHING } else { Unfinished::new(&tiles, lines) }
    }

    /// Where the sums may be written by the tiles themselves, and the elements of an output row: if
    /// they stay `i32`, all belong to rows and columns that exist, and their lines are cache lines.
    ///
    /// # Safety
    /// As [`Block::run`].
    #[inline(always)]
    unsafe fn in_place<const R: usize, const NV: usize>(
        &self,
        tiles: &[Tile; R],
    ) -> Option<(*mut i32, usize)> {
        let Sink::Accumulate(out) = &self.epilogue.sink else { return None };
        let (lines, stride) = (&self.lines, self.epilogue.channels);
        let first = lines.row(tiles[0].line, tiles[0].from);
        let whole = tiles.iter().enumerate().all(|(t, tile)| {
            tile.to - tile.from == HEIGHT && lines.row(tile.line, tile.from) == first + t * HEIGHT
        });
        if !whole || lines.pitch != lines.width || self.columns != NV * LANES {
            return None;
        }
        let start = first * stride;
        let out = out.pointer(start, (R * HEIGHT - 1) * stride + NV * LANES);
        let aligned = (out as usize).is_multiple_of(LINE) && stride.is_multiple_of(LANES);
        aligned.then_some((out, stride))
    }

    /// Finishes a few of the rows of `sums` that are left, and says whether there were any.
    ///
    /// # Safety
    /// As [`Block::run`], for these rows.
    #[inline(always)]
    unsafe fn finish_some<const NV: usize>(&self, left: &mut Unfinished, sums: &Sums) -> bool {
        let Some(at) = left.at() else { return false };
        let stride = NV * LANES;
        let sums = &sums.0[at * stride..][..FINISHED * stride];
        // SAFETY: the caller's promise.
        unsafe {
            if let Some(row) = left.take_all(&self.lines) {
                self.finish_rows::<FINISHED, NV>(sums, row);
            } else {
                for sums in sums.chunks_exact(stride) {
                    if let Some(row) = left.take(&self.lines) {
                        self.finish_rows::<1, NV>(sums, row);
                    }
                }
            }
        }
        true
    }

    /// # Safety
    /// As [`Block::run`], for these rows.
    #[inline(always)]
    unsafe fn finish_rows<const MR: usize, const NV: usize>(&self, sums: &[i32], row: usize) {
        let isa = self.isa;
        let sums = &sums[..MR * NV * LANES];
        let mut acc = [self.epilogue.bias::<_, NV>(isa, 0); MR];
        for (i, acc) in acc.iter_mut().enumerate() {
            for (v, acc) in acc.iter_mut().enumerate() {
                *acc = isa.add(*acc, isa.load(&sums[(i * NV + v) * LANES..]));
            }
        }
        if let (true, Sink::Accumulate(out)) = (self.streams, &self.epilogue.sink) {
            for (i, acc) in acc.iter().enumerate() {
                let at = (row + i) * self.epilogue.channels;
                // SAFETY: the caller's promise; a vector is a line, and `streams` says that all begin at one.
                unsafe {
                    let out = out.slice(at, NV * LANES);
                    for (v, &acc) in acc.iter().enumerate() {
                        _mm512_stream_si512(out.as_mut_ptr().add(v * LANES).cast(), acc);
                    }
                }
            }
            return;
        }
        let place = Place { row, rows: MR, column: 0, columns: self.columns };
        // SAFETY: the caller's promise.
        unsafe {
            if place.columns == NV * LANES {
                self.epilogue.whole(isa, &acc, place);
            } else {
                self.epilogue.ragged(isa, &acc, place);
            }
        }
    }
}

/// Sums of two by two tiles, `[row][column]`.
#[repr(align(64))]
struct Sums([i32; 2 * HEIGHT * 2 * LANES]);

impl Sums {
    const ZERO: Self = Self([0; 2 * HEIGHT * 2 * LANES]);
}
