//! Shared, 64-byte aligned memory: one cache line, and the widest vector there is.

mod pool;

use std::marker::PhantomData;
use std::ptr::NonNull;

use bytemuck::AnyBitPattern;

use crate::Element;
use pool::Block;

/// A fixed number of elements in 64-byte aligned memory. Shared through an `Arc`; written only by
/// its one owner, or after a copy (see `Tensor::data_mut`).
pub(crate) struct Storage<T> {
    block: Block,
    len: usize,
    owns: PhantomData<T>,
}

// SAFETY: `Storage` owns its memory as `Vec<T>` does: no aliasing beyond what references to it
// allow, and every `Element` is `Send` and `Sync` itself.
unsafe impl<T: Element> Send for Storage<T> {}
// SAFETY: as above; `&Storage<T>` gives out `&[T]` only.
unsafe impl<T: Element> Sync for Storage<T> {}

impl<T: Element> Storage<T> {
    /// `len` elements of zero bytes. The caller has checked that `len` elements fit `isize::MAX`
    /// bytes (`shape::checked_len`).
    pub(crate) fn zeroed(len: usize) -> Self {
        Self { block: Block::zeroed(Self::bytes(len)), len, owns: PhantomData }
    }

    pub(crate) fn from_slice(data: &[T]) -> Self {
        let storage = Self {
            block: Block::recycled(Self::bytes(data.len())),
            len: data.len(),
            owns: PhantomData,
        };
        let target: NonNull<T> = storage.block.start().cast();
        // SAFETY: the block holds `len` elements and is aligned for them; it is new, so that it does not
        // overlap `data`. Elements are plain data: nothing needs to be dropped in the block.
        unsafe { target.as_ptr().copy_from_nonoverlapping(data.as_ptr(), data.len()) };
        storage
    }

    pub(crate) fn as_slice(&self) -> &[T] {
        // SAFETY: the block is non-null, aligned for `T` (64 is more than any element needs; a
        // dangling pointer is used for no bytes only) and holds `len` elements that are initialised:
        // to zero bytes, which are a valid `Element`, from a slice of them, or to what
        // `recycled` argues.
        unsafe { std::slice::from_raw_parts(self.block.start().cast().as_ptr(), self.len) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as in `as_slice`; `&mut self` makes the reference unique.
        unsafe { std::slice::from_raw_parts_mut(self.block.start().cast().as_ptr(), self.len) }
    }

    fn bytes(len: usize) -> usize {
        len.checked_mul(size_of::<T>()).expect("lengths are checked by the shape")
    }
}

impl<T: Element + AnyBitPattern> Storage<T> {
    /// `len` elements of any value, for who overwrites them all: clearing memory first would be a
    /// good part of what writing a result costs.
    pub(crate) fn recycled(len: usize) -> Self {
        let block = Block::recycled(Self::bytes(len));
        // What a block holds is initialised, and any bits are a `T`: `as_slice` holds.
        let mut storage = Self { block, len, owns: PhantomData };
        if cfg!(debug_assertions) {
            // NaN in floats: what is not overwritten shows in the tests.
            storage.block.fill(0xFF);
        }
        storage
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zeroed_and_aligned() {
        let storage = Storage::<f32>::zeroed(1000);
        assert_eq!(storage.as_slice().as_ptr() as usize % 64, 0);
        assert!(storage.as_slice().iter().all(|&x| x == 0.0));
        assert!(Storage::<bool>::zeroed(0).as_slice().is_empty());
    }

    #[test]
    fn zeroed_memory_is_zero_after_it_has_been_used() {
        for _ in 0..3 {
            let mut storage = Storage::<f32>::zeroed(1 << 18);
            assert!(storage.as_slice().iter().all(|&x| x == 0.0));
            storage.as_mut_slice().fill(1.0);
            assert_eq!(Storage::from_slice(storage.as_slice()).as_slice(), storage.as_slice());
        }
    }
}
