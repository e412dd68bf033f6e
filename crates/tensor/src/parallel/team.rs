//! Threads that stay at hand while a computation runs, one loop after the other.
//!
//! The loops of a small network take microseconds, and waking a thread of a pool takes tens of them: it would
//! come when everything is done. The members of a [`Team`] wait for the next loop awake, for a while: who computes
//! longer has longer loops, and other work in the pool must not wait.
//!
//! A thread of a pool gathers its team for one computation ([`gather`]). One that is of no pool leads its team as
//! long as it lives ([`lead`]), and is one of as many as the pool has: it begins at once, and no core has two
//! threads to run while a third one hands over.

use std::any::Any;
use std::cell::{Cell, RefCell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::Shares;

/// Who computes together: the thread that leads, and members of a pool.
struct Team {
    /// How many members are at the loop's tasks, below [`OPEN`]; then whether it is open to them, whether the team
    /// is [`OVER`], and how many loops there were before.
    state: AtomicUsize,
    /// How many members wait or work, or were called by a leader of no pool.
    here: AtomicUsize,
    /// What there is to do, while the loop is open or a member at it.
    work: UnsafeCell<Option<Work>>,
    /// What a member's task panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// A loop: its tasks, and who has which.
#[derive(Clone, Copy)]
struct Work {
    task: *const (dyn Fn(usize) + Sync),
    shares: *const Shares,
}

// SAFETY: `work` is written by the leader while no loop is open and no member at it, and read by members that have
// entered an open one; `state` orders the two. What its pointers lead to is `Sync`.
unsafe impl Sync for Team {}
// SAFETY: as above: nobody follows these pointers but between the opening of a loop and its end, whichever thread
// drops the team.
unsafe impl Send for Team {}

const OPEN: usize = 1 << 12;
/// The leader is through, or a member has waited or worked for too long: the team has no loop any more.
const OVER: usize = 2 * OPEN;
const LOOP: usize = 2 * OVER;

/// Members at the most.
const MEMBERS: usize = 31;

/// Turns that a member waits before it asks whether others want its core, and how often it does so: about a tenth
/// of a millisecond in all.
const TURNS: usize = 64;
const PATIENCE: usize = 64;

/// How long a member is kept from all other work of the pool: longer than most networks take for an image, and no
/// longer than a task of anybody's may.
const TERM: Duration = Duration::from_millis(20);

/// Callers from outside of a pool that it has not taken in yet: members make room for them.
static ARRIVING: AtomicUsize = AtomicUsize::new(0);

/// Threads of no pool that are at a loop: each takes a core, and members make room for all but one.
static LEADING: Line = Line(AtomicUsize::new(0));

/// A cache line of its own: members look at [`ARRIVING`] all the time.
#[repr(align(64))]
struct Line(AtomicUsize);

/// A caller that comes into a pool, until it is dropped there.
pub(super) struct Arrival(bool);

impl Arrival {
    /// Of this thread, if it is of no pool.
    pub(super) fn announce() -> Self {
        let outside = rayon::current_thread_index().is_none();
        ARRIVING.fetch_add(usize::from(outside), Ordering::Relaxed);
        Self(outside)
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        ARRIVING.fetch_sub(usize::from(self.0), Ordering::Relaxed);
    }
}

thread_local! {
    /// The team that this thread, of a pool, leads, and no loop of which is under way.
    static LED: Cell<*const Team> = const { Cell::new(ptr::null()) };
    /// The team of this thread, of no pool; borrowed while a loop is under way.
    static OWN: RefCell<Arc<Team>> = RefCell::default();
    /// Which member of the team of such a thread this is, from one on.
    static NUMBER: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Which of those who share the tasks of a loop this is.
pub(super) fn number() -> usize {
    NUMBER.get().or_else(rayon::current_thread_index).unwrap_or(0)
}

/// Runs `f` on this thread, of a pool, which meanwhile leads as many others of it as are free.
pub(super) fn gather<R: Send>(others: usize, f: impl FnOnce() -> R + Send) -> R {
    if others == 0 || led().is_some() {
        return f();
    }
    let team = Team::default();
    team.state.store(0, Ordering::Release);
    call(others.min(MEMBERS), &team, || {
        let _led = Led::by_this_thread(&team);
        f()
    })
}

/// Calls others to the team, and leads it.
fn call<R: Send>(others: usize, team: &Team, lead: impl FnOnce() -> R + Send) -> R {
    match others {
        0 => lead(),
        _ => {
            rayon::join(
                || call(others - 1, team, lead),
                || {
                    team.here.fetch_add(1, Ordering::AcqRel);
                    team.wait_for_work();
                },
            )
            .0
        }
    }
}

/// Does the tasks with the team that this thread, of a pool, leads; whether there is one that still waits for work.
pub(super) fn share(shares: &Shares, task: &(dyn Fn(usize) + Sync)) -> bool {
    /// The team, taken from this thread until it is dropped.
    struct Away<'a>(&'a Team);
    impl Drop for Away<'_> {
        fn drop(&mut self) {
            LED.set(self.0);
        }
    }
    led().is_some_and(|team| {
        LED.set(ptr::null());
        Away(team).0.run(shares, task)
    })
}

/// Does the tasks with the team of this thread, which is of no pool, and members of the global one.
pub(super) fn lead(others: usize, shares: &Shares, task: &(dyn Fn(usize) + Sync)) {
    /// This thread among those that lead, until it is dropped.
    struct Leading;
    impl Drop for Leading {
        fn drop(&mut self) {
            LEADING.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
    let shared = OWN.try_with(|team| {
        // A loop in a task of this thread's is its own.
        let team = team.try_borrow_mut().ok()?;
        let leaders = LEADING.0.fetch_add(1, Ordering::Relaxed);
        let _leading = Leading;
        team.recruit(others.saturating_sub(leaders).min(MEMBERS));
        team.run(shares, task).then_some(())
    });
    if !matches!(shared, Ok(Some(()))) {
        do_tasks(shares, task);
    }
}

/// The team that this thread leads, if it still waits for work.
fn led<'a>() -> Option<&'a Team> {
    // SAFETY: `Led` takes the pointer back before the team is gone, and no caller of this outlives its `Led`.
    let team = unsafe { LED.get().as_ref() };
    team.filter(|team| team.state.load(Ordering::Relaxed) & OVER == 0)
}

/// That this thread leads a team, until it is dropped: then it leads again what it did before.
struct Led<'a> {
    team: &'a Team,
    before: *const Team,
}

impl<'a> Led<'a> {
    fn by_this_thread(team: &'a Team) -> Self {
        Self { team, before: LED.replace(team) }
    }
}

impl Drop for Led<'_> {
    fn drop(&mut self) {
        LED.set(self.before);
        self.team.state.fetch_or(OVER, Ordering::AcqRel);
        // Who waited for the members in the pool would meanwhile begin with somebody else's work.
        wait_until(|| self.team.here.load(Ordering::Acquire) == 0);
    }
}

/// An open loop, until it is dropped: then no member is at it any more.
struct Open<'a>(&'a Team);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.state.fetch_sub(OPEN, Ordering::AcqRel);
        wait_until(|| self.0.state.load(Ordering::Acquire) & (OPEN - 1) == 0);
    }
}

/// Waits awake for what another thread is about to do.
fn wait_until(done: impl Fn() -> bool) {
    let mut turns = 0usize;
    while !done() {
        turns = turns.wrapping_add(1);
        // The other may wait for this core.
        if turns.is_multiple_of(TURNS) { thread::yield_now() } else { std::hint::spin_loop() }
    }
}

impl Default for Team {
    /// Nobody, until members are called.
    fn default() -> Self {
        Self {
            state: AtomicUsize::new(OVER),
            here: AtomicUsize::new(0),
            work: UnsafeCell::new(None),
            panic: Mutex::new(None),
        }
    }
}

impl Team {
    /// Calls so many members from the global pool, if all of those before are gone.
    fn recruit(self: &Arc<Self>, members: usize) {
        let over = self.state.load(Ordering::Relaxed) & OVER != 0;
        if members == 0 || !over || self.here.load(Ordering::Acquire) > 0 {
            return;
        }
        self.here.store(members, Ordering::Relaxed);
        self.state.fetch_and(!OVER, Ordering::AcqRel);
        for number in 1..=members {
            let team = Arc::clone(self);
            rayon::spawn(move || {
                let before = NUMBER.replace(Some(number));
                team.wait_for_work();
                NUMBER.set(before);
            });
        }
    }

    /// Does the tasks, whoever of the members comes; none of them if the team is over.
    fn run(&self, shares: &Shares, task: &(dyn Fn(usize) + Sync)) -> bool {
        // SAFETY: the lifetime alone changes; `Open` is dropped before this returns, and no member is at the loop
        // then.
        let task_of_all: *const (dyn Fn(usize) + Sync + 'static) =
            unsafe { std::mem::transmute(ptr::from_ref(task)) };
        // SAFETY: no loop is open, and no member at one: this thread alone opens them, and is in none, since `LED` is
        // null and `OWN` borrowed while it is.
        unsafe { *self.work.get() = Some(Work { task: task_of_all, shares }) };
        let before = self.state.fetch_add(LOOP + OPEN, Ordering::AcqRel);
        let open = Open(self);
        // Or a member has just left.
        let together = before & OVER == 0;
        let ours = catch_unwind(AssertUnwindSafe(|| {
            if together {
                do_tasks(shares, task);
            }
        }));
        drop(open);
        let theirs = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = ours.err().or(theirs) {
            resume_unwind(panic);
        }
        together
    }

    /// Waits for loops and takes part in them, until the team is over; it was counted in.
    fn wait_for_work(&self) {
        let (start, mut last, mut turns, mut beats, mut due) =
            (Instant::now(), 0, 0, 0usize, false);
        loop {
            let state = self.state.load(Ordering::Acquire);
            beats = beats.wrapping_add(1);
            if beats.is_multiple_of(TURNS) {
                due = due || start.elapsed() > TERM || self.others_want_the_core();
            }
            if state & OPEN != 0 && state / LOOP != last {
                last = self.take_part(state / LOOP);
                turns = 0;
                continue;
            }
            if state & OVER != 0 {
                break;
            }
            turns += 1;
            if due || turns > TURNS * PATIENCE {
                self.end(state);
            } else if turns.is_multiple_of(TURNS) {
                thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
        self.here.fetch_sub(1, Ordering::Release);
    }

    /// Whether callers come into the pool, or more threads compute than it has.
    fn others_want_the_core(&self) -> bool {
        let computing = self.here.load(Ordering::Relaxed) + LEADING.0.load(Ordering::Relaxed);
        ARRIVING.load(Ordering::Relaxed) > 0 || computing > rayon::current_num_threads()
    }

    /// Ends the team, unless a loop was opened since `state` was seen: that one may count on members.
    fn end(&self, state: usize) {
        let (order, failed) = (Ordering::AcqRel, Ordering::Relaxed);
        let _ = self.state.compare_exchange(state, state | OVER, order, failed);
    }

    /// Does tasks of the loop that is open, if it still is; the number of the loop that this was.
    fn take_part(&self, seen: usize) -> usize {
        let state = self.state.fetch_add(1, Ordering::AcqRel);
        if state & OPEN != 0 {
            // SAFETY: the loop was open when this member was counted in: until it is counted out, the leader waits
            // before it writes here or lets go of what this leads to.
            let (shares, task) = unsafe {
                let work = (*self.work.get()).expect("written before the loop was opened");
                (&*work.shares, &*work.task)
            };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| do_tasks(shares, task))) {
                // The first one comes out of the loop.
                let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
                match *first {
                    None => *first = Some(panic),
                    Some(_) => std::mem::forget(panic),
                }
            }
        }
        self.state.fetch_sub(1, Ordering::Release);
        if state & OPEN != 0 { state / LOOP } else { seen }
    }
}

/// Does tasks as long as there are any.
pub(super) fn do_tasks(shares: &Shares, task: &(dyn Fn(usize) + Sync)) {
    while let Some(i) = shares.take(number()) {
        task(i);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::with_threads;
    use super::super::{Threads, for_each, map};
    use super::*;
    use std::sync::atomic::AtomicBool;

    /// Loops of every length, some of which take time, some with loops of their own.
    fn loops(threads: usize) {
        for round in 0..3000 {
            let tasks = round % 13;
            let done = Vec::from_iter((0..tasks).map(|_| AtomicUsize::new(0)));
            for_each(tasks, |task| {
                if round % 100 == 0 {
                    thread::sleep(Duration::from_micros(50));
                }
                if round % 50 == task {
                    assert_eq!(map(task, |i| i), Vec::from_iter(0..task));
                    assert_eq!(Threads::Current.run(|| map(3, |i| i)), [0, 1, 2]);
                }
                done[task].fetch_add(1, Ordering::Relaxed);
            });
            let done = Vec::from_iter(done.into_iter().map(AtomicUsize::into_inner));
            assert_eq!(done, vec![1; tasks], "round {round}, {threads} threads");
        }
    }

    /// More threads than cores, of a pool and of none.
    #[test]
    fn every_task_of_every_loop_is_done_once() {
        for threads in [2, 3, 8] {
            with_threads(threads, || Threads::Current.run(|| loops(threads)));
            thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| loops(threads));
                }
            });
        }
    }

    /// Members do take part, and come again after a pause longer than their patience, though not for the same team.
    #[test]
    fn others_take_part_before_and_after_a_pause() {
        let together = || {
            // Both are at it at once: neither goes on before the other has come.
            let here = std::sync::Barrier::new(2);
            for_each(2, |_| _ = here.wait());
        };
        with_threads(2, || {
            Threads::Current.run(|| {
                together();
                thread::sleep(Duration::from_millis(30));
                together();
            });
            Threads::Current.run(together);
        });
    }

    /// Beside a thread of no pool too, once nobody else leads.
    #[test]
    fn others_take_part_beside_a_thread_of_no_pool() {
        if super::super::threads() == 1 {
            return;
        }
        let start = Instant::now();
        let (here, others) = (thread::current().id(), AtomicUsize::new(0));
        while others.load(Ordering::Relaxed) < 100 {
            assert!(start.elapsed() < Duration::from_secs(60), "nobody came");
            for_each(4, |_| {
                thread::sleep(Duration::from_micros(20));
                if thread::current().id() != here {
                    assert!(number() > 0, "the leader has the first share");
                    others.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        assert_eq!(number(), 0);
    }

    /// Other work of the pool does not wait for the end of loops from outside.
    #[test]
    fn a_member_does_other_work_between_loops() {
        for_each(2, |_| thread::sleep(Duration::from_millis(1)));
        let came = Arc::new(AtomicBool::new(false));
        let start = Instant::now();
        let waits = move |came: &AtomicBool, seconds| {
            !came.load(Ordering::Acquire) && start.elapsed() < Duration::from_secs(seconds)
        };
        // They keep all threads of the pool but one until the last comes, which needs the member's; longer than this
        // thread waits for it.
        for _ in 1..rayon::current_num_threads() {
            let came = came.clone();
            rayon::spawn(move || {
                while waits(&came, 60) {
                    thread::sleep(Duration::from_micros(50));
                }
            });
        }
        let set = came.clone();
        rayon::spawn(move || set.store(true, Ordering::Release));
        while waits(&came, 30) {
            for_each(4, |_| std::hint::spin_loop());
        }
        assert!(came.load(Ordering::Acquire), "it came too late");
    }

    /// Other work of the pool does not wait for the end of a long computation.
    #[test]
    fn a_member_is_free_again_before_a_long_computation_ends() {
        let pool =
            std::sync::Arc::new(rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap());
        let (came, ended) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let other = pool.clone();
            let (came, ended) = (&came, &ended);
            scope.spawn(move || {
                thread::sleep(Duration::from_millis(5));
                other.install(|| assert!(!ended.load(Ordering::Acquire), "it came too late"));
                came.store(true, Ordering::Release);
            });
            Threads::Pool(pool.clone()).run(|| {
                // Loops without a pause, until the other has come; or for a minute, if it never does.
                let start = Instant::now();
                while !came.load(Ordering::Acquire) && start.elapsed() < Duration::from_secs(60) {
                    for_each(4, |_| std::hint::spin_loop());
                }
                ended.store(true, Ordering::Release);
            });
        });
    }

    /// A panic of the leader's tasks or of a member's comes out of the loop, and the next one runs.
    #[test]
    fn a_task_that_panics_ends_its_loop_alone() {
        let panics = || {
            for culprit in 0..200 {
                let both = || {
                    for_each(2, |task| {
                        thread::sleep(Duration::from_micros(5));
                        assert!(task != culprit % 2, "on purpose");
                    });
                };
                assert!(catch_unwind(AssertUnwindSafe(both)).is_err());
                assert_eq!(map(2, |i| i), [0, 1]);
            }
        };
        panics();
        with_threads(2, || {
            Threads::Current.run(|| {
                panics();
                for _ in 0..200 {
                    // Both at once: one of the two comes out, and no other later.
                    let here = std::sync::Barrier::new(2);
                    let all = || {
                        for_each(2, |_| {
                            here.wait();
                            panic!("on purpose");
                        });
                    };
                    assert!(catch_unwind(AssertUnwindSafe(all)).is_err());
                    assert_eq!(map(2, |i| i), [0, 1]);
                }
            });
        });
    }
}
