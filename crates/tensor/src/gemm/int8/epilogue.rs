//! From a tile of sums to the output: raw, requantized, or requantized and added to a residual.

use std::marker::PhantomData;
use std::ops::Range;

use crate::conv::int8::{AddCodes, Grid};
use crate::simd::int8::Int8;

/// What becomes of the sums. Row-major, `channels` wide.
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
    /// As codes.
    Requantize {
        /// One a channel; at least a vector longer than the channels.
        multiplier: &'a [f32],
        grid: Grid,
        /// Added behind the rounding: the other summand has the output's shape.
        add: Option<(&'a AddCodes, &'a [u8])>,
        codes: Shared<'a, u8>,
    },
}

impl Epilogue<'_> {
    /// Finishes `rows` rows of sums, `tile` being `[rows][stride]`, for the given columns.
    ///
    /// # Safety
    /// While this runs nobody else touches these rows and columns of the output.
    pub(crate) unsafe fn finish<I: Int8>(
        &self,
        isa: I,
        tile: &[i32],
        stride: usize,
        rows: Range<usize>,
        columns: Range<usize>,
    ) {
        isa.enter(
            #[inline(always)]
            || {
                for start in columns.clone().step_by(I::LANES) {
                    let len = (columns.end - start).min(I::LANES);
                    let bias = isa.load(&self.bias[start..]);
                    for (i, row) in rows.clone().enumerate() {
                        let sums = &tile[i * stride + start - columns.start..];
                        let sums = isa.add(isa.load(sums), bias);
                        let at = row * self.channels + start;
                        match &self.sink {
                            Sink::Accumulate(out) => {
                                // SAFETY: the caller's promise.
                                let out = unsafe { out.slice(at, len) };
                                if len == I::LANES {
                                    isa.store(sums, out);
                                } else {
                                    let mut lanes = [0; MAX_LANES];
                                    isa.store(sums, &mut lanes);
                                    out.copy_from_slice(&lanes[..len]);
                                }
                            }
                            Sink::Requantize { multiplier, grid, add, codes } => {
                                // SAFETY: the caller's promise.
                                let out = unsafe { codes.slice(at, len) };
                                let mut codes = isa.requantize(sums, &multiplier[start..], *grid);
                                if let Some((add, other)) = add {
                                    let other = &other[at..at + len];
                                    codes = if len == I::LANES {
                                        isa.add_codes(codes, other, add)
                                    } else {
                                        let mut lanes = [0; MAX_LANES];
                                        lanes[..len].copy_from_slice(other);
                                        isa.add_codes(codes, &lanes, add)
                                    };
                                }
                                if len == I::LANES {
                                    isa.store_codes(codes, out);
                                } else {
                                    let mut lanes = [0; MAX_LANES];
                                    isa.store_codes(codes, &mut lanes);
                                    out.copy_from_slice(&lanes[..len]);
                                }
                            }
                        }
                    }
                }
            },
        );
    }
}

/// More lanes than any vector has.
pub(crate) const MAX_LANES: usize = 64;

/// An output that tasks write at disjoint places, which no `split_at_mut` describes: each task owns
/// some columns of some rows.
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    borrows: PhantomData<&'a mut [T]>,
}

// SAFETY: `slice` is the only access, and its callers promise that no two tasks overlap.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(out: &'a mut [T]) -> Self {
        Self { start: out.as_mut_ptr(), len: out.len(), borrows: PhantomData }
    }

    /// `len` elements from `at` on.
    ///
    /// # Safety
    /// No other slice that overlaps this one is alive.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)] // the exclusive borrow is the one `new` took
    pub(crate) unsafe fn slice(&self, at: usize, len: usize) -> &mut [T] {
        assert!(at <= self.len && len <= self.len - at);
        // SAFETY: in bounds of the slice that `new` borrowed for 'a; unique by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}
