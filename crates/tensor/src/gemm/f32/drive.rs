//! The blocking loops, once for all operands and instruction sets.

use std::ops::Range;

use super::left::Left;
use super::panels::{Panel, Panels};
use super::tile::{Ahead, Onto, ROW, most_rows, multiply_tile, next_rows};
use crate::simd::f32::{Float, MAX_ROWS};
use crate::storage::Storage;

/// Rows of the left operand that stay in an L2 cache while all panels go by.
const BLOCK_ROWS: usize = 168;

/// Values of the right operand that stay in an L2 cache while all tiles of a block go by.
const GROUP: usize = 96 << 10;

/// Values of a right operand that stays in the cache from one block of rows to the next.
pub(crate) const WHOLE: usize = 256 << 10;

/// Whether rows `step` values apart can be read where they are by tiles of `rows`, in blocks of the depth of up to
/// `depth`: near a multiple of 4 KiB they share the sets of an L1 cache and displace each other, unless a tile has
/// fewer than a cache has ways, and blocks do not leave most sets of an L2 cache unused.
fn lie_well(rows: usize, step: usize, depth: usize) -> bool {
    const SETS: usize = 4096 / size_of::<f32>();
    // Of the eight ways of a set, weights and the output need some too.
    const FEW: usize = 6;
    let off = step % SETS;
    off.min(SETS - off) >= SETS / 32 || (rows <= FEW && step <= 2 * depth)
}

/// `out = left[rows] · panels (+ bias)`, for the panels of the range.
///
/// Row `i` of the range and column `j` of the first panel land at `out[place(i) + j]`. An element is summed in one
/// order whatever is multiplied with it: blocks of the depth one after the other, each from zero on.
#[inline(always)]
pub(crate) fn multiply<I: Float, L: Left>(
    isa: I,
    left: &L,
    rows: Range<usize>,
    right: &Panels,
    panels: Range<usize>,
    bias: Option<&[f32]>,
    out: &mut [f32],
    place: impl Fn(usize) -> usize,
) {
    if rows.is_empty() || panels.is_empty() {
        return;
    }
    let first = right.get(panels.start).0;
    let most = most_rows(isa, first.width);
    let few = panels.len() <= 2;
    let in_place = left.in_place(rows.start).filter(
        #[inline(always)]
        |&(_, step)| few || lie_well(most, step, I::DEPTH),
    );
    // Rows packed for few panels stay in L1; for many they are worth a block of tiles.
    let block_rows = if in_place.is_none() && few { most } else { BLOCK_ROWS }.min(rows.len());
    let mut packed = Storage::recycled(if in_place.is_none() { block_rows * ROW } else { 0 });
    let course = Course::new(isa, right, panels.clone(), first.width);

    let mut depth = course.depth_from(0);
    while !depth.is_empty() {
        for block_start in (0..rows.len()).step_by(block_rows) {
            let block = block_start..rows.len().min(block_start + block_rows);
            let (data, step) = match in_place {
                Some((data, step)) => (&data[block.start * step + depth.start..], step),
                None => {
                    let packed = &mut packed.as_mut_slice().as_chunks_mut().0[..block.len()];
                    left.pack(isa, rows.start + block.start, depth.clone(), packed);
                    (packed.as_flattened(), ROW)
                }
            };
            let next_depth =
                if block.end < rows.len() { depth.clone() } else { course.depth_from(depth.end) };
            for group in course.groups() {
                let mut row = 0;
                while row < block.len() {
                    let count = next_rows(block.len() - row, most);
                    let mut places = [0; MAX_ROWS];
                    for (i, target) in places[..count].iter_mut().enumerate() {
                        *target = place(block.start + row + i);
                    }
                    // Rows are asked for once, when the first group is multiplied by those before them.
                    let fresh = in_place.is_some() && group.start == panels.start;
                    let behind = rows.len() - (block.start + row + count);
                    let coming_rows = if fresh { count.min(behind) } else { 0 };
                    for i in group.clone() {
                        let nth = i - group.start;
                        let range = part(coming_rows, [nth, nth + 1], group.len()).map(
                            #[inline(always)]
                            |coming| row + count + coming,
                        );
                        let coming = course.after(i, &depth, &next_depth);
                        let [from, to] = part(coming.len(), [row, row + count], block.len());
                        let ahead = Ahead { rows: data, step, range, weights: &coming[from..to] };
                        let (panel, weights) = course.panel(i, &depth);
                        let onto = match (depth.start, bias) {
                            (0, Some(bias)) => Onto::Bias(&bias[panel.start..]),
                            (0, None) => Onto::Nothing,
                            _ => Onto::Output,
                        };
                        multiply_tile(
                            isa,
                            &data[row * step..],
                            step,
                            ahead,
                            weights,
                            panel.width,
                            onto,
                            &mut out[panel.start - first.start..],
                            &places[..count],
                            panel.columns,
                        );
                    }
                    row += count;
                }
            }
        }
        depth = course.depth_from(depth.end);
    }
}

/// Where parts `from` to `to`, of `of` equal ones, of `all` begin and end.
#[inline(always)]
fn part(all: usize, [from, to]: [usize; 2], of: usize) -> [usize; 2] {
    // Mostly there is nothing to divide, and dividing takes as long as dozens of products.
    if all == 0 { [0, 0] } else { [all * from / of, all * to / of] }
}

/// How the right operand goes by: for each block of the depth, and each block of rows, group after group of
/// panels.
struct Course<'a> {
    right: &'a Panels,
    panels: Range<usize>,
    depth_step: usize,
    /// Panels of a group.
    group: usize,
    /// Whether the cache has forgotten a group when it is due again.
    forgets: bool,
}

impl<'a> Course<'a> {
    #[inline(always)]
    fn new<I: Float>(_: I, right: &'a Panels, panels: Range<usize>, width: usize) -> Self {
        let blocks = right.depth().div_ceil(I::DEPTH).max(1);
        let depth_step = right.depth().div_ceil(blocks).next_multiple_of(16);
        let group = (GROUP / (width * depth_step)).max(1);
        let forgets = panels.len() * width * right.depth() > WHOLE;
        Self { right, panels, depth_step, group, forgets }
    }

    /// The block of the depth that begins here.
    fn depth_from(&self, start: usize) -> Range<usize> {
        start..self.right.depth().min(start + self.depth_step)
    }

    fn groups(&self) -> impl Iterator<Item = Range<usize>> {
        let end = self.panels.end;
        self.panels.clone().step_by(self.group).map(move |first| first..end.min(first + self.group))
    }

    /// Panel `i`, and its part for a block of the depth.
    #[inline(always)]
    fn panel(&self, i: usize, depth: &Range<usize>) -> (Panel, &'a [f32]) {
        let (panel, weights) = self.right.get(i);
        (panel, &weights[depth.start * panel.width..depth.end * panel.width])
    }

    /// What is read one group later than panel `i`, unless the cache still holds it. After the last group the first
    /// one follows, for `next_depth`; after the end of the depth, other panels, or these for other rows.
    #[inline(always)]
    fn after(&self, i: usize, depth: &Range<usize>, next_depth: &Range<usize>) -> &'a [f32] {
        if !self.forgets {
            return &[];
        }
        if i + self.group < self.panels.end {
            return self.panel(i + self.group, depth).1;
        }
        let first = self.panels.start + (i - self.panels.start) % self.group;
        if !next_depth.is_empty() {
            return self.panel(first, next_depth).1;
        }
        let other = first + self.panels.len();
        self.panel(if other < self.right.count() { other } else { first }, &self.depth_from(0)).1
    }
}
