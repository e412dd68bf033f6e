//! Large blocks of memory, kept for the next tensor of about their size.
//!
//! A network asks for the same sizes step after step. Giving their pages back to the system, and having
//! them faulted in and cleared again, costs more than a light operator computes.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

const ALIGN: usize = 64;

/// Smaller blocks are the allocator's business.
const LARGE: usize = 1 << 16;

/// Bytes kept at the most.
const KEPT: usize = 1 << 28;

/// Initialised, 64-byte aligned memory that goes to the pool when it is dropped; `None` is no bytes.
pub(super) struct Block(Option<Memory>);

/// Memory from the allocator, initialised.
struct Memory {
    start: NonNull<u8>,
    /// As allocated: at least what was asked for, and not zero.
    bytes: usize,
}

// SAFETY: it owns what it points at, and gives out nothing but the pointer.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    fn new(bytes: usize) -> Self {
        // SAFETY: the caller asks for at least one byte, so that the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout(bytes)) };
        let start = NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout(bytes)));
        Self { start, bytes }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `new` allocated it with this layout; it is freed once, here.
        unsafe { dealloc(self.start.as_ptr(), layout(self.bytes)) }
    }
}

impl Block {
    /// Zeros.
    pub(super) fn zeroed(bytes: usize) -> Self {
        match take(bytes) {
            Some(memory) => {
                let mut block = Self(Some(memory));
                block.fill(0);
                block
            }
            None => Self::new(bytes),
        }
    }

    /// Zeros, or whatever another tensor held.
    pub(super) fn recycled(bytes: usize) -> Self {
        take(bytes).map_or_else(|| Self::new(bytes), |memory| Self(Some(memory)))
    }

    fn new(bytes: usize) -> Self {
        Self((bytes > 0).then(|| Memory::new(rounded(bytes))))
    }

    /// Where it starts; aligned, and dangling if there are no bytes.
    pub(super) fn start(&self) -> NonNull<u8> {
        #[repr(align(64))]
        struct Aligned;
        self.0.as_ref().map_or(NonNull::<Aligned>::dangling().cast(), |memory| memory.start)
    }

    pub(super) fn fill(&mut self, byte: u8) {
        if let Some(memory) = &mut self.0 {
            // SAFETY: the memory has this many bytes, and `&mut self` makes the access unique.
            unsafe { memory.start.as_ptr().write_bytes(byte, memory.bytes) }
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(memory) = self.0.take().filter(|memory| memory.bytes >= LARGE) {
            let mut pool = pool();
            let pool = pool.get_or_insert_default();
            if pool.bytes + memory.bytes > KEPT {
                // Sizes that nobody asks for any more must not stay for ever: start again.
                *pool = Pool::default();
            }
            if memory.bytes <= KEPT {
                pool.bytes += memory.bytes;
                pool.free.entry(memory.bytes).or_default().push(memory);
            }
        }
    }
}

#[derive(Default)]
struct Pool {
    /// By size.
    free: HashMap<usize, Vec<Memory>>,
    bytes: usize,
}

fn pool() -> MutexGuard<'static, Option<Pool>> {
    static POOL: Mutex<Option<Pool>> = Mutex::new(None);
    // Whatever panicked elsewhere, the pool is whole.
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

fn take(bytes: usize) -> Option<Memory> {
    if bytes < LARGE {
        return None;
    }
    let mut pool = pool();
    let pool = pool.as_mut()?;
    let memory = pool.free.get_mut(&rounded(bytes))?.pop()?;
    pool.bytes -= memory.bytes;
    Some(memory)
}

/// Large sizes in steps of an eighth, so that those of about equal tensors are equal.
fn rounded(bytes: usize) -> usize {
    if bytes < LARGE { bytes } else { bytes.next_multiple_of(1 << (bytes.ilog2() - 3)) }
}

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes, ALIGN).expect("lengths are checked by the shape")
}
