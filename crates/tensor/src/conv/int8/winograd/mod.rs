//! Exact integer Winograd convolution for 3×3 windows of stride 1.
//!
//! ```text
//! U[t] = G g Gᵀ                                   once, when the weights are packed
//! V[tile][t] = Bᵀ d B                             for each input tile
//! M[tile][t] = V[tile][t] · U[t]                  t small products: the GEMM tile of gemm::int8
//! Y[tile] = (AᵀMA · q⁻¹ − 2^{2v}·c) >> 2v  (+ c)  and the epilogue
//! ```
//!
//! Lavin and Gray 2016 (arXiv:1509.09308), in integers that may wrap: see [`variant`].

mod transform;
mod variant;

use std::marker::PhantomData;
use std::ops::Range;

use self::transform::{FILTERS, filter_tiles, input_tile, output_tile};
pub(crate) use self::variant::Variant;
pub(crate) use self::variant::{F2x2, F4x4, F4x4Wide};
use super::image::Bordered;
use crate::conv::ConvGeometry;
use crate::gemm::int8::{
    Epilogue, Finish, Keep, MAX_LANES, Panels, Place, Scratch, Shared, Strip, part,
};
use crate::simd::dispatch;
use crate::simd::int8::{Int8, Product};
use crate::{Level, parallel};

/// Tiles whose products a task keeps: 36·64 sums of a tile are 9 KB, and all of them should stay
/// in the L2 cache.
const BLOCK: usize = 36; // a multiple of every ROW_STEP
/// Bytes of transformed input that a pass writes before it is multiplied.
const PASS: usize = 1 << 22;
/// Products kept at a time, over all threads.
const SLOTS: usize = 16;

/// Transformed weights.
pub(crate) struct Winograd<V> {
    /// Position `t` of the tile is run `t`.
    panels: Panels<i16>,
    /// Sums of the positive and of the negative weights of each output channel.
    reach: Vec<[i32; 2]>,
    variant: PhantomData<V>,
}

/// How a geometry is cut: everything that follows from shapes.
struct Plan {
    border: Bordered,
    /// Rows and columns of tiles in an image.
    tiles: [usize; 2],
    images_per_pass: usize,
}

/// How the tiles of a pass lie in memory: `[block][position][tile][channel]`.
#[derive(Clone, Copy)]
struct Blocks {
    /// Tiles of the pass.
    tiles: usize,
    /// Tiles of a block; the last may have fewer.
    size: usize,
    /// Blocks of the pass.
    count: usize,
    /// Words of a tile: channels, padded to whole vectors.
    pixel: usize,
    /// Words of a position: a cache line more than its tiles, so that positions do not fall on the
    /// same cache sets.
    position: usize,
    /// Words of a block.
    len: usize,
}

impl Blocks {
    fn new(plan: &Plan, images: usize, positions: usize) -> Self {
        let tiles = images * plan.tiles[0] * plan.tiles[1];
        let size = tiles.div_ceil(tiles.div_ceil(BLOCK)); // even blocks
        let position = size * plan.border.pixel + 64 / size_of::<i16>();
        Self {
            tiles,
            size,
            count: tiles.div_ceil(size),
            pixel: plan.border.pixel,
            position,
            len: position * positions,
        }
    }

    /// The tiles of block `index`.
    fn range(&self, index: usize) -> Range<usize> {
        index * self.size..((index + 1) * self.size).min(self.tiles)
    }
}

impl<V: Variant> Winograd<V> {
    const POSITIONS: usize = V::TILE * V::TILE;

    pub(crate) fn new(level: Level, weights: &[i8], shape: [usize; 4]) -> Self {
        let [outputs, channels, ..] = shape;
        let mut panels = dispatch!(level, isa => {
            Panels::zeroed(isa.words(), outputs, Self::POSITIONS, channels)
        });
        for o in (0..outputs).step_by(FILTERS) {
            let filters = FILTERS.min(outputs - o);
            for c in 0..channels {
                let mut g = [[0; FILTERS]; 9];
                for f in 0..filters {
                    let filter = &weights[((o + f) * channels + c) * 9..][..9];
                    for (g, &w) in g.iter_mut().zip(filter) {
                        g[f] = w.into();
                    }
                }
                panels.write_group(o, c, &filter_tiles::<V>(&g)[..Self::POSITIONS], filters);
            }
        }
        let reach = (0..outputs)
            .map(|o| {
                let mut reach = [0, 0];
                for &w in &weights[o * channels * 9..(o + 1) * channels * 9] {
                    reach[usize::from(w < 0)] += i32::from(w);
                }
                reach
            })
            .collect();
        Self { panels, reach, variant: PhantomData }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.panels.bytes()
    }

    fn plan<I: Int8>(_isa: I, geometry: &ConvGeometry) -> Plan {
        let tiles = geometry.out_size.map(|size| size.div_ceil(V::OUT));
        let covered = tiles.map(|tiles| (tiles - 1) * V::OUT + V::TILE);
        let border = Bordered::at_least(geometry, covered, 2 * I::LANES);
        let bytes = tiles[0] * tiles[1] * Self::POSITIONS * border.pixel * size_of::<i16>();
        let images = (PASS / bytes.max(1)).max(1).min(border.images_per_pass(geometry.batch));
        Plan { border, tiles, images_per_pass: images }
    }

    /// Sums of a block of tiles for one panel.
    fn block_sums<I: Int8>(blocks: &Blocks) -> usize {
        blocks.size * Self::POSITIONS * I::Words::VECTORS * I::LANES
    }

    pub(crate) fn scratch_len<I: Int8>(isa: I, geometry: &ConvGeometry) -> usize {
        let plan = Self::plan(isa, geometry);
        let blocks = Blocks::new(&plan, plan.images_per_pass, Self::POSITIONS);
        let panels = geometry.out_channels.div_ceil(I::Words::VECTORS * I::LANES);
        let slots = (blocks.count * panels).min(SLOTS);
        Scratch::bytes::<i32>(geometry.out_channels + MAX_LANES)
            + Scratch::bytes::<u8>(plan.images_per_pass * plan.border.len())
            + Scratch::bytes::<i16>(blocks.count * blocks.len)
            + Scratch::bytes::<i32>(slots * Self::block_sums::<I>(&blocks))
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
        let plan = Self::plan(isa, geometry);
        let centres = scratch.take::<i32>(geometry.out_channels + MAX_LANES);
        centres.fill(0);
        for (centre, [positive, negative]) in centres.iter_mut().zip(&self.reach) {
            // x − z lies in −z..=255 − z, so Σ(x − z)w has its middle at (127.5 − z)·Σw.
            let middle = (255 - 2 * i64::from(zero_point)) * i64::from(positive + negative);
            *centre = (middle >> 1) as i32;
        }
        let images = plan.images_per_pass;
        let largest = Blocks::new(&plan, images, Self::POSITIONS);
        let slots = (largest.count * self.panels.count()).min(SLOTS);
        let image = scratch.take::<u8>(images * plan.border.len());
        let transformed = scratch.take::<i16>(largest.count * largest.len);
        let sums = scratch.take::<i32>(slots * Self::block_sums::<I>(&largest));
        let in_len = geometry.in_size[0] * geometry.in_size[1] * geometry.in_channels;
        for first in (0..geometry.batch).step_by(images) {
            let images = images.min(geometry.batch - first);
            // Fewer images in the last pass have blocks of another size: never more in all.
            let blocks = Blocks::new(&plan, images, Self::POSITIONS);
            let image = &mut image[..images * plan.border.len()];
            let input = &input[first * in_len..(first + images) * in_len];
            plan.border.write(isa, |code, _| code, input, zero_point, image);
            Self::transform(isa, &plan, &blocks, image, zero_point, transformed);
            let slots = slots.min(blocks.count * self.panels.count());
            let slot_len = Self::block_sums::<I>(&blocks);
            parallel::for_each_chunk(&mut sums[..slots * slot_len], slot_len, |slot, sums| {
                for task in part(blocks.count * self.panels.count(), slots, slot) {
                    let (block, panel) = (task / self.panels.count(), task % self.panels.count());
                    let tiles = blocks.range(block);
                    let words = &transformed[block * blocks.len..][..blocks.len];
                    self.products(isa, &blocks, words, tiles.len(), panel, sums);
                    // SAFETY: tasks differ in tiles or in channels, passes follow each other; the rest
                    // is the caller's promise.
                    unsafe {
                        self.outputs(
                            isa, geometry, &plan, first, tiles, panel, sums, centres, epilogue,
                        );
                    }
                }
            });
        }
    }

    /// `V` of all tiles of a pass.
    fn transform<I: Int8>(
        isa: I,
        plan: &Plan,
        blocks: &Blocks,
        image: &[u8],
        zero_point: u8,
        transformed: &mut [i16],
    ) {
        let [tiles_y, tiles_x] = plan.tiles;
        let strides = [plan.border.row, plan.border.pixel];
        parallel::for_each_chunk(transformed, blocks.len, |block, out| {
            for (i, tile) in blocks.range(block).enumerate() {
                let (n, y, x) =
                    (tile / tiles_x / tiles_y, tile / tiles_x % tiles_y, tile % tiles_x);
                let start =
                    n * plan.border.len() + y * V::OUT * strides[0] + x * V::OUT * strides[1];
                let (codes, out) = (&image[start..], &mut out[i * blocks.pixel..]);
                isa.enter(
                    #[inline(always)]
                    || {
                        for c in (0..blocks.pixel).step_by(2 * I::LANES) {
                            let (codes, out) = (&codes[c..], &mut out[c..]);
                            input_tile::<I, V>(
                                isa,
                                codes,
                                strides,
                                zero_point,
                                out,
                                blocks.position,
                            );
                        }
                    },
                );
            }
        });
    }

    /// `M[tile][t][width]` of a block of tiles.
    fn products<I: Int8>(
        &self,
        isa: I,
        blocks: &Blocks,
        transformed: &[i16],
        tiles: usize,
        panel: usize,
        sums: &mut [i32],
    ) {
        let width = self.panels.panel_width(panel);
        let run_len = self.panels.steps * width * <I::Words as Product>::GROUP;
        let weights = self.panels.panel(panel);
        let rows: [usize; BLOCK] = std::array::from_fn(|i| i.min(tiles - 1) * blocks.pixel);
        for position in 0..Self::POSITIONS {
            let strip = Strip::<I::Words> {
                image: &transformed[position * blocks.position..][..blocks.position],
                rows: &rows[..tiles.next_multiple_of(I::Words::ROW_STEP)],
                runs: &[0],
                steps: self.panels.steps,
                panel: &weights[position * run_len..][..run_len],
                width,
            };
            let keep = Keep {
                sums: Shared::new(&mut sums[position * width..]),
                stride: Self::POSITIONS * width,
            };
            let place = Place { row: 0, rows: tiles, column: 0, columns: width };
            // SAFETY: `sums` is this call's alone.
            unsafe { strip.multiply(isa.words(), &keep, place) };
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
        plan: &Plan,
        first: usize,
        block: Range<usize>,
        panel: usize,
        sums: &[i32],
        centres: &[i32],
        epilogue: &Epilogue,
    ) {
        let width = self.panels.panel_width(panel);
        let start = panel * self.panels.width;
        let [out_h, out_w] = geometry.out_size;
        let [tiles_y, tiles_x] = plan.tiles;
        for (tile, sums) in block.zip(sums.chunks_exact(Self::POSITIONS * width)) {
            let (n, y, x) = (tile / tiles_x / tiles_y, tile / tiles_x % tiles_y, tile % tiles_x);
            let (y, x) = (y * V::OUT, x * V::OUT);
            let rows = V::OUT.min(out_h - y);
            let pixels = V::OUT.min(out_w - x);
            let pixel = ((first + n) * out_h + y) * out_w + x;
            isa.enter(
                #[inline(always)]
                || {
                    for v in (0..width).step_by(I::LANES) {
                        let column = start + v;
                        let columns = (geometry.out_channels - column).min(I::LANES);
                        let centre = isa.load(&centres[column..]);
                        let bias = isa.add(isa.load(&epilogue.bias[column..]), centre);
                        let centre = isa.scale(centre, 1 << V::SHIFT);
                        let y = output_tile::<I, V>(isa, &sums[v..], width, centre, bias);
                        for (i, row) in y.iter().enumerate().take(rows) {
                            let [a, b, c, d] = row.map(|sums| [sums]);
                            let place =
                                Place { row: pixel + i * out_w, rows: pixels, column, columns };
                            // SAFETY: the caller's promise.
                            unsafe {
                                match pixels {
                                    _ if columns < I::LANES => {
                                        epilogue.ragged(isa, &[a, b, c, d], place);
                                    }
                                    4 => epilogue.whole(isa, &[a, b, c, d], place),
                                    3 => epilogue.whole(isa, &[a, b, c], place),
                                    2 => epilogue.whole(isa, &[a, b], place),
                                    _ => epilogue.whole(isa, &[a], place),
                                }
                            }
                        }
                    }
                },
            );
        }
    }
}
