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
pub(super) struct Unfinished {
    now: Part,
    next: Part,
}

/// Some rows of sums that follow each other.
#[derive(Clone, Copy)]
struct Part {
    /// The first row of sums, how many there are, and which place of an image row the first is.
    at: usize,
    left: usize,
    x: usize,
    /// The row of the product.
    row: usize,
}

impl Unfinished {
    pub(super) const NOTHING: Self = {
        let part = Part { at: 0, left: 0, x: 0, row: 0 };
        Self { now: part, next: part }
    };

    #[inline(always)]
    pub(super) fn new<const R: usize>(tiles: &[Tile; R], lines: &Lines) -> Self {
        let part = |t: usize| {
            let Tile { line, first, from, to, .. } = tiles[t];
            Part {
                at: t * HEIGHT + from - first,
                left: to - from,
                x: from % lines.pitch,
                row: lines.row(line, from),
            }
        };
        let next = if R == 2 { part(R - 1) } else { Self::NOTHING.next };
        Self { now: part(0), next }
    }

    /// The next few rows: which row of sums is the first, its row of the product, and how many there are.
    #[inline(always)]
    pub(super) fn some(&mut self, lines: &Lines) -> Option<(usize, usize, usize)> {
        loop {
            let part = &mut self.now;
            if part.x >= lines.width {
                // Places that belong to nobody.
                let behind = part.left.min(lines.pitch - part.x);
                (part.x, part.at, part.left) = (0, part.at + behind, part.left - behind);
            }
            if part.left > 0 {
                let count =
                    if part.left.min(lines.width - part.x) < FINISHED { 1 } else { FINISHED };
                let rows = (part.at, part.row, count);
                part.at += count;
                part.left -= count;
                part.x += count;
                part.row += count;
                return Some(rows);
            }
            if self.next.left == 0 {
                return None;
            }
            (self.now, self.next) = (self.next, Self::NOTHING.next);
        }
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
    }
}
