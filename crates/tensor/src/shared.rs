//! Memory that several tasks write to.

use std::marker::PhantomData;

use crate::simd::Isa;

/// Bytes that an L1 cache may hold.
const NEAR: usize = 1 << 16;

/// An output that tasks write at disjoint places, which no `split_at_mut` describes: each task owns
/// some columns of some rows.
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    borrows: PhantomData<&'a mut [T]>,
}

// SAFETY: elements are reached through `slice` and `pointer` alone; whoever writes there promises that no two tasks
// overlap.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(out: &'a mut [T]) -> Self {
        Self { start: out.as_mut_ptr(), len: out.len(), borrows: PhantomData }
    }

    /// All elements from `at` on.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn from(&self, at: usize) -> Shared<'_, T> {
        assert!(at <= self.len);
        // SAFETY: in bounds of the slice that `new` borrowed for 'a.
        Shared { start: unsafe { self.start.add(at) }, len: self.len - at, borrows: PhantomData }
    }

    /// `len` elements from `at` on.
    ///
    /// # Safety
    /// No other slice that overlaps this one is alive.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)] // the exclusive borrow is the one `new` took
    pub(crate) unsafe fn slice(&self, at: usize, len: usize) -> &mut [T] {
        // SAFETY: in bounds of the slice that `new` borrowed for 'a; unique by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(at, len), len) }
    }

    /// Whether there is more than an L1 cache holds.
    pub(crate) fn is_far(&self) -> bool {
        self.len * size_of::<T>() > NEAR
    }

    /// Says that `len` elements from `at` on are about to be written.
    #[inline(always)]
    pub(crate) fn ask<I: Isa>(&self, isa: I, at: usize, len: usize) {
        isa.prefetch_bytes(self.start.wrapping_add(at), len * size_of::<T>());
    }

    /// Where the elements from `at` on lie, of which there are `len`. Some may be another task's.
    #[inline(always)]
    pub(crate) fn pointer(&self, at: usize, len: usize) -> *mut T {
        assert!(at <= self.len && len <= self.len - at);
        // SAFETY: in bounds of the slice that `new` borrowed for 'a.
        unsafe { self.start.add(at) }
    }
}
