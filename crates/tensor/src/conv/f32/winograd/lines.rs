//! What tiles are read from and written to: lines at equal distances, a vector of each at a time.

use crate::simd::f32::Float;

/// `count` lines of `len` values, `step` apart: the rows of pixels under a tile, or the places of all
/// transformed tiles.
///
/// A tile touches up to 36 lines at one position. Checked indexing would test each of them, since the compiler
/// cannot follow `line·step`; here the position is tested.
pub(super) struct Lines<D> {
    data: D,
    step: usize,
    count: usize,
    len: usize,
}

/// The same values at every call, which `AsRef` does not promise.
pub(super) trait Values {
    fn values(&self) -> &[f32];
}

impl Values for &[f32] {
    #[inline(always)]
    fn values(&self) -> &[f32] {
        self
    }
}

impl Values for &mut [f32] {
    #[inline(always)]
    fn values(&self) -> &[f32] {
        self
    }
}

impl<D: Values> Lines<D> {
    /// # Panics
    /// If the last line would end behind the data.
    #[inline(always)]
    pub(super) fn new(data: D, step: usize, count: usize, len: usize) -> Self {
        let room = data.values().len().checked_sub(len).expect("a line in the data");
        assert!(count <= 1 || step <= room / (count - 1), "all lines in the data");
        Self { data, step, count, len }
    }

    /// Where the vector of a line from `at` on begins.
    #[inline(always)]
    fn start<I: Float>(&self, line: usize, at: usize) -> usize {
        assert!(line < self.count, "line {line}");
        assert!(at <= self.len && I::LANES <= self.len - at, "a vector from {at} on");
        line * self.step + at
    }

    /// The vector of a line from `at` on.
    #[inline(always)]
    pub(super) fn load<I: Float>(&self, isa: I, line: usize, at: usize) -> I::Vector {
        let start = self.start::<I>(line, at);
        // SAFETY: `new` has seen that `(count − 1)·step + len` is at most the length of the data, and
        // `start` that `line < count` and `at + LANES <= len`.
        isa.load(unsafe { self.data.values().get_unchecked(start..start + I::LANES) })
    }
}

impl Lines<&mut [f32]> {
    /// Overwrites the vector of a line from `at` on.
    #[inline(always)]
    pub(super) fn store<I: Float>(&mut self, isa: I, line: usize, at: usize, x: I::Vector) {
        let start = self.start::<I>(line, at);
        // SAFETY: as in `load`.
        isa.store(unsafe { self.data.get_unchecked_mut(start..start + I::LANES) }, x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Isa, Scalar};

    const LANES: usize = <Scalar as Float>::LANES;

    #[test]
    fn lines_overlap_or_have_gaps() {
        let isa = Scalar::detect().expect("always there");
        let mut data = Vec::from_iter((0..100).map(|i| i as f32));
        for (step, len) in [(3, 20), (40, LANES), (0, 100)] {
            let mut lines = Lines::new(&mut data[..], step, 3, len);
            for line in 0..3 {
                for at in 0..=len - LANES {
                    let first = lines.load(isa, line, at);
                    assert_eq!(first[0], (line * step + at) as f32);
                    lines.store(isa, line, at, first);
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "all lines")]
    fn the_last_line_ends_in_the_data() {
        Lines::new(&[0.0; 99][..], 40, 3, 20);
    }

    #[test]
    #[should_panic(expected = "a vector from")]
    fn a_vector_ends_in_its_line() {
        let isa = Scalar::detect().expect("always there");
        Lines::new(&[0.0; 100][..], 40, 3, 20).load(isa, 0, 21 - LANES);
    }
}
