//! Shared, 64-byte aligned memory: one cache line, and the widest vector there is.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::marker::PhantomData;
use std::ptr::NonNull;

use crate::Element;

const ALIGN: usize = 64;

/// A fixed number of elements in 64-byte aligned memory. Shared through an `Arc`; written only by
/// its one owner, or after a copy (see `Tensor::data_mut`).
pub(crate) struct Storage<T> {
    start: NonNull<T>,
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
        let layout = Self::layout(len);
        if layout.size() == 0 {
            return Self { start: NonNull::dangling(), len, owns: PhantomData };
        }
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let start = NonNull::new(start.cast()).unwrap_or_else(|| handle_alloc_error(layout));
        Self { start, len, owns: PhantomData }
    }

    pub(crate) fn from_slice(data: &[T]) -> Self {
        let mut storage = Self::zeroed(data.len());
        storage.as_mut_slice().copy_from_slice(data);
        storage
    }

    pub(crate) fn as_slice(&self) -> &[T] {
        // SAFETY: `start` is non-null, aligned for `T` (64 is more than any element needs; a
        // dangling pointer is used for no bytes only) and points at `len` elements that
        // `alloc_zeroed` initialised: zero bytes are a valid `Element`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as in `as_slice`; `&mut self` makes the reference unique.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    fn layout(len: usize) -> Layout {
        let bytes = len.checked_mul(size_of::<T>()).expect("lengths are checked by the shape");
        Layout::from_size_align(bytes, ALIGN).expect("lengths are checked by the shape")
    }
}

impl<T> Drop for Storage<T> {
    fn drop(&mut self) {
        let bytes = self.len * size_of::<T>();
        if bytes > 0 {
            // SAFETY: the memory was allocated in `zeroed` with this size and alignment, both of
            // which `Layout` accepted there, and is freed once.
            unsafe {
                dealloc(self.start.as_ptr().cast(), Layout::from_size_align_unchecked(bytes, ALIGN))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zeroed_and_aligned() {
        let storage = Storage::<f32>::zeroed(1000);
        assert_eq!(storage.as_slice().as_ptr() as usize % ALIGN, 0);
        assert!(storage.as_slice().iter().all(|&x| x == 0.0));
        assert!(Storage::<bool>::zeroed(0).as_slice().is_empty());
    }
}
