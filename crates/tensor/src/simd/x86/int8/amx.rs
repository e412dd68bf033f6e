//! Tiles: sixteen rows of 64 codes times sixteen columns of 64 weights in one instruction.
//!
//! A tile of codes is read from the image where it lies: its rows are pixels at one distance from
//! each other. That holds along an image row, and, where the border makes the distance between image
//! rows a multiple of it, along a whole image, if the few pixels between the rows are multiplied too
//! and dropped: see [`Lines`]. The panels are those of [`Quads`], sixteen steps of a vector after the other:
//! tiles of weights, each without gaps.
//!
//! Sums leave the tiles through memory, some rows at a time, into the epilogue of every other product, while
//! the next tiles are multiplied; those that stay `i32` are written where they belong.

mod lines;
mod multiply;

use std::arch::asm;
use std::ops::Range;

use self::lines::{FINISHED, Lines, Tile, Unfinished};
use self::multiply::{Configured, HEIGHT, LANES, LINE, TILE, multiply};
use super::avx512::Quads;
use crate::gemm::int8::{Epilogue, Finish, Job, Place, Sink};
use crate::simd::Isa;
use crate::simd::int8::{Int8, Product};
use crate::simd::x86::Amx;

/// Fewer rows than this are multiplied by vectors: tiles would have to be set up for little work.
const FEWEST: usize = 4;
/// Panels that a tile of rows meets before the next one.
const TOGETHER: usize = 32;

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
    const TOGETHER: usize = TOGETHER;
    const TASK_ROWS: usize = 2 * HEIGHT;

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
        unsafe { self.0.step_of(acc, x, offset, w, TILE) }
    }

    unsafe fn multiply(
        self,
        job: &Job<'_, Self>,
        rows: Range<usize>,
        panels: Range<usize>,
        epilogue: &Epilogue<'_>,
    ) {
        let lines = Lines::new(&job.map, job.rows);
        if rows.len().min(lines.len) < FEWEST || job.panels.len == 0 {
            // SAFETY: the caller's promise.
            return unsafe { job.in_registers(self, rows, panels, epilogue) };
        }
        let run = job.runs.iter().max().unwrap_or(&0) + job.panels.steps * Self::GROUP;
        let reach = run + (lines.height() - 1) * job.map.pixel;
        let block = Block { isa: self.isa(), job, lines, reach, epilogue };
        // The last panel may have one vector.
        let wide = |panel: usize| job.panels.panel_width(panel) == Self::VECTORS * LANES;
        let middle = if wide(panels.end - 1) { panels.end } else { panels.end - 1 };
        self.isa().enter(
            #[inline(always)]
            || {
                // A run shorter than a row of a tile is read no further than it reaches.
                let bytes = if job.panels.steps == Self::STEPS { job.panels.len } else { LINE };
                let _configured = Configured::new(self.isa(), lines.height(), bytes);
                // SAFETY: tiles are configured; the rest is the caller's promise.
                unsafe {
                    match middle - panels.start {
                        0 => {}
                        1 => block.run::<2, 1>(rows.clone(), panels.start..middle),
                        _ => block.run::<2, TOGETHER>(rows.clone(), panels.start..middle),
                    }
                    if middle < panels.end {
                        block.run::<1, 1>(rows, middle..panels.end);
                    }
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

/// Some rows times some panels.
struct Block<'a> {
    isa: Amx,
    job: &'a Job<'a, Tiles>,
    lines: Lines,
    /// How far behind its first a tile reads the image.
    reach: usize,
    epilogue: &'a Epilogue<'a>,
}

impl Block<'_> {
    /// Tile after tile of rows, each with one panel after the other: at least one, at most `MOST`, of `NV`
    /// vectors each.
    ///
    /// # Safety
    /// Tiles are configured for the lines' height. Nobody else touches this place of the output.
    #[inline(always)]
    unsafe fn run<const NV: usize, const MOST: usize>(
        &self,
        rows: Range<usize>,
        panels: Range<usize>,
    ) {
        let Self { job, lines, .. } = self;
        let ((line, mut place), (last_line, last)) =
            (lines.place(rows.start), lines.place(rows.end - 1));
        let mut parts = [const { None }; MOST];
        if MOST == 1 {
            // Written so that the compiler knows that it is always the same.
            parts[0] = Some(self.part(panels.start));
        } else {
            for (part, panel) in parts.iter_mut().zip(panels) {
                *part = Some(self.part(panel));
            }
        }
        let first = parts[0].as_ref().expect("a panel");
        // Sums are multiplied into one of them while those of the other are finished.
        let mut sums = [Sums::ZERO; 2];
        let [mut here, mut there] = sums.each_mut();
        let (mut unfinished, mut earlier) = (Unfinished::NOTHING, first);
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
                    Some(before) => {
                        let tiles = Tiled::new([before, tile], self);
                        for part in parts.iter().flatten() {
                            // SAFETY: the caller's promise.
                            unfinished = unsafe {
                                self.tiles::<2, NV>(&tiles, part, here, unfinished, earlier, there)
                            };
                            (here, there, earlier) = (there, here, part);
                        }
                        None
                    }
                };
            }
            place = 0;
        }
        if let Some(tile) = waiting {
            let tiles = Tiled::new([tile], self);
            for part in parts.iter().flatten() {
                // SAFETY: the caller's promise.
                unfinished =
                    unsafe { self.tiles::<1, NV>(&tiles, part, here, unfinished, earlier, there) };
                (here, there, earlier) = (there, here, part);
            }
        }
        // SAFETY: the caller's promise.
        while unsafe { self.finish_some::<NV>(&mut unfinished, earlier, there) } {}
    }

    /// Multiplies some tiles with a panel into `sums`, and meanwhile finishes what is `unfinished` of the
    /// `earlier` ones: the processor multiplies tiles and vectors at the same time, but looks too
    /// little ahead to find both by itself.
    ///
    /// # Safety
    /// As [`Block::run`].
    #[inline(always)]
    unsafe fn tiles<const R: usize, const NV: usize>(
        &self,
        tiles: &Tiled<R>,
        part: &Part,
        sums: &mut Sums,
        mut unfinished: Unfinished,
        earlier: &Part,
        earlier_sums: &Sums,
    ) -> Unfinished {
        let Job { runs, panels, .. } = self.job;
        let units = panels.steps / Tiles::STEPS;
        let in_place = tiles.in_place.filter(|_| part.columns == NV * LANES);
        let (to, stride) = match in_place {
            Some(out) => (out.wrapping_add(part.first), self.epilogue.channels),
            None => (sums.0.as_mut_ptr(), NV * LANES),
        };
        // Sums that are finished get it there, from registers.
        let bias = in_place
            .map(|_| &part.epilogue.bias[..NV * LANES])
            .filter(|bias| bias.iter().any(|&bias| bias != 0));
        // Where there are few units, more is finished behind each.
        let each = (2 * HEIGHT / FINISHED).div_ceil(runs.len() * units);
        // SAFETY: every place of a tile, each run and all of its steps lie in the image, as `Tiled` has seen; the
        // panel holds a tile of weights for each vector and unit of each run; the sums belong to this task, or to
        // the output's rows and columns that it owns, and the unfinished ones to others of its places.
        unsafe {
            multiply::<R, NV>(
                tiles.starts,
                self.job.map.pixel,
                runs,
                units,
                part.weights,
                bias,
                to,
                stride,
                #[inline(always)]
                || {
                    for _ in 0..each {
                        self.finish_some::<NV>(&mut unfinished, earlier, earlier_sums);
                    }
                },
            );
            while self.finish_some::<NV>(&mut unfinished, earlier, earlier_sums) {}
        }
        if in_place.is_some() {
            Unfinished::NOTHING
        } else {
            Unfinished::new(&tiles.tiles, &self.lines)
        }
    }

    /// A panel and its place.
    #[inline(always)]
    fn part(&self, panel: usize) -> Part<'_> {
        let Job { panels, origin, .. } = self.job;
        let (weights, first) = (panels.panel(panel), panel * panels.width);
        assert!(panels.depth() * panels.panel_width(panel) <= weights.len());
        let columns = (panels.columns - first).min(panels.width);
        let epilogue = self.epilogue.part(origin[0], origin[1] + first);
        Part { weights, first, columns, epilogue }
    }

    /// Finishes a few of the rows of `sums` that are left, and says whether there were any.
    ///
    /// # Safety
    /// As [`Block::run`], for these rows.
    #[inline(always)]
    unsafe fn finish_some<const NV: usize>(
        &self,
        left: &mut Unfinished,
        part: &Part,
        sums: &Sums,
    ) -> bool {
        let Some(at) = left.at() else { return false };
        let stride = NV * LANES;
        let sums = &sums.0[at * stride..][..FINISHED * stride];
        // SAFETY: the caller's promise.
        unsafe {
            if let Some(row) = left.take_all(&self.lines) {
                part.finish::<FINISHED, NV>(self.isa, sums, row);
            } else {
                for sums in sums.chunks_exact(stride) {
                    if let Some(row) = left.take(&self.lines) {
                        part.finish::<1, NV>(self.isa, sums, row);
                    }
                }
            }
        }
        true
    }
}

/// A panel, and its columns of the output: what every tile would look up is looked up once.
struct Part<'a> {
    weights: &'a [i8],
    /// The first column of the product.
    first: usize,
    /// How many columns exist.
    columns: usize,
    /// From the first row of the product and the first column of the panel on.
    epilogue: Epilogue<'a>,
}

impl Part<'_> {
    /// Finishes `MR` rows of sums.
    ///
    /// # Safety
    /// As [`Block::run`], for these rows.
    #[inline(always)]
    unsafe fn finish<const MR: usize, const NV: usize>(&self, isa: Amx, sums: &[i32], row: usize) {
        let sums = &sums[..MR * NV * LANES];
        let mut acc = [self.epilogue.bias::<_, NV>(isa, 0); MR];
        for (i, acc) in acc.iter_mut().enumerate() {
            for (v, acc) in acc.iter_mut().enumerate() {
                *acc = isa.add(*acc, isa.load(&sums[(i * NV + v) * LANES..]));
            }
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

/// Tiles of rows, and what is the same for all panels.
struct Tiled<const R: usize> {
    tiles: [Tile; R],
    /// Where they start in the image.
    starts: [*const u8; R],
    /// Where the tiles themselves may write the sums of the first panel's first row: if they stay `i32`, all rows
    /// exist, and their lines are cache lines.
    in_place: Option<*mut i32>,
}

impl<const R: usize> Tiled<R> {
    #[inline(always)]
    fn new(tiles: [Tile; R], block: &Block) -> Self {
        let Block { job, lines, reach, epilogue, .. } = block;
        for tile in tiles {
            assert!(tile.offset + reach <= job.image.len());
        }
        let starts = tiles.map(|tile| job.image[tile.offset..].as_ptr());
        let in_place = match &epilogue.sink {
            Sink::Accumulate(out) => {
                let first = lines.row(tiles[0].line, tiles[0].from);
                let whole = lines.pitch == lines.width
                    && tiles.iter().enumerate().all(|(t, tile)| {
                        tile.to - tile.from == HEIGHT
                            && lines.row(tile.line, tile.from) == first + t * HEIGHT
                    });
                let start = (job.origin[0] + first) * epilogue.channels + job.origin[1];
                let len = (R * HEIGHT - 1) * epilogue.channels + job.panels.columns;
                let aligned = epilogue.channels.is_multiple_of(LANES);
                (whole && aligned)
                    .then(|| out.pointer(start, len))
                    .filter(|out| (*out as usize).is_multiple_of(LINE))
            }
            Sink::Scale { .. } | Sink::Requantize(_) | Sink::RequantizeAdd(..) => None,
        };
        Self { tiles, starts, in_place }
    }
}

/// Sums of two by two tiles, `[row][column]`.
#[repr(align(64))]
struct Sums([i32; 2 * HEIGHT * 2 * LANES]);

impl Sums {
    const ZERO: Self = Self([0; 2 * HEIGHT * 2 * LANES]);
}
