use std::ops::{Deref, DerefMut, Range};

/// Values from a cache line on, as every engine gets them.
pub struct Aligned<T> {
    memory: Vec<T>,
    used: Range<usize>,
}

impl<T: Copy + Default> Aligned<T> {
    /// A copy.
    pub fn new(values: &[T]) -> Self {
        let mut memory = vec![T::default(); values.len() + 64];
        let start = memory.as_ptr().align_offset(64);
        let used = start..start + values.len();
        memory[used.clone()].copy_from_slice(values);
        Self { memory, used }
    }
}

impl<T> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.memory[self.used.clone()]
    }
}

impl<T> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.memory[self.used.clone()]
    }
}
