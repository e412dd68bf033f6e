//! Running allocates nothing once the workspace has grown to the batch.

mod networks;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

use networks::{Dice, resnet};
use ottava_quant::{Engine, Threads, Workspace};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

/// Whose allocations count. The test harness has threads of its own, and those of a pool end some time
/// after it.
static COUNTED: AtomicUsize = AtomicUsize::new(1);

thread_local! {
    /// Who this thread works for; nobody, if zero.
    static OWNER: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system allocator unchanged; counting touches an atomic and a
// thread-local `Cell` without a destructor and allocates nothing itself.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if OWNER.get() == COUNTED.load(Ordering::Relaxed) {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise about `start` and `layout` is passed on.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How many runs of thirty, after the first ones, allocate.
fn allocating(engine: &Engine) -> usize {
    let mut workspace = Workspace::new();
    let x = Dice(3).floats(&[2, 3, 32, 32]);
    let mut y = [0.0; 20];
    let mut allocates = || {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        engine.run_into(&x, &mut y, &mut workspace).unwrap();
        ALLOCATIONS.load(Ordering::Relaxed) > before
    };
    assert!(allocates(), "what a workspace allocates at first is counted");
    for _ in 0..4 {
        allocates();
    }
    let count = (0..30).filter(|_| allocates()).count();
    assert_eq!(engine.run(&x, &mut workspace).unwrap().to_vec(), y);
    count
}

/// One test: the count is of all threads.
#[test]
fn nothing_is_allocated_after_the_first_runs() {
    let engine = Engine::new(&resnet(1, 16, 32)).unwrap();
    for threads in [1, 2, 3] {
        COUNTED.store(threads, Ordering::Relaxed);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let pool = pool.start_handler(move |_| OWNER.set(threads)).build().unwrap();
        // A thread beside the first may meet its first work, and the memory that takes, in any run.
        let count = pool.install(|| allocating(&engine));
        assert!(count < threads, "{count} of 30 runs allocated on {threads} threads");
    }
    const ALONE: usize = 100;
    COUNTED.store(ALONE, Ordering::Relaxed);
    OWNER.set(ALONE);
    let engine = engine.on(Threads::One);
    assert_eq!(allocating(&engine), 0, "no pool");
    OWNER.set(0);
}
