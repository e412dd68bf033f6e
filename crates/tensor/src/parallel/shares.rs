//! Which thread does which task.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Most shares: more threads than that begin with another's.
const MOST: usize = 32;

/// The tasks `0..tasks`, of which each is taken once.
///
/// They are cut into even shares of neighbours, one for each thread, the same whenever there are as many tasks: in
/// one layer after the other a thread has the same part of an image, and finds what it wrote in its own cache. A
/// cache line from another core's is tens of nanoseconds away. Whoever is through with its share goes on with what
/// is left of another's, so that nobody waits for a slower thread.
pub(crate) struct Shares {
    tasks: usize,
    count: usize,
    shares: [Share; MOST],
}

/// How many tasks of a share were asked for, on a cache line of its own.
#[repr(align(64))]
struct Share(AtomicUsize);

impl Shares {
    /// For so many threads.
    pub(crate) fn new(tasks: usize, threads: usize) -> Self {
        Self {
            tasks,
            count: threads.clamp(1, MOST),
            shares: [const { Share(AtomicUsize::new(0)) }; MOST],
        }
    }

    /// A task that nobody has, for the thread of this index: of its own share while there is one.
    pub(crate) fn take(&self, thread: usize) -> Option<usize> {
        (0..self.count).find_map(|turn| {
            let share = (thread + turn) % self.count;
            let start = self.tasks * share / self.count;
            let len = self.tasks * (share + 1) / self.count - start;
            let taken = &self.shares[share].0;
            // Asked for only while there are tasks, so that the count does not grow beyond all bounds.
            let some = taken.load(Ordering::Relaxed) < len;
            let task = some.then(|| taken.fetch_add(1, Ordering::Relaxed))?;
            (task < len).then_some(start + task)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_task_is_taken_once_and_ones_own_come_first() {
        for (tasks, threads) in [(0, 3), (1, 3), (7, 3), (12, 4), (5, 1), (200, 40)] {
            let shares = Shares::new(tasks, threads);
            let (start, end) = (tasks / threads.min(MOST), 2 * tasks / threads.min(MOST));
            let mut taken = Vec::from_iter(std::iter::from_fn(|| shares.take(1)));
            if threads > 1 {
                assert_eq!(taken[..end - start], Vec::from_iter(start..end), "{tasks}, {threads}");
            }
            taken.sort_unstable();
            assert_eq!(taken, Vec::from_iter(0..tasks), "{tasks} tasks for {threads}");
            assert_eq!(shares.take(0), None);
        }
    }

    #[test]
    fn threads_that_take_at_a_time_share_all_tasks() {
        let shares = Shares::new(10_000, 4);
        let take = |thread| Vec::from_iter(std::iter::from_fn(|| shares.take(thread)));
        let mut taken = std::thread::scope(|scope| {
            let threads = [0, 1, 2, 3].map(|thread| scope.spawn(move || take(thread)));
            threads.map(|thread| thread.join().unwrap()).concat()
        });
        taken.sort_unstable();
        assert_eq!(taken, Vec::from_iter(0..10_000));
    }
}
