//! Splitting work by shape, never by the number of threads, so that results do not depend on it.
//!
//! The only file of the engine that names rayon. Work runs on the pool the caller is in
//! (`rayon::ThreadPool::install`), else on the global one; with one thread it runs in place,
//! without rayon's overhead.

use rayon::prelude::*;

/// Elements a task of an elementwise pass handles: large enough to hide a task's cost, small
/// enough to stay in the L2 cache.
pub const CHUNK: usize = 1 << 14;

/// The same for a pass over 8-bit codes: vectors hold four times as many, and a task costs the same.
pub(crate) const CODES: usize = 4 * CHUNK;

/// How many threads the current pool has.
pub fn threads() -> usize {
    rayon::current_num_threads()
}

/// Calls `f(i)` for each `i` below `tasks`, in any order, on the current pool.
pub fn for_each(tasks: usize, f: impl Fn(usize) + Sync + Send) {
    if tasks <= 1 || threads() == 1 {
        (0..tasks).for_each(f);
    } else {
        (0..tasks).into_par_iter().for_each(f);
    }
}

/// Calls `f(i, chunk)` for each `size`-element chunk of `data` (the last may be shorter).
pub fn for_each_chunk<T: Send>(
    data: &mut [T],
    size: usize,
    f: impl Fn(usize, &mut [T]) + Sync + Send,
) {
    if data.len() <= size || threads() == 1 {
        data.chunks_mut(size.max(1)).enumerate().for_each(|(i, chunk)| f(i, chunk));
    } else {
        data.par_chunks_mut(size.max(1)).enumerate().for_each(|(i, chunk)| f(i, chunk));
    }
}

/// Calls `f(i, item)` for each item: for tasks that write to more than one place.
pub fn for_each_item<T: Send>(items: Vec<T>, f: impl Fn(usize, T) + Sync + Send) {
    if items.len() <= 1 || threads() == 1 {
        items.into_iter().enumerate().for_each(|(i, item)| f(i, item));
    } else {
        items.into_par_iter().enumerate().for_each(|(i, item)| f(i, item));
    }
}

/// `f(0) .. f(tasks - 1)`, in order: the caller adds them up in that order, whatever ran first.
pub fn map<R: Send>(tasks: usize, f: impl Fn(usize) -> R + Sync + Send) -> Vec<R> {
    if tasks <= 1 || threads() == 1 {
        (0..tasks).map(f).collect()
    } else {
        (0..tasks).into_par_iter().map(f).collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    /// What `f` returns on a pool of `threads` threads.
    pub(crate) fn with_threads<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
    }
}
