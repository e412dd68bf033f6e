//! From a tile of sums to the output: raw, requantized, or requantized and added to a residual.

use super::tile::Place;
use crate::conv::int8::{AddCodes, Grid};
use crate::shared::Shared;
use crate::simd::int8::Int8;

/// What becomes of a tile of sums.
pub(crate) trait Finish {
    /// What the sums of `NV` vectors of columns start from.
    fn bias<I: Int8, const NV: usize>(&self, isa: I, column: usize) -> [I::Acc; NV];

    /// Whether tiles had better [`ask`](Finish::ask) before they are finished.
    #[inline(always)]
    fn far(&self) -> bool {
        false
    }

    /// Says that the first row of `place`, whole vectors, is about to be finished.
    #[inline(always)]
    fn ask<I: Int8, const NV: usize>(&self, _isa: I, _place: Place) {}

    /// Finishes sums in registers, bias included, that are whole vectors.
    ///
    /// # Safety
    /// While this runs nobody else touches this place of the output.
    unsafe fn whole<I: Int8, const MR: usize, const NV: usize>(
        &self,
        isa: I,
        acc: &[[I::Acc; NV]; MR],
        place: Place,
    );

    /// Finishes sums, bias included, of which some lanes or rows do not exist.
    ///
    /// # Safety
    /// As [`Finish::whole`].
    unsafe fn ragged<I: Int8, const MR: usize, const NV: usize>(
        &self,
        isa: I,
        acc: &[[I::Acc; NV]; MR],
        place: Place,
    );
}

/// The output of a layer. Row-major, `channels` wide.
pub(crate) struct Epilogue<'a> {
    /// Added to the sums, modulo 2³²; at least a vector longer than the channels.
    pub(crate) bias: &'a [i32],
    /// Columns of the output.
    pub(crate) channels: usize,
    /// What is written.
    pub(crate) sink: Sink<'a>,
}

/// Where the sums go.
pub(crate) enum Sink<'a> {
    /// As they are.
    Accumulate(Shared<'a, i32>),
    /// As floats.
    Scale {
        /// What a channel's sums are multiplied with; at least a vector longer than the channels.
        scale: &'a [f32],
        values: Shared<'a, f32>,
    },
    /// As codes.
    Requantize(Codes<'a>),
    /// As codes, to which others are added: they have the output's shape.
    RequantizeAdd(Codes<'a>, &'a AddCodes, &'a [u8]),
}

/// What becomes codes.
pub(crate) struct Codes<'a> {
    /// One a channel; at least a vector longer than the channels.
    pub(crate) multiplier: &'a [f32],
    pub(crate) grid: Grid,
    pub(crate) out: Shared<'a, u8>,
}

impl Finish for Epilogue<'_> {
    #[inline(always)]
    fn bias<I: Int8, const NV: usize>(&self, isa: I, column: usize) -> [I::Acc; NV] {
        let mut bias = [isa.zero(); NV];
        for (v, bias) in bias.iter_mut().enumerate() {
            *bias = isa.load(&self.bias[column + v * I::LANES..]);
        }
        bias
    }

    #[inline(always)]
    fn far(&self) -> bool {
        match &self.sink {
            Sink::Accumulate(out) => out.is_far(),
            Sink::Scale { values, .. } => values.is_far(),
            Sink::Requantize(codes) | Sink::RequantizeAdd(codes, ..) => codes.out.is_far(),
        }
    }

    #[inline(always)]
    fn ask<I: Int8, const NV: usize>(&self, isa: I, place: Place) {
        let (start, len) = (place.row * self.channels + place.column, NV * I::LANES);
        match &self.sink {
            Sink::Accumulate(out) => out.ask(isa, start, len),
            Sink::Scale { values, .. } => values.ask(isa, start, len),
            Sink::Requantize(codes) | Sink::RequantizeAdd(codes, ..) => {
                codes.out.ask(isa, start, len)
            }
        }
    }

    #[inline(always)]
    unsafe fn whole<I: Int8, const MR: usize, const NV: usize>(
        &self,
        isa: I,
        acc: &[[I::Acc; NV]; MR],
        place: Place,
    ) {
        // SAFETY: the caller's promise.
        unsafe { self.groups(isa, place, [1, 0], always(acc)) }
    }

    #[inline(always)]
    unsafe fn ragged<I: Int8, const MR: usize, const NV: usize>(
        &self,
        isa: I,
        acc: &[[I::Acc; NV]; MR],
        place: Place,
    ) {
        let mut sums = [[0; MAX_LANES]; MR];
        for (acc, sums) in acc.iter().zip(&mut sums) {
            for (v, &acc) in acc.iter().enumerate() {
                isa.store(acc, &mut sums[v * I::LANES..]);
            }
        }
        for (i, sums) in sums.iter().take(place.rows).enumerate() {
            // SAFETY: the caller's promise.
            unsafe { self.row(isa, &sums[..place.columns], place.row + i, place.column) };
        }
    }
}

impl Epilogue<'_> {
    /// Finishes groups of `MR` rows, whole vectors each: so many groups, so many rows apart. `sums` are those of a
    /// group, bias included.
    ///
    /// # Safety
    /// As [`Finish::whole`].
    #[inline(always)]
    pub(crate) unsafe fn groups<I: Int8, const MR: usize, const NV: usize>(
        &self,
        isa: I,
        place: Place,
        groups: [usize; 2],
        sums: impl Fn(usize) -> [[I::Acc; NV]; MR],
    ) {
        let (channels, len, count) = (self.channels, NV * I::LANES, groups[0]);
        let [start, apart, reach] = extent(channels, place, MR, len, groups);
        // The groups of each kind have a loop of their own, so that what is derived from the kind is derived once.
        match &self.sink {
            Sink::Accumulate(out) => {
                let out = out.pointer(start, reach);
                for group in 0..count {
                    for (i, acc) in sums(group).iter().enumerate() {
                        // SAFETY: no row reaches further than the last; the caller's promise.
                        let out = unsafe { row(out, group * apart + i * channels, len) };
                        for (v, &acc) in acc.iter().enumerate() {
                            isa.store(acc, &mut out[v * I::LANES..]);
                        }
                    }
                }
            }
            Sink::Scale { scale, values } => {
                let scale = &scale[place.column..][..len];
                let out = values.pointer(start, reach);
                for group in 0..count {
                    for (i, acc) in sums(group).iter().enumerate() {
                        // SAFETY: as above.
                        let out = unsafe { row(out, group * apart + i * channels, len) };
                        for (v, &acc) in acc.iter().enumerate() {
                            let lanes = v * I::LANES..(v + 1) * I::LANES;
                            scaled(isa, acc, &scale[lanes.clone()], &mut out[lanes]);
                        }
                    }
                }
            }
            Sink::Requantize(codes) => {
                // SAFETY: the caller's promise.
                unsafe { codes.groups(isa, channels, place, groups, sums) }
            }
            Sink::RequantizeAdd(Codes { multiplier, grid, out }, add, other) => {
                let (grid, multiplier) = (*grid, &multiplier[place.column..][..len]);
                let out = out.pointer(start, reach);
                let (add, other) = (**add, &other[start..start + reach]);
                for group in 0..count {
                    let (mut acc, first) = (sums(group), group * apart);
                    for (i, codes) in acc.iter_mut().enumerate() {
                        let at = first + i * channels;
                        // SAFETY: as above; the residual has the same rows.
                        let other = unsafe { other.get_unchecked(at..at + len) };
                        for (v, code) in codes.iter_mut().enumerate() {
                            let from = v * I::LANES;
                            *code = isa.requantize(*code, &multiplier[from..], grid);
                            *code = isa.add_codes(*code, &other[from..], &add);
                        }
                    }
                    if let Some(codes) = as_column(&acc) {
                        // SAFETY: as above, of four rows.
                        isa.store_column(codes, unsafe { four_rows(out, first, channels, len) });
                        continue;
                    }
                    for (i, codes) in acc.into_iter().enumerate() {
                        // SAFETY: as above.
                        isa.store_row(codes, unsafe { row(out, first + i * channels, len) });
                    }
                }
            }
        }
    }

    /// The same, from a row and a column of the output on.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn part(&self, row: usize, column: usize) -> Epilogue<'_> {
        let at = row * self.channels + column;
        let sink = match &self.sink {
            Sink::Accumulate(out) => Sink::Accumulate(out.from(at)),
            Sink::Scale { scale, values } => {
                Sink::Scale { scale: &scale[column..], values: values.from(at) }
            }
            Sink::Requantize(codes) => Sink::Requantize(codes.part(at, column)),
            Sink::RequantizeAdd(codes, add, other) => {
                Sink::RequantizeAdd(codes.part(at, column), add, &other[at..])
            }
        };
        Epilogue { bias: &self.bias[column..], channels: self.channels, sink }
    }

    /// Finishes some sums of one row, bias included, from `column` on.
    ///
    /// # Safety
    /// As [`Finish::whole`].
    #[inline(always)]
    unsafe fn row<I: Int8>(&self, isa: I, sums: &[i32], row: usize, column: usize) {
        let at = row * self.channels + column;
        let (codes, add) = match &self.sink {
            Sink::Accumulate(out) => {
                // SAFETY: the caller's promise.
                unsafe { out.slice(at, sums.len()) }.copy_from_slice(sums);
                return;
            }
            Sink::Scale { scale, values } => {
                // SAFETY: the caller's promise.
                let out = unsafe { values.slice(at, sums.len()) };
                for ((out, &sum), scale) in out.iter_mut().zip(sums).zip(&scale[column..]) {
                    *out = sum as f32 * scale;
                }
                return;
            }
            Sink::Requantize(codes) => (codes, None),
            Sink::RequantizeAdd(codes, add, other) => (codes, Some((*add, &other[at..]))),
        };
        // SAFETY: the caller's promise.
        unsafe { codes.row(isa, sums, at, column, add) };
    }
}

impl Codes<'_> {
    /// [`Epilogue::groups`] of an output of so many channels.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    pub(crate) unsafe fn groups<I: Int8, const MR: usize, const NV: usize>(
        &self,
        isa: I,
        channels: usize,
        place: Place,
        groups: [usize; 2],
        sums: impl Fn(usize) -> [[I::Acc; NV]; MR],
    ) {
        let (len, count) = (NV * I::LANES, groups[0]);
        let [start, apart, reach] = extent(channels, place, MR, len, groups);
        let (grid, multiplier) = (self.grid, &self.multiplier[place.column..][..len]);
        let out = self.out.pointer(start, reach);
        for group in 0..count {
            let (acc, first) = (sums(group), group * apart);
            if let Some(acc) = as_column(&acc) {
                // SAFETY: no row reaches further than the last; the caller's promise.
                let out = unsafe { four_rows(out, first, channels, len) };
                isa.requantize_column(acc, multiplier, grid, out);
                continue;
            }
            for (i, acc) in acc.into_iter().enumerate() {
                // SAFETY: as above.
                let out = unsafe { row(out, first + i * channels, len) };
                isa.requantize_row(acc, multiplier, grid, out);
            }
        }
    }

    /// Finishes some sums of one row, bias included, whose codes belong `at` there and are of the channels from
    /// `column` on. They may have others added, from the first on.
    ///
    /// # Safety
    /// As [`Finish::whole`].
    #[inline(always)]
    unsafe fn row<I: Int8>(
        &self,
        isa: I,
        sums: &[i32],
        at: usize,
        column: usize,
        add: Option<(&AddCodes, &[u8])>,
    ) {
        // SAFETY: the caller's promise.
        let out = unsafe { self.out.slice(at, sums.len()) };
        for (v, (sums, out)) in sums.chunks(I::LANES).zip(out.chunks_mut(I::LANES)).enumerate() {
            let (from, len) = (v * I::LANES, sums.len());
            let mut padded = [0; MAX_LANES];
            padded[..len].copy_from_slice(sums);
            let multiplier = &self.multiplier[column + from..];
            let mut codes = isa.requantize(isa.load(&padded), multiplier, self.grid);
            let mut bytes = [0; MAX_LANES];
            if let Some((add, other)) = add {
                bytes[..len].copy_from_slice(&other[from..][..len]);
                codes = isa.add_codes(codes, &bytes, add);
            }
            isa.store_codes(codes, &mut bytes);
            out.copy_from_slice(&bytes[..len]);
        }
    }

    /// The same, from an element and a column of the output on.
    #[cfg(target_arch = "x86_64")]
    fn part(&self, at: usize, column: usize) -> Codes<'_> {
        let multiplier = &self.multiplier[column..];
        Codes { multiplier, grid: self.grid, out: self.out.from(at) }
    }
}

/// In elements of an output of so many channels: where groups of `len` columns of so many rows start, how far they are
/// apart and how far they reach, for one check of all. What lies between rows is not ours.
#[inline(always)]
fn extent(
    channels: usize,
    place: Place,
    rows: usize,
    len: usize,
    [count, apart]: [usize; 2],
) -> [usize; 3] {
    let apart = apart * channels;
    let reach = (count - 1) * apart + (rows - 1) * channels + len;
    [place.row * channels + place.column, apart, reach]
}

/// `len` elements of an output from `at` on.
///
/// # Safety
/// They are there, and nobody else touches them while the slice is alive.
#[inline(always)]
unsafe fn row<'a, T>(out: *mut T, at: usize, len: usize) -> &'a mut [T] {
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts_mut(out.add(at), len) }
}

/// The vectors of a tile that has four rows of one.
#[inline(always)]
fn as_column<T: Copy, const MR: usize, const NV: usize>(tile: &[[T; NV]; MR]) -> Option<[T; 4]> {
    match tile.as_slice() {
        &[a, b, c, d] if NV == 1 => Some([a[0], b[0], c[0], d[0]]),
        _ => None,
    }
}

/// `len` elements of each of four rows of an output, `step` apart, from `at` on.
///
/// # Safety
/// As [`row`].
#[inline(always)]
unsafe fn four_rows<'a, T>(out: *mut T, at: usize, step: usize, len: usize) -> [&'a mut [T]; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        [
            row(out, at, len),
            row(out, at + step, len),
            row(out, at + 2 * step, len),
            row(out, at + 3 * step, len),
        ]
    }
}

/// The same for every group.
#[inline(always)]
fn always<T: Copy>(value: &T) -> impl Fn(usize) -> T {
    #[inline(always)]
    |_| *value
}

/// `acc · scale`, lane by lane.
#[inline(always)]
fn scaled<I: Int8>(isa: I, acc: I::Acc, scale: &[f32], out: &mut [f32]) {
    // A plain loop of the vector's length, which becomes two instructions.
    let mut sums = [0; MAX_LANES];
    isa.store(acc, &mut sums);
    for l in 0..I::LANES {
        out[l] = sums[l] as f32 * scale[l];
    }
}

/// Sums kept for a later step: whole vectors only, row `i` at `i · stride`.
pub(crate) struct Keep<'a> {
    pub(crate) sums: Shared<'a, i32>,
    pub(crate) stride: usize,
    /// Whether they are added to what is there, modulo 2³².
    pub(crate) add: bool,
}

impl Finish for Keep<'_> {
    #[inline(always)]
    fn bias<I: Int8, const NV: usize>(&self, isa: I, _column: usize) -> [I::Acc; NV] {
        [isa.zero(); NV]
    }

    #[inline(always)]
    unsafe fn whole<I: Int8, const MR: usize, const NV: usize>(
        &self,
        isa: I,
        acc: &[[I::Acc; NV]; MR],
        place: Place,
    ) {
        let rows = MR.min(place.rows);
        let start = place.row * self.stride + place.column;
        // SAFETY: the caller's promise.
        let out = unsafe { self.sums.slice(start, (rows - 1) * self.stride + NV * I::LANES) };
        for (i, acc) in acc.iter().enumerate() {
            if i < rows {
                for (v, &acc) in acc.iter().enumerate() {
                    let at = i * self.stride + v * I::LANES;
                    // SAFETY: at most (rows − 1) · stride + (NV − 1) · LANES.
                    let out = unsafe { out.get_unchecked_mut(at..at + I::LANES) };
                    let sum = if self.add { isa.add(acc, isa.load(out)) } else { acc };
                    isa.store(sum, out);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn ragged<I: Int8, const MR: usize, const NV: usize>(
        &self,
        isa: I,
        acc: &[[I::Acc; NV]; MR],
        place: Place,
    ) {
        // SAFETY: the caller's promise.
        unsafe { self.whole(isa, acc, place) }
    }
}

/// No tile has more columns, and no vector more lanes.
pub(crate) const MAX_LANES: usize = 64;
