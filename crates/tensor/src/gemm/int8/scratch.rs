//! Working memory, cut from the bytes a caller lends.

use bytemuck::{AnyBitPattern, NoUninit};

const ALIGN: usize = 64;

/// What is left of the lent bytes.
pub(crate) struct Scratch<'a>(&'a mut [u8]);

impl<'a> Scratch<'a> {
    pub(crate) fn new(bytes: &'a mut [u8]) -> Self {
        Self(bytes)
    }

    /// The next `len` elements, at a 64-byte boundary, with whatever they hold.
    pub(crate) fn take<T: NoUninit + AnyBitPattern>(&mut self, len: usize) -> &'a mut [T] {
        let bytes = std::mem::take(&mut self.0);
        let skip = (bytes.as_ptr() as usize).wrapping_neg() % ALIGN;
        let needed = skip + len * size_of::<T>();
        assert!(needed <= bytes.len(), "scratch memory is shorter than scratch_len");
        let (taken, rest) = bytes.split_at_mut(needed);
        self.0 = rest;
        bytemuck::cast_slice_mut(&mut taken[skip..])
    }

    /// Elements of `T` that there is room for, wherever they will begin.
    pub(crate) fn room<T>(&self) -> usize {
        self.0.len().saturating_sub(ALIGN) / size_of::<T>()
    }

    /// Bytes that [`take`](Self::take) may need for `len` elements of `T`.
    pub(crate) fn bytes<T>(len: usize) -> usize {
        len * size_of::<T>() + ALIGN
    }
}
