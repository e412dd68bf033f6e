//! Shared memory: of our own, 64-byte aligned (one cache line, and the widest vector there is), or lent
//! by others.

mod derived;
mod pool;

use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use bytemuck::AnyBitPattern;

use crate::Element;
use crate::element::any_bits;
use derived::Derived;
pub(crate) use derived::Key;
use pool::Block;

/// Bytes that others own: a file in memory, a memory map.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A fixed number of elements. Shared through an `Arc`; written only by its one owner, or after a copy
/// (see `Tensor::data_mut`); what is lent is never written.
///
/// The memory always starts at an aligned, non-null address (64 bytes are more than any element needs; a
/// dangling pointer is used for no bytes only) and holds `len` initialised elements: zero bytes, which
/// are a valid `Element`, a copy of a slice, or what `recycled` argues. Lent ones were the elements of
/// a slice borrowed from the lender, which is kept alive and, an `Arc` being shared, cannot be borrowed
/// mutably.
pub(crate) struct Storage<T> {
    memory: Memory<T>,
    len: usize,
    derived: Derived,
    owns: PhantomData<T>,
}

/// Where the elements are.
enum Memory<T> {
    Own(Block),
    Lent { start: NonNull<T>, _lender: SharedBytes },
}

// SAFETY: `Storage` owns its memory as `Vec<T>` does: no aliasing beyond what references to it
// allow, and every `Element` is `Send` and `Sync` itself, as is a lender.
unsafe impl<T: Element> Send for Storage<T> {}
// SAFETY: as above; `&Storage<T>` gives out `&[T]` only.
unsafe impl<T: Element> Sync for Storage<T> {}

impl<T: Element> Storage<T> {
    /// `len` elements of zero bytes. The caller has checked that `len` elements fit `isize::MAX`
    /// bytes (`shape::checked_len`).
    pub(crate) fn zeroed(len: usize) -> Self {
        Self::own(Block::zeroed(Self::bytes(len)), len)
    }

    pub(crate) fn from_slice(data: &[T]) -> Self {
        let storage = Self::own(Block::recycled(Self::bytes(data.len())), data.len());
        let target = storage.start();
        // SAFETY: the block holds `len` elements and is aligned for them; it is new, so that it does not
        // overlap `data`. Elements are plain data: nothing needs to be dropped in the block.
        unsafe { target.as_ptr().copy_from_nonoverlapping(data.as_ptr(), data.len()) };
        storage
    }

    fn own(block: Block, len: usize) -> Self {
        Self { memory: Memory::Own(block), len, derived: Derived::default(), owns: PhantomData }
    }

    /// The elements that `range` of the lender's bytes holds, if they are aligned and whole.
    pub(crate) fn lent(lender: &SharedBytes, range: Range<usize>) -> Option<Self>
    where
        T: AnyBitPattern,
    {
        let bytes = (**lender).as_ref().get(range)?;
        let elements: &[T] = bytemuck::try_cast_slice(bytes).ok()?;
        let start = NonNull::from(elements).cast();
        let memory = Memory::Lent { start, _lender: Arc::clone(lender) };
        let len = elements.len();
        Some(Self { memory, len, derived: Derived::default(), owns: PhantomData })
    }

    /// Whether the memory is another's, to be read only.
    pub(crate) fn is_lent(&self) -> bool {
        matches!(self.memory, Memory::Lent { .. })
    }

    fn start(&self) -> NonNull<T> {
        match &self.memory {
            Memory::Own(block) => block.start().cast(),
            Memory::Lent { start, .. } => *start,
        }
    }

    pub(crate) fn as_slice(&self) -> &[T] {
        // SAFETY: the memory is aligned, non-null, alive with `self`, and holds `len` initialised
        // elements: what `Storage` promises of it, lent or not.
        unsafe { std::slice::from_raw_parts(self.start().as_ptr(), self.len) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        assert!(!self.is_lent(), "lent memory is read only");
        self.derived.forget();
        // SAFETY: as in `as_slice`; the memory is our own, and `&mut self` makes the reference unique.
        unsafe { std::slice::from_raw_parts_mut(self.start().as_ptr(), self.len) }
    }

    /// What `make` derives from the elements: kept from the second time on, until they are written.
    pub(crate) fn derived<R: Send + Sync + 'static>(
        &self,
        key: Key,
        make: impl FnOnce() -> R,
    ) -> Arc<R> {
        self.derived.get(key, make)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn bytes(len: usize) -> usize {
        len.checked_mul(size_of::<T>()).expect("lengths are checked by the shape")
    }

    /// `len` elements of any value, for who overwrites them all: clearing memory first would be a
    /// good part of what writing a result costs.
    pub(crate) fn recycled(len: usize) -> Self {
        if !any_bits::<T>() {
            return Self::zeroed(len);
        }
        let mut block = Block::recycled(Self::bytes(len));
        if cfg!(debug_assertions) {
            // NaN in floats: what is not overwritten shows in the tests.
            block.fill(0xFF);
        }
        // What a block holds is initialised, and any bits are a `T`: `as_slice` holds.
        Self::own(block, len)
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
    fn lent_memory_is_not_copied_and_outlives_its_first_holder() {
        let lender: SharedBytes = Arc::new((0..64u8).collect::<Vec<_>>());
        let start = (*lender).as_ref().as_ptr();
        let storage = Storage::<i8>::lent(&lender, 3..10).unwrap();
        assert!(Storage::<i8>::lent(&lender, 60..65).is_none());
        let odd = 1 + start.align_offset(4);
        assert!(Storage::<f32>::lent(&lender, odd..odd + 4).is_none());
        assert!(Storage::<f32>::lent(&lender, odd - 1..odd + 2).is_none());
        drop(lender);
        assert_eq!(storage.as_slice().as_ptr().cast::<u8>(), start.wrapping_add(3));
        assert_eq!(storage.as_slice(), [3, 4, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn what_is_derived_is_kept_until_the_elements_are_written() {
        let mut storage = Storage::from_slice(&[1.0f32, 2.0]);
        let mut made = 0;
        let mut sum = |storage: &Storage<f32>, what| {
            let key = Key { what, level: crate::Level::current(), shape: vec![2] };
            let sum = storage.derived(key, || {
                made += 1;
                storage.as_slice().iter().sum::<f32>()
            });
            (*sum, made)
        };
        assert_eq!(sum(&storage, "sum"), (3.0, 1));
        assert_eq!(sum(&storage, "sum"), (3.0, 2));
        assert_eq!(sum(&storage, "sum"), (3.0, 2));
        assert_eq!(sum(&storage, "another sum"), (3.0, 3));
        storage.as_mut_slice()[0] = 5.0;
        assert_eq!(sum(&storage, "another sum"), (7.0, 4));
        assert_eq!(sum(&storage, "another sum"), (7.0, 5));
        storage.as_mut_slice()[0] = 6.0;
        assert_eq!(sum(&storage, "another sum"), (8.0, 6));
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
