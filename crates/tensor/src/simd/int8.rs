//! What the integer kernels ask of an instruction set.
//!
//! Two traits, because one instruction set multiplies in two ways: [`Int8`] is a vector of `i32`
//! sums and what turns them into codes; a [`Product`] is a way to add `u8·i8` (direct kernels) or
//! `i16·i16` (Winograd) products to such sums. Blocking, packing and tails are written once above
//! them, in `gemm::int8`.

use std::ops::{Range, RangeInclusive};

use bytemuck::Pod;

use super::{Isa, limits};
use crate::conv::int8::{AddCodes, Grid};
use crate::gemm::int8::{Epilogue, Job};

/// An instruction set as the integer kernels see it: a vector of `i32` and the way to a code.
///
/// Slices hold at least `LANES` elements; a shorter one is a bug above and panics.
pub trait Int8: Isa {
    /// A vector of `i32`.
    type Acc: Copy;
    /// A vector of `2 · LANES` values of `i16`.
    type Half: Copy;
    /// How many `i32` an [`Int8::Acc`] holds.
    const LANES: usize;
    /// The exact `u8·i8` product.
    type Bytes: Product<Isa = Self, W = i8>;
    /// The exact `u8·i8` product for weights of −8..=8 (4 bits), where such are faster to multiply.
    type Narrow: Product<Isa = Self, W = i8>;
    /// The exact `i16·i16` product.
    type Words: Product<Isa = Self, X = i16, W = i16>;

    /// The token of the byte product.
    fn bytes(self) -> Self::Bytes;
    /// The token of the product of narrow weights, if [`Int8::Bytes`] is not as fast.
    #[inline(always)]
    fn narrow(self) -> Option<Self::Narrow> {
        None
    }
    /// The token of the word product.
    fn words(self) -> Self::Words;
    /// The channels (of input and output) between which F(4×4) Winograd beats the byte product. Below,
    /// its transforms cost more than they save; above, there are too few tiles for each transformed filter.
    fn winograd(self) -> RangeInclusive<usize>;
    /// All lanes zero.
    fn zero(self) -> Self::Acc;
    /// The first `LANES` of `from`.
    fn load(self, from: &[i32]) -> Self::Acc;
    /// Writes the first `LANES` of `to`.
    fn store(self, acc: Self::Acc, to: &mut [i32]);
    /// Lane by lane, modulo 2³².
    fn add(self, a: Self::Acc, b: Self::Acc) -> Self::Acc;
    /// Lane by lane, modulo 2³².
    fn sub(self, a: Self::Acc, b: Self::Acc) -> Self::Acc;
    /// Each lane times `k`, modulo 2³². Small constants become shifts and additions.
    fn scale(self, a: Self::Acc, k: i32) -> Self::Acc;
    /// Each lane divided by 2ⁿ, towards minus infinity.
    fn shift_right(self, a: Self::Acc, n: u32) -> Self::Acc;
    /// Codes in `0..=255`: `Requantize` after its bias has been added (see [`Grid`]).
    fn requantize(self, acc: Self::Acc, multiplier: &[f32], grid: Grid) -> Self::Acc;
    /// `add.apply(codes, other)` lane by lane.
    fn add_codes(self, codes: Self::Acc, other: &[u8], add: &AddCodes) -> Self::Acc;
    /// Codes as `i32`.
    fn load_codes(self, from: &[u8]) -> Self::Acc;
    /// Writes lanes, each in `0..=255`, as bytes.
    fn store_codes(self, codes: Self::Acc, to: &mut [u8]);
    /// [`store_codes`](Self::store_codes) of neighbouring vectors: a set with wide packing
    /// instructions does better than this.
    #[inline(always)]
    fn store_row<const NV: usize>(self, codes: [Self::Acc; NV], to: &mut [u8]) {
        for (v, codes) in codes.into_iter().enumerate() {
            self.store_codes(codes, &mut to[v * Self::LANES..]);
        }
    }
    /// [`requantize`](Self::requantize) and [`store_row`](Self::store_row).
    #[inline(always)]
    fn requantize_row<const NV: usize>(
        self,
        acc: [Self::Acc; NV],
        multiplier: &[f32],
        grid: Grid,
        to: &mut [u8],
    ) {
        let mut codes = acc;
        for (v, code) in codes.iter_mut().enumerate() {
            *code = self.requantize(*code, &multiplier[v * Self::LANES..], grid);
        }
        self.store_row(codes, to);
    }
    /// [`store_codes`](Self::store_codes) of a vector to each of four places.
    #[inline(always)]
    fn store_column(self, codes: [Self::Acc; 4], to: [&mut [u8]; 4]) {
        for (codes, to) in codes.into_iter().zip(to) {
            self.store_codes(codes, to);
        }
    }
    /// [`requantize`](Self::requantize) and [`store_column`](Self::store_column).
    #[inline(always)]
    fn requantize_column(
        self,
        acc: [Self::Acc; 4],
        multiplier: &[f32],
        grid: Grid,
        to: [&mut [u8]; 4],
    ) {
        let mut codes = acc;
        for code in &mut codes {
            *code = self.requantize(*code, multiplier, grid);
        }
        self.store_column(codes, to);
    }
    /// The first `2 · LANES` codes.
    fn widen_codes(self, codes: &[u8]) -> Self::Half;
    /// The first `2 · LANES` weights.
    fn widen_weights(self, weights: &[i8]) -> Self::Half;
    /// Writes the first `2 · LANES` of `to`.
    fn store_half(self, half: Self::Half, to: &mut [i16]);
    /// Lane by lane, modulo 2¹⁶.
    fn add_half(self, a: Self::Half, b: Self::Half) -> Self::Half;
    /// Lane by lane, modulo 2¹⁶.
    fn sub_half(self, a: Self::Half, b: Self::Half) -> Self::Half;
    /// Each lane times `k`, modulo 2¹⁶.
    fn scale_half(self, a: Self::Half, k: i16) -> Self::Half;
    /// `acc + x·w` lane by lane; each `w` is a sign-extended `i8`. The tap of a depthwise window.
    fn tap(self, acc: Self::Acc, x: &[u8], w: &[i32]) -> Self::Acc;
}

/// A way to multiply: how `x` and `w` lie in memory, and the step that multiplies a tile of them.
pub trait Product: Copy + Send + Sync + 'static {
    /// The instruction set that does it.
    type Isa: Int8;
    /// An activation in the image that the kernel reads.
    type X: Pod + Send + Sync;
    /// A weight in a packed panel.
    type W: Pod + Send + Sync;
    /// How many neighbouring `k` a step multiplies and adds.
    const GROUP: usize;
    /// Whether the image is the codes themselves, so that an input may be read in place.
    const RAW: bool;
    /// Most rows (pixels) a tile has.
    const ROWS: usize;
    /// Rows of a tile are a multiple of this; the driver repeats the last row to reach it.
    const ROW_STEP: usize = 1;
    /// Most vectors (of `LANES` output channels) a tile has.
    const VECTORS: usize;
    /// Steps that are multiplied together: runs are padded with zero weights to a multiple.
    const STEPS: usize = 1;
    /// Multiply-accumulates of a large task: some 50 µs, or 20 with VNNI, so that threads end at about the same time. An
    /// eighth of it hides the cost of starting one.
    const TASK: usize = 1 << 22;
    /// Most panels that a tile of rows meets before the next one. More than one where tiles are multiplied so fast
    /// that rows had better stay in an L1 cache meanwhile, and what is written for them come together.
    const TOGETHER: usize = 1;
    /// Tasks have a multiple of so many rows.
    const TASK_ROWS: usize = 1;

    /// The token.
    fn isa(self) -> Self::Isa;

    /// The image's form of code `x` under zero point `zero`.
    fn encode(x: u8, zero: u8) -> Self::X;

    /// `encode(zero, zero)` as a number: what the sum holds too much of, once for each weight.
    fn excess(zero: u8) -> i32;

    /// `acc[i][v] += Σ x[i][offset + g] · w[v][g]` over a group, `w` being one of the steps of
    /// `[NV][STEPS][LANES][GROUP]` in memory.
    ///
    /// # Safety
    /// `GROUP` elements are readable at each `x[i] + offset`, `LANES · GROUP` at `w` and at each of the other
    /// vectors.
    unsafe fn step<const MR: usize, const NV: usize>(
        self,
        acc: &mut [[<Self::Isa as Int8>::Acc; NV]; MR],
        x: &[*const Self::X; MR],
        offset: usize,
        w: *const Self::W,
    );

    /// `steps` steps in a row, a multiple of [`STEPS`](Self::STEPS), from `offset` and `w` on.
    ///
    /// # Safety
    /// As [`step`](Self::step), for each of them; there is one at the least.
    #[inline(always)]
    unsafe fn steps<const MR: usize, const NV: usize>(
        self,
        acc: &mut [[<Self::Isa as Int8>::Acc; NV]; MR],
        x: &[*const Self::X; MR],
        offset: usize,
        w: *const Self::W,
        steps: usize,
    ) {
        let vector = <Self::Isa as Int8>::LANES * Self::GROUP;
        let (mut w, mut at, end) = (w, offset, offset + steps * Self::GROUP);
        loop {
            for step in 0..Self::STEPS {
                // SAFETY: the caller's promise.
                unsafe { self.step(acc, x, at + step * Self::GROUP, w.add(step * vector)) }
            }
            // SAFETY: as above: behind the vectors of these steps.
            w = unsafe { w.add(NV * Self::STEPS * vector) };
            at += Self::STEPS * Self::GROUP;
            if at >= end {
                break;
            }
        }
    }

    /// Multiplies some rows of `job` with some of its panels. An instruction set that has more than
    /// vectors to multiply with does something else here than [`Job::in_registers`].
    ///
    /// # Safety
    /// Nobody else touches these rows of the panels' columns in the output meanwhile.
    #[inline(always)]
    unsafe fn multiply(
        self,
        job: &Job<'_, Self>,
        rows: Range<usize>,
        panels: Range<usize>,
        epilogue: &Epilogue<'_>,
    ) {
        // SAFETY: the caller's promise.
        unsafe { job.in_registers(self, rows, panels, epilogue) }
    }

    /// `steps` steps of a whole tile without a load, as multiply-accumulates: what `limits` measures.
    #[inline(always)]
    fn limit(self, steps: usize) -> u64 {
        limits::in_registers(self, steps)
    }

    /// `acc` multiplied with itself and added to itself, as [`step`](Self::step) multiplies: the
    /// step of [`limit`](Self::limit).
    fn spin(self, acc: <Self::Isa as Int8>::Acc) -> <Self::Isa as Int8>::Acc;

    /// The sums before the first step.
    #[inline(always)]
    fn start<const MR: usize, const NV: usize>(
        self,
        bias: [<Self::Isa as Int8>::Acc; NV],
    ) -> [[<Self::Isa as Int8>::Acc; NV]; MR] {
        [bias; MR]
    }

    /// The sums after the last step. Only an instruction that leaves them in another order has
    /// something to do here, and to leave undone in [`start`](Self::start).
    #[inline(always)]
    fn finish<const MR: usize, const NV: usize>(
        self,
        acc: [[<Self::Isa as Int8>::Acc; NV]; MR],
        _bias: [<Self::Isa as Int8>::Acc; NV],
    ) -> [[<Self::Isa as Int8>::Acc; NV]; MR] {
        acc
    }
}
