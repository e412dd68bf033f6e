//! Which rows of a product a tile holds, and where they lie in the image.

use super::multiply::HEIGHT;
use crate::gemm::int8::RowMap;

/// The pixels of a product's rows in stretches at one distance: image rows, images, or all of them.
///
/// A place in a line is a row of the product if it is below `width` modulo `pitch`; what lies between
/// is multiplied, but belongs to nobody.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lines {
    /// Places of a line.
    pub(super) len: usize,
    /// Rows of the product in a line.
    rows: usize,
    /// Of each `pitch` places, so many are rows.
    pub(super) width: usize,
    pub(super) pitch: usize,
    /// Lines of an image, if a line is no longer than one.
    per_image: usize,
}

impl Lines {
    pub(super) fn new(map: &RowMap, rows: usize) -> Self {
        let width = map.width.min(rows);
        let image = width.saturating_mul(map.height);
        let pitch = if map.height == 1 { width } else { map.row / map.pixel.max(1) };
        let joined = (map.height - 1) * pitch + width;
        // Joined rows waste what lies between them, single ones what a row lacks to whole tiles.
        let single = map.height * width.next_multiple_of(HEIGHT);
        if map.height > 1 && (!map.row.is_multiple_of(map.pixel.max(1)) || joined > single) {
            return Self { len: width, rows: width, width, pitch: width, per_image: map.height };
        }
        if pitch == width && map.image == image * map.pixel {
            return Self { len: rows, rows, width: rows, pitch: rows, per_image: 1 };
        }
        Self { len: joined, rows: image, width, pitch, per_image: 1 }
    }

    /// Rows of every tile.
    pub(super) fn height(&self) -> usize {
        self.len.min(HEIGHT)
    }

    /// The line of a row of the product and its place in it.
    #[inline(always)]
    pub(super) fn place(&self, row: usize) -> (usize, usize) {
        let (line, in_line) = (row / self.rows, row % self.rows);
        (line, in_line / self.width * self.pitch + in_line % self.width)
    }

    /// The row of the product at a place; behind an image row, the next one.
    #[inline(always)]
    pub(super) fn row(&self, line: usize, place: usize) -> usize {
        let in_row = (place % self.pitch).min(self.width);
        line * self.rows + place / self.pitch * self.width + in_row
    }

    /// Where a line starts in the image.
    #[inline(always)]
    pub(super) fn start(&self, map: &RowMap, line: usize) -> usize {
        map.start + line / self.per_image * map.image + line % self.per_image * map.row
    }
}

/// One tile's rows: consecutive places of a line.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// Where the first lies in the image.
    pub(super) offset: usize,
    pub(super) line: usize,
    /// The place of the first.
    pub(super) first: usize,
    /// The places whose sums are wanted: tiles overlap at a line's end.
    pub(super) from: usize,
    pub(super) to: usize,
}

/// Rows that the epilogue is given at a time.
pub(super) const FINISHED: usize = 4;

/// The rows of two tiles at most whose sums wait to be finished.
///
/// Plain numbers that stay in registers: a copy of them through memory would wait for all that the
/// tiles store.
#[derive(Clone, Copy)]
pub(super) struct Unfinished {
    /// The next row of sums, and how many there are.
    at: usize,
    end: usize,
    now: Part,
    next: Part,
}

/// One tile's rows of sums.
#[derive(Clone, Copy)]
struct Part {
    /// The rows of sums that are wanted.
    from: usize,
    to: usize,
    /// Which place of an image row the next one is, and which row of the product.
    x: usize,
    row: usize,
}

impl Unfinished {
    pub(super) const NOTHING: Self = {
        let part = Part { from: 0, to: 0, x: 0, row: 0 };
        Self { at: 0, end: 0, now: part, next: part }
    };

    #[inline(always)]
    pub(super) fn new<const R: usize>(tiles: &[Tile; R], lines: &Lines) -> Self {
        let part = |t: usize| {
            let Tile { line, first, from, to, .. } = tiles[t];
            let start = t * HEIGHT;
            Part {
                from: start + from - first,
                to: start + to - first,
                x: first % lines.pitch,
                row: lines.row(line, first),
            }
        };
        let (now, next) = (part(0), part(R - 1));
        Self { at: 0, end: next.to.next_multiple_of(FINISHED), now, next }
    }

    /// The next row of sums; `None` behind the last one. There are always [`FINISHED`] to be taken.
    #[inline(always)]
    pub(super) fn at(&mut self) -> Option<usize> {
        const { assert!(HEIGHT.is_multiple_of(FINISHED)) };
        if self.at == HEIGHT {
            self.now = self.next;
        }
        (self.at < self.end).then_some(self.at)
    }

    /// Takes [`FINISHED`] rows of sums if they are consecutive rows of the product: the first of them.
    #[inline(always)]
    pub(super) fn take_all(&mut self, lines: &Lines) -> Option<usize> {
        let Part { from, to, x, row } = self.now;
        if x + FINISHED > lines.width || self.at < from || self.at + FINISHED > to {
            return None;
        }
        self.at += FINISHED;
        self.now.x = if x + FINISHED == lines.pitch { 0 } else { x + FINISHED };
        self.now.row += FINISHED;
        Some(row)
    }

    /// Takes one row of sums: its row of the product, if it is wanted.
    #[inline(always)]
    pub(super) fn take(&mut self, lines: &Lines) -> Option<usize> {
        let Part { from, to, x, row } = self.now;
        let exists = x < lines.width;
        let wanted = exists && self.at >= from && self.at < to;
        self.at += 1;
        self.now.row += usize::from(exists);
        self.now.x = if x + 1 >= lines.pitch { 0 } else { x + 1 };
        wanted.then_some(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// On machines without tiles too: every row has one place, and the pixel there is its own.
        #[test]
        fn lines_find_every_row(
            (images, height, width) in (1..4usize, 1..20usize, 1..60usize),
            (border, channels, stride) in (0..4usize, 1..4usize, 1..3usize),
        ) {
            let row = (width * stride + border) * channels;
            let map = RowMap {
                width,
                height,
                pixel: stride * channels,
                row: stride * row,
                image: (height * stride + border) * row,
                start: 5,
            };
            let rows = images * height * width;
            let lines = Lines::new(&map, rows);
            let mut offsets = vec![0; rows];
            map.offsets(0, &mut offsets);
            for (row, offset) in offsets.into_iter().enumerate() {
                let (line, place) = lines.place(row);
                prop_assert!(place < lines.len && place % lines.pitch < lines.width);
                prop_assert_eq!(lines.row(line, place), row);
                prop_assert_eq!(lines.start(&map, line) + place * map.pixel, offset);
            }
            prop_assert_eq!(lines.place(rows - 1).1, lines.len - 1);
        }

        /// Pairs of tiles along a line, the last of which overlap: each wanted row is taken once, in order.
        #[test]
        fn every_row_is_finished_once(
            (images, height, width) in (1..3usize, 1..20usize, 1..60usize),
            border in 0..4usize, from in 0..200usize,
        ) {
            let row = width + border;
            let map = RowMap { width, height, pixel: 1, row, image: height * row, start: 0 };
            let rows = images * height * width;
            let lines = Lines::new(&map, rows);
            let ((line, start), last) = (lines.place(from % rows), lines.place(rows - 1).0);
            let mut finished = vec![];
            let mut tiles = vec![];
            for line in line..=last {
                let mut place = if tiles.is_empty() { start } else { 0 };
                while place < lines.len {
                    let first = place.min(lines.len - lines.height());
                    let to = lines.len.min(first + lines.height());
                    tiles.push(Tile { offset: 0, line, first, from: place, to });
                    place = to;
                }
            }
            for pair in tiles.chunks(2) {
                let mut left = match *pair {
                    [a, b] => Unfinished::new(&[a, b], &lines),
                    [a, ..] => Unfinished::new(&[a], &lines),
                    [] => unreachable!(),
                };
                while left.at().is_some() {
                    match left.take_all(&lines) {
                        Some(row) => finished.extend(row..row + FINISHED),
                        None => finished.extend((0..FINISHED).filter_map(|_| left.take(&lines))),
                    }
                }
            }
            prop_assert_eq!(finished, (from % rows..rows).collect::<Vec<_>>());
        }
    }
}
