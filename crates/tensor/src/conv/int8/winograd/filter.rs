//! Weights of a Winograd convolution: nine bytes a filter in memory, transformed a stretch of channels
//! at a time, right before they are multiplied.
//!
//! ```text
//! bytes[panel][stretch][tap][plane]      plane: a stretch of a panel of the word product
//! U[position][plane] = G g Gᵀ            elementwise over planes: their order does not matter
//! ```
//!
//! Transformed weights take 72 bytes for each pair of channels (F(4×4)) against 9: reading those from
//! memory costs more than making them anew out of bytes, once for each block of tiles. A thread keeps those of
//! small layers, which stay in its cache, from one block to the next.

use std::ops::Range;

use super::transform::filter_tile;
use super::variant::Variant;
use crate::simd::int8::{Int8, Product};
use crate::storage::Storage;

/// Channels that are transformed at a time: 36 positions of them, for a panel of 16 outputs, are 295 KB. Half as
/// many stay in smaller caches, but where few tiles use them the products of a stretch are too short.
const STRETCH: usize = 256;

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
    /// Words from a position to the next: a cache line more, so that positions do not fall on the same
    /// cache sets.
    pub(crate) position: usize,
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
            width: I::Words::VECTORS * I::LANES,
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
        for o in 0..outputs {
            let panel = o / filters.width;
            for (c, taps) in
                weights[o * channels * TAPS..].chunks_exact(TAPS).take(channels).enumerate()
            {
                let stretch = filters.stretch(panel, c / STRETCH);
                let c = c - stretch.channel;
                let column = c / filters.group * stretch.width + o % filters.width;
                let at = filters.start(panel, stretch) + column * filters.group + c % filters.group;
                for (tap, &w) in taps.iter().enumerate() {
                    bytes[at + tap * stretch.plane] = w;
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
        Stretch { channel, steps, width, plane, position: plane + GAP }
    }

    /// Words of the largest stretch, transformed.
    fn stretch_len<I: Int8, V: Variant>(channels: usize) -> usize {
        let steps = channels.min(STRETCH).div_ceil(I::Words::GROUP);
        let plane = steps * I::Words::VECTORS * I::LANES * I::Words::GROUP;
        V::TILE * V::TILE * (plane.next_multiple_of(2 * I::LANES) + GAP)
    }

    /// Panels whose transformed filters a thread has memory for: all of them if they are kept, else one.
    fn places<I: Int8, V: Variant>(outputs: usize, channels: usize) -> usize {
        let panels = outputs.div_ceil(I::Words::VECTORS * I::LANES).max(1);
        let bytes = panels * Self::stretch_len::<I, V>(channels) * size_of::<i16>();
        let kept = panels <= Transformed::MOST && channels <= STRETCH && bytes <= KEPT;
        if kept { panels } else { 1 }
    }

    /// Words of a thread's transformed filters.
    pub(crate) fn transformed_len<I: Int8, V: Variant>(
        _isa: I,
        outputs: usize,
        channels: usize,
    ) -> usize {
        Self::places::<I, V>(outputs, channels) * Self::stretch_len::<I, V>(channels)
    }

    /// `U` of a stretch: what `memory` keeps, or made now.
    pub(crate) fn transformed<'m, I: Int8, V: Variant>(
        &self,
        isa: I,
        panel: usize,
        stretch: Stretch,
        memory: &'m mut Transformed<'_>,
    ) -> &'m [i16] {
        let places = Self::places::<I, V>(self.outputs, self.channels);
        let kept = memory.keep && places == self.panels() && self.stretches() == 1;
        let len = Self::stretch_len::<I, V>(self.channels);
        let place = if kept { panel } else { 0 };
        let words = &mut memory.words[place * len..][..len];
        if !(kept && memory.ready >> place & 1 == 1) {
            self.transform::<I, V>(isa, panel, stretch, words);
            memory.ready |= 1 << place;
        }
        words
    }

    fn start(&self, panel: usize, stretch: Stretch) -> usize {
        self.starts[panel * self.stretches() + stretch.channel / STRETCH]
    }

    /// Makes `U` of a stretch.
    fn transform<I: Int8, V: Variant>(
        &self,
        isa: I,
        panel: usize,
        stretch: Stretch,
        out: &mut [i16],
    ) {
        let Stretch { plane, position, .. } = stretch;
        let rest = &self.data.as_slice()[self.start(panel, stretch)..];
        let taps = &rest[..TAPS * plane];
        let out = &mut out[..V::TILE * V::TILE * position];
        isa.enter(
            #[inline(always)]
            || {
                // Copies that stay in registers: for all the compiler knows, stores change what they are of.
                let (plane, position) = (plane, position);
                for i in (0..plane).step_by(2 * I::LANES) {
                    // What is transformed next comes from memory while this is multiplied.
                    if i % LINES == 0 {
                        for tap in TAPS..2 * TAPS {
                            isa.prefetch(rest, tap * plane + i);
                        }
                    }
                    filter_tile::<I, V>(
                        isa,
                        // SAFETY: i + 2·LANES ≤ plane, whole vectors, and there are TAPS planes.
                        #[inline(always)]
                        |tap| unsafe {
                            let at = tap * plane + i;
                            isa.widen_weights(taps.get_unchecked(at..at + 2 * I::LANES))
                        },
                        // SAFETY: as above; there are TILE² positions of at least a plane.
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
