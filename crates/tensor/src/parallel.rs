//! Splitting work by shape, never by the number of threads, so that results do not depend on it.
//!
//! With its folder the only place of the engine that names rayon. Work runs on the pool the caller is in
//! (`rayon::ThreadPool::install`); a caller of none does it with threads of the global pool, and is one of as many as
//! that has; with one thread it runs in place, without rayon's overhead. [`Threads`] says it for a whole
//! computation. Which thread does which task follows its number: see [`shares`].

mod shares;
mod team;

use std::cell::Cell;
use std::sync::Arc;

use rayon::prelude::*;

use crate::shared::Shared;
pub(crate) use shares::Shares;
use team::Arrival;

/// Elements a task of an elementwise pass handles: large enough to hide a task's cost, small
/// enough to stay in the L2 cache.
pub const CHUNK: usize = 1 << 14;

/// The same for a pass over 8-bit codes: vectors hold four times as many, and a task costs the same.
pub(crate) const CODES: usize = 4 * CHUNK;

/// How many threads the current pool has.
pub fn threads() -> usize {
    if ALONE.get() { 1 } else { rayon::current_num_threads() }
}

/// Which of those who share the tasks of a loop this is.
pub(crate) fn thread() -> usize {
    team::number()
}

thread_local! {
    /// Whether this thread does everything itself.
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// Which threads a computation runs on. The choice changes no result.
///
/// ```
/// use ottava_tensor::parallel::{Threads, threads};
///
/// assert_eq!(Threads::One.run(threads), 1);
/// let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build()?;
/// assert_eq!(Threads::Pool(pool.into()).run(threads), 3);
/// # Ok::<(), rayon::ThreadPoolBuildError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub enum Threads {
    /// Those of the rayon pool that the caller is in. Else the calling thread and all but one of the global pool,
    /// which is made when it is first needed.
    #[default]
    Current,
    /// The calling thread: rayon is not asked, and makes no threads.
    One,
    /// Those of this pool. A caller outside of it hands all of the computation over, and waits.
    Pool(Arc<rayon::ThreadPool>),
}

impl Threads {
    /// Runs `f` there.
    pub fn run<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        match self {
            Self::Current if rayon::current_thread_index().is_some() && threads() > 1 => {
                team::gather(threads() - 1, f)
            }
            Self::Current => f(),
            Self::One => alone(f),
            Self::Pool(pool) => {
                let arrival = Arrival::announce();
                pool.install(|| {
                    drop(arrival);
                    Self::Current.run(f)
                })
            }
        }
    }
}

/// Runs `f` on this thread alone.
fn alone<R>(f: impl FnOnce() -> R) -> R {
    /// Restores what held before, after a panic too.
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            ALONE.set(self.0);
        }
    }
    let _before = Before(ALONE.replace(true));
    f()
}

/// Calls `f(i)` for each `i` below `tasks`, in any order, on the current pool.
pub fn for_each(tasks: usize, f: impl Fn(usize) + Sync + Send) {
    let workers = threads().min(tasks);
    if workers <= 1 {
        return (0..tasks).for_each(f);
    }
    share(workers, tasks, &f);
}

/// The same on so many threads: compiled once for all loops, which are much code otherwise.
fn share(workers: usize, tasks: usize, f: &(dyn Fn(usize) + Sync)) {
    let shares = Shares::new(tasks, workers);
    if rayon::current_thread_index().is_none() {
        team::lead(threads() - 1, &shares, f);
    } else if !team::share(&shares, f) {
        (0..workers).into_par_iter().with_max_len(1).for_each(|_| team::do_tasks(&shares, f));
    }
}

/// Calls `f(i, chunk)` for each `size`-element chunk of `data` (the last may be shorter).
pub fn for_each_chunk<T: Send>(
    data: &mut [T],
    size: usize,
    f: impl Fn(usize, &mut [T]) + Sync + Send,
) {
    let (len, size) = (data.len(), size.max(1));
    let data = Shared::new(data);
    for_each(len.div_ceil(size), |i| {
        // SAFETY: each task is done once, and has elements of its own.
        f(i, unsafe { data.slice(i * size, size.min(len - i * size)) });
    });
}

/// Calls `f(i, item)` for each item: for tasks that write to more than one place.
pub fn for_each_item<T: Send>(items: Vec<T>, f: impl Fn(usize, T) + Sync + Send) {
    let mut items = Vec::from_iter(items.into_iter().map(Some));
    for_each_chunk(&mut items, 1, |i, item| {
        f(i, item[0].take().expect("each task is done once"));
    });
}

/// `f(0) .. f(tasks - 1)`, in order: the caller adds them up in that order, whatever ran first.
pub fn map<R: Send>(tasks: usize, f: impl Fn(usize) -> R + Sync + Send) -> Vec<R> {
    let mut results = Vec::from_iter((0..tasks).map(|_| None));
    for_each_chunk(&mut results, 1, |i, result| result[0] = Some(f(i)));
    let results = results.into_iter().map(|result| result.expect("all tasks are done"));
    results.collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What `f` returns on a pool of `threads` threads.
    pub(crate) fn with_threads<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
    }

    #[test]
    fn a_caller_stays_where_it_is_unless_it_names_another_pool() {
        let place = || (std::thread::current().id(), rayon::current_thread_index());
        assert_eq!(place().1, None);
        assert_eq!(Threads::Current.run(place), place());
        with_threads(2, || assert_eq!(Threads::Current.run(place), place()));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        assert!(Threads::Pool(Arc::new(pool)).run(place).1.is_some());
    }

    #[test]
    fn alone_means_the_calling_thread_and_ends_with_the_call() {
        with_threads(3, || {
            let here = std::thread::current().id();
            Threads::One.run(|| {
                assert_eq!(threads(), 1);
                for_each(100, |_| assert_eq!(std::thread::current().id(), here));
                assert_eq!(Threads::One.run(threads), 1);
                assert_eq!(threads(), 1);
            });
            assert_eq!(threads(), 3);
            let panicked = std::panic::catch_unwind(|| Threads::One.run(|| panic!("on purpose")));
            assert!(panicked.is_err());
            assert_eq!(threads(), 3);
        });
    }
}
