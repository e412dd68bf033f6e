//! Tiles of a batch in blocks, and which tiles of a block have which position.
//!
//! A tile at the lower or the right edge of an image has fewer outputs than others if the output is not whole
//! tiles, and fewer positions then: those of the first points ([`Variant`]). 14 rows are four tiles of 6, 6, 6
//! and 4 points. So that the tiles of each position are neighbours, the tiles of a block are ordered
//!
//! ```text
//! short of rows | whole | short of columns | short of both
//! ```

use std::ops::Range;

use super::variant::{FEWEST, Variant};
use crate::conv::ConvGeometry;
use crate::simd::int8::Int8;

/// Most tiles of a block. Filters are transformed once for each block: the more tiles the better.
pub(crate) const BLOCK: usize = 48;
/// Fewest tiles that many tiles are cut into blocks of.
const LEAST_BLOCK: usize = 24;
/// Bytes of transformed input that a block should stay below: half of a usual L2 cache.
const BLOCK_BYTES: usize = 240 << 10;

/// How the tiles of a batch are cut into blocks, each of which lies in memory as
/// `[position][tile][channel]`.
#[derive(Clone, Copy)]
pub(crate) struct Blocks {
    /// Rows and columns of tiles in an image.
    grid: [usize; 2],
    /// Points of a tile, rows and columns.
    points: [usize; 2],
    /// Points of a tile in the last row, and in the last column.
    last: [usize; 2],
    /// All tiles.
    pub(crate) tiles: usize,
    /// Tiles of a block; the last may have fewer.
    pub(crate) size: usize,
    pub(crate) count: usize,
    /// Words of a tile: channels, padded to whole vectors.
    pub(crate) pixel: usize,
    /// Words of a position: a cache line more than its tiles, so that positions do not fall on the
    /// same cache sets.
    pub(crate) position: usize,
    /// Words of a block.
    pub(crate) len: usize,
}

impl Blocks {
    /// Even blocks.
    pub(crate) fn new<I: Int8, V: Variant>(geometry: &ConvGeometry) -> Self {
        let largest = Self::largest::<I, V>(geometry);
        Self::of::<I, V>(geometry, largest.tiles.div_ceil(largest.count.max(1)))
    }

    /// Blocks as large as those of any number of images up to this one: what memory is planned for.
    /// Even blocks of fewer tiles may be larger ones: 49 tiles are 2 of 25, 48 are 1 of 48.
    pub(crate) fn largest<I: Int8, V: Variant>(geometry: &ConvGeometry) -> Self {
        let pixel = Self::pixel::<I>(geometry);
        let fit = BLOCK_BYTES / (V::TILE * V::TILE * pixel * size_of::<i16>()).max(1);
        Self::of::<I, V>(geometry, fit.clamp(LEAST_BLOCK, BLOCK))
    }

    fn pixel<I: Int8>(geometry: &ConvGeometry) -> usize {
        geometry.in_channels.next_multiple_of(2 * I::LANES)
    }

    fn of<I: Int8, V: Variant>(geometry: &ConvGeometry, size: usize) -> Self {
        let grid = geometry.out_size.map(|size| size.div_ceil(V::OUT));
        let tiles = geometry.batch * grid[0] * grid[1];
        let size = size.min(tiles);
        let pixel = Self::pixel::<I>(geometry);
        let position = size * pixel + 64 / size_of::<i16>();
        Self {
            grid,
            points: [V::TILE; 2],
            // As many points as pixels that the outputs see.
            last: geometry.out_size.map(|size| match size % V::OUT {
                0 => V::TILE,
                outputs => (outputs + 2).max(FEWEST),
            }),
            tiles,
            size,
            count: tiles.div_ceil(size.max(1)),
            pixel,
            position,
            len: position * V::TILE * V::TILE,
        }
    }

    /// Block `index`.
    pub(crate) fn block(&self, index: usize) -> Block {
        let start = index * self.size;
        let len = self.size.min(self.tiles - start);
        let mut block = Block { tiles: [Tile::default(); BLOCK], len, spans: Default::default() };
        let [rows, columns] = self.grid;
        let mut place = [start / columns / rows, start / columns % rows, start % columns];
        for tile in &mut block.tiles[..len] {
            let points = [0, 1].map(|axis| {
                let last = place[1 + axis] + 1 == self.grid[axis];
                if last { self.last[axis] } else { self.points[axis] }
            });
            *tile = Tile { place, points };
            let [n, y, x] = place;
            place = match (y + 1 < rows, x + 1 < columns) {
                (_, true) => [n, y, x + 1],
                (true, false) => [n, y + 1, 0],
                (false, false) => [n + 1, 0, 0],
            };
        }
        if self.last == self.points {
            block.spans[0] = Span { positions: 0..self.points[0] * self.points[1], tiles: 0..len };
        } else {
            self.order(&mut block);
        }
        block
    }

    /// Orders the tiles of a block, and says which have which position.
    fn order(&self, block: &mut Block) {
        let short = |tile: &Tile| [0, 1].map(|axis| tile.points[axis] < self.points[axis]);
        let tiles = &mut block.tiles[..block.len];
        // Unstable, for want of memory, but no two tiles have one place.
        tiles.sort_unstable_by_key(|tile| {
            let part = match short(tile) {
                [true, false] => 0,
                [false, false] => 1,
                [false, true] => 2,
                [true, true] => 3,
            };
            (part, tile.place)
        });
        let before = tiles.partition_point(|tile| short(tile) == [true, false]);
        let behind = tiles.partition_point(|tile| !short(tile)[1]);
        let both = tiles.partition_point(|tile| short(tile) != [true, true]);
        let mut spans = block.spans.iter_mut();
        let mut last: Option<&mut Span> = None;
        for position in 0..self.points[0] * self.points[1] {
            let at = [position / self.points[1], position % self.points[1]];
            let tiles = match [0, 1].map(|axis| at[axis] < self.last[axis]) {
                [true, true] => 0..block.len,
                [true, false] => 0..behind,
                [false, true] => before..both,
                [false, false] => before..behind,
            };
            match &mut last {
                Some(span) if span.tiles == tiles => span.positions.end = position + 1,
                _ => {
                    let span = spans.next().expect("a row has two spans");
                    *span = Span { positions: position..position + 1, tiles };
                    last = Some(span);
                }
            }
        }
    }
}

/// A tile of a batch.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tile {
    /// Its image, and its row and column there.
    pub(crate) place: [usize; 3],
    /// The points of its rows and of its columns.
    pub(crate) points: [usize; 2],
}

impl Tile {
    /// Whether it has all points.
    pub(crate) fn is_whole<V: Variant>(&self) -> bool {
        !V::TRIMMED || self.points == [V::TILE; 2]
    }
}

/// Positions, and the tiles of a block that have them.
#[derive(Clone, Default)]
pub(crate) struct Span {
    pub(crate) positions: Range<usize>,
    pub(crate) tiles: Range<usize>,
}

/// The tiles of a block, in order.
pub(crate) struct Block {
    tiles: [Tile; BLOCK],
    len: usize,
    /// Two a row of positions, at most: those that all tiles of the row have, and those that few have.
    spans: [Span; 12],
}

impl Block {
    pub(crate) fn tiles(&self) -> &[Tile] {
        &self.tiles[..self.len]
    }

    /// What there is to multiply of some positions: each once.
    pub(crate) fn spans(&self, of: Range<usize>) -> impl Iterator<Item = Span> {
        let part = move |span: &Span| Span {
            positions: span.positions.start.max(of.start)..span.positions.end.min(of.end),
            tiles: span.tiles.clone(),
        };
        let parts = self.spans.iter().map(part);
        parts.filter(|span| !span.tiles.is_empty() && !span.positions.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::super::variant::{F2x2, F4x4};
    use super::*;
    use crate::conv::ConvAttrs;
    use crate::simd::Scalar;

    /// Every tile meets the positions that its points have, once, and no others. The products of all.
    fn products<V: Variant>(batch: usize, height: usize, width: usize) -> usize {
        let (input, weights) = ([batch, 4, height, width], [4, 4, 3, 3]);
        let geometry = ConvGeometry::new(input, weights, ConvAttrs::new(1, 1)).unwrap();
        let blocks = Blocks::new::<Scalar, V>(&geometry);
        let mut places = vec![];
        let mut products = 0;
        for block in (0..blocks.count).map(|index| blocks.block(index)) {
            let mut met = [[0; 36]; BLOCK];
            for span in (0..V::TILE).flat_map(|y| block.spans(y * V::TILE..(y + 1) * V::TILE)) {
                products += span.tiles.len() * span.positions.len();
                for tile in span.tiles.clone() {
                    span.positions.clone().for_each(|position| met[tile][position] += 1);
                }
            }
            for (tile, met) in block.tiles().iter().zip(met) {
                places.push(tile.place);
                for (position, &met) in met.iter().enumerate().take(V::TILE * V::TILE) {
                    let [y, x] = [position / V::TILE, position % V::TILE];
                    let has = y < tile.points[0] && x < tile.points[1];
                    assert_eq!(met, usize::from(has), "{tile:?}, position {position}");
                }
            }
        }
        places.sort();
        places.dedup();
        assert_eq!(places.len(), blocks.tiles);
        products
    }

    #[test]
    fn tiles_meet_the_positions_they_have() {
        assert_eq!(products::<F4x4>(1, 14, 14), (6 + 6 + 6 + 4) * (6 + 6 + 6 + 4));
        assert_eq!(products::<F4x4>(1, 7, 7), (6 + 5) * (6 + 5));
        assert_eq!(products::<F4x4>(3, 56, 9), 3 * 14 * 6 * (6 + 6 + 4));
        assert_eq!(products::<F4x4>(5, 3, 40), 5 * 5 * 10 * 6);
        assert_eq!(products::<F2x2>(2, 7, 7), 2 * 16 * 16);
    }
}
