//! Weights of a Winograd convolution: nine bytes a filter in memory, transformed right before they are multiplied: for
//! a stretch of channels, the positions of a row.
//!
//! ```text
//! bytes[panel][stretch][vector][tap]     vector: of the plane, which is a stretch of a panel of the word product
//! U[row][position][plane] = G g Gᵀ       elementwise over planes: their order does not matter
//! ```
//!
//! What a vector needs lies together, at distances that the compiler knows, and so does what becomes of it.
//!
//! A row of positions stays in an L1 cache until it is multiplied. All of them together would be written to an L2 cache
//! and read again, which takes longer than what is computed anew for each row: its part of `G g`.
//!
//! Transformed weights take 72 bytes for each pair of channels (F(4×4)) against 9: reading those from
//! memory costs more than making them anew out of bytes, once for each block of tiles. A thread keeps those of
//! small layers, which stay in its cache, from one block to the next.

use std::ops::Range;

use super::transform::filter_row;
use super::variant::Variant;
use crate::simd::int8::{Int8, Product};
use crate::storage::Storage;

/// Channels that are transformed at a time: six positions of them, for a panel of 16 outputs, are 25 KB.
const STRETCH: usize = 128;

/// Outputs that a panel is not halved below: on one thread of Zen 4, ResNet-20 takes 1.12 times as long with panels of 8
/// instead of 16 (AVX2), 1.01 with 32 instead of 64 (AVX-512 with VNNI).
const NARROWEST: usize = 32;

/// Bytes of a layer's transformed filters that stay in an L2 cache beside a block of tiles.
const KEPT: usize = 320 << 10;

const TAPS: usize = 9;

/// Bytes that a prefetch asks for.
const LINES: usize = 128;

/// Words of a cache line.
const GAP: usize = 64 / size_of::<i16>();

/// The filters of all outputs, as bytes.
pub(crate) struct Filters {
    data: Storage<i8>,
    channels: usize,
    outputs: usize,
    /// Outputs of a full panel.
    width: usize,
    /// Channels of a group of the word product.
    group: usize,
    lanes: usize,
    /// Where each stretch of each panel starts.
    starts: Vec<usize>,
}

/// A stretch of channels of a panel.
#[derive(Clone, Copy)]
pub(crate) struct Stretch {
    /// The first channel.
    pub(crate) channel: usize,
    /// Steps of the word product.
    pub(crate) steps: usize,
    /// Outputs of the panel, whole vectors.
    pub(crate) width: usize,
    /// Words of a position, or bytes of a tap: whole vectors.
    plane: usize,
}

/// A thread's transformed filters.
pub(crate) struct Transformed<'a> {
    words: &'a mut [i16],
    /// Whether they are needed again.
    keep: bool,
    /// A bit for each place that holds its panel's.
    ready: u64,
}

impl<'a> Transformed<'a> {
    /// Panels at most.
    const MOST: usize = u64::BITS as usize;

    /// Memory of [`Filters::transformed_len`] words, which holds nothing yet.
    pub(crate) fn new(words: &'a mut [i16], keep: bool) -> Self {
        Self { words, keep, ready: 0 }
    }
}

impl Filters {
    /// Arranges OIHW weights for the word product of an instruction set.
    pub(crate) fn new<I: Int8>(
        _isa: I,
        weights: &[i8],
        [outputs, channels, ..]: [usize; 4],
    ) -> Self {
        let mut filters = Self {
            data: Storage::zeroed(0),
            channels,
            outputs,
            width: Self::width::<I>(outputs),
            group: I::Words::GROUP,
            lanes: I::LANES,
            starts: vec![],
        };
        let mut len = 0;
        for panel in 0..filters.panels() {
            for stretch in 0..filters.stretches() {
                filters.starts.push(len);
                len += TAPS * filters.stretch(panel, stretch).plane;
            }
        }
        let mut data = Storage::<i8>::zeroed(len);
        let bytes = data.as_mut_slice();
        let vector = 2 * I::LANES;
        for o in 0..outputs {
            let panel = o / filters.width;
            for (c, taps) in
                weights[o * channels * TAPS..].chunks_exact(TAPS).take(channels).enumerate()
            {
                let stretch = filters.stretch(panel, c / STRETCH);
                let c = c - stretch.channel;
                let column = c / filters.group * stretch.width + o % filters.width;
                let at = column * filters.group + c % filters.group;
                let start = filters.start(panel, stretch) + at / vector * vector * TAPS;
                for (tap, &w) in taps.iter().enumerate() {
                    bytes[start + tap * vector + at % vector] = w;
                }
            }
        }
        Self { data, ..filters }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.data.as_slice().len()
    }

    pub(crate) fn panels(&self) -> usize {
        self.outputs.div_ceil(self.width)
    }

    /// The outputs of a panel that exist.
    pub(crate) fn outputs(&self, panel: usize) -> Range<usize> {
        panel * self.width..((panel + 1) * self.width).min(self.outputs)
    }

    pub(crate) fn stretches(&self) -> usize {
        self.channels.div_ceil(STRETCH)
    }

    pub(crate) fn stretch(&self, panel: usize, index: usize) -> Stretch {
        let channel = index * STRETCH;
        let steps = (self.channels - channel).min(STRETCH).div_ceil(self.group);
        let width = self.outputs(panel).len().next_multiple_of(self.lanes);
        let plane = (steps * width * self.group).next_multiple_of(2 * self.lanes);
        Stretch { channel, steps, width, plane }
    }

    /// Outputs of a full panel: as many as a tile of the word product has, but no more than half of all. Threads share
    /// panels where they cannot share tiles.
    fn width<I: Int8>(outputs: usize) -> usize {
        let half = outputs.div_ceil(2).next_multiple_of(I::LANES);
        (I::Words::VECTORS * I::LANES).min(half.max(NARROWEST))
    }

    /// Words of the largest plane of a stretch of so many channels, of a panel of so many outputs.
    const fn largest_plane<I: Int8>(channels: usize, width: usize) -> usize {
        let words = channels.div_ceil(I::Words::GROUP) * I::Words::GROUP;
        (words * width).next_multiple_of(2 * I::LANES)
    }

    /// Words from a position to the next: the largest plane, and a cache line more, so that positions do not fall on
    /// the same cache sets.
    pub(crate) const fn position<I: Int8>() -> usize {
        Self::largest_plane::<I>(STRETCH, I::Words::VECTORS * I::LANES) + GAP
    }

    /// Words of a row.
    fn row_len<I: Int8, V: Variant>() -> usize {
        V::TILE * Self::position::<I>()
    }

    /// Panels whose planes lie side by side in each position.
    fn beside<I: Int8>(width: usize) -> usize {
        I::Words::VECTORS * I::LANES / width
    }

    /// Rows that a thread has memory for: those of all panels if they are kept, else one.
    fn places<I: Int8, V: Variant>(outputs: usize, channels: usize) -> usize {
        let width = Self::width::<I>(outputs);
        let panels = outputs.div_ceil(width).max(1);
        let rows = panels.div_ceil(Self::beside::<I>(width)) * V::TILE;
        // Those that are touched: what lies between positions is not.
        let plane = Self::largest_plane::<I>(channels.min(STRETCH), width);
        let bytes = panels * V::TILE * V::TILE * plane * size_of::<i16>();
        let kept = panels <= Transformed::MOST && channels <= STRETCH && bytes <= KEPT;
        if kept { rows } else { 1 }
    }

    /// Words of a thread's transformed filters.
    pub(crate) fn transformed_len<I: Int8, V: Variant>(
        _isa: I,
        outputs: usize,
        channels: usize,
    ) -> usize {
        Self::places::<I, V>(outputs, channels) * Self::row_len::<I, V>()
    }

    /// Rows of `U` that lie behind each other: all of them if the memory keeps them, else one.
    pub(crate) fn rows_together<I: Int8, V: Variant>(&self, memory: &Transformed<'_>) -> usize {
        let kept = memory.keep && Self::places::<I, V>(self.outputs, self.channels) > 1;
        if kept { V::TILE } else { 1 }
    }

    /// Rows of `U` of a stretch, as many as [lie together](Self::rows_together): what `memory` keeps, or made now.
    pub(crate) fn rows<'m, I: Int8, V: Variant>(
        &self,
        isa: I,
        panel: usize,
        stretch: Stretch,
        rows: Range<usize>,
        memory: &'m mut Transformed<'_>,
    ) -> &'m [i16] {
        let kept = rows.len() > 1;
        let len = Self::row_len::<I, V>();
        let beside = Self::beside::<I>(self.width);
        let (place, aside) = if kept { (panel / beside, panel % beside) } else { (0, 0) };
        let words = &mut memory.words[place * V::TILE * len..][..rows.len() * len];
        let words = &mut words[aside * Self::largest_plane::<I>(STRETCH, self.width)..];
        if kept && memory.ready >> panel & 1 == 1 {
            return words;
        }
        for (row, words) in rows.zip(words.chunks_mut(len)) {
            match row {
                0 => self.transform::<I, V, 0>(isa, panel, stretch, words),
                1 => self.transform::<I, V, 1>(isa, panel, stretch, words),
                2 => self.transform::<I, V, 2>(isa, panel, stretch, words),
                3 => self.transform::<I, V, 3>(isa, panel, stretch, words),
                4 if const { V::TILE > 4 } => self.transform::<I, V, 4>(isa, panel, stretch, words),
                5 if const { V::TILE > 5 } => self.transform::<I, V, 5>(isa, panel, stretch, words),
                _ => unreachable!("row {row} of {}", V::TILE),
            }
        }
        if kept {
            memory.ready |= 1 << panel;
        }
        words
    }

    fn start(&self, panel: usize, stretch: Stretch) -> usize {
        self.starts[panel * self.stretches() + stretch.channel / STRETCH]
    }

    /// Makes a row of `U` of a stretch.
    fn transform<I: Int8, V: Variant, const ROW: usize>(
        &self,
        isa: I,
        panel: usize,
        stretch: Stretch,
        out: &mut [i16],
    ) {
        let plane = stretch.plane;
        let rest = &self.data.as_slice()[self.start(panel, stretch)..];
        let (taps, behind) = rest.split_at(TAPS * plane);
        let out = &mut out[..(V::TILE - 1) * Self::position::<I>() + plane];
        isa.enter(
            #[inline(always)]
            move || {
                // Here, not captured: so the compiler knows them.
                let position = Self::position::<I>();
                // What is transformed next comes from memory while this is multiplied: each row asks for its share.
                let next = TAPS * ROW / V::TILE..TAPS * (ROW + 1) / V::TILE;
                for i in (0..plane).step_by(2 * I::LANES) {
                    if i % LINES == 0 {
                        for lines in next.clone() {
                            isa.prefetch(behind, TAPS * i + lines * LINES);
                        }
                    }
                    filter_row::<I, V, ROW>(
                        isa,
                        // SAFETY: i + 2·LANES ≤ plane, whole vectors, and each has TAPS vectors of bytes.
                        #[inline(always)]
                        |tap| unsafe {
                            let at = TAPS * i + tap * 2 * I::LANES;
                            isa.widen_weights(taps.get_unchecked(at..at + 2 * I::LANES))
                        },
                        // SAFETY: as above; there are TILE positions, the last of a plane.
                        #[inline(always)]
                        |t, value| unsafe {
                            let at = t * position + i;
                            isa.store_half(value, out.get_unchecked_mut(at..at + 2 * I::LANES));
                        },
                    );
                }
            },
        );
    }
}
