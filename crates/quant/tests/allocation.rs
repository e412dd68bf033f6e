//! Running allocates nothing once the workspace has grown to the batch.

mod networks;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use networks::{Dice, resnet};
use ottava_quant::{Engine, Workspace};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system allocator unchanged; counting touches a
// thread-local `Cell` without a destructor and allocates nothing itself.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
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

#[test]
fn nothing_is_allocated_after_the_first_run() {
    let program = resnet(1, 16, 32);
    let engine = Engine::new(&program).unwrap();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| {
        let mut workspace = Workspace::new();
        let x = Dice(3).floats(&[2, 3, 32, 32]);
        let mut y = [0.0; 20];
        engine.run_into(&x, &mut y, &mut workspace).unwrap();
        let before = ALLOCATIONS.get();
        for _ in 0..3 {
            engine.run_into(&x, &mut y, &mut workspace).unwrap();
        }
        assert_eq!(ALLOCATIONS.get() - before, 0);
        assert_eq!(engine.run(&x, &mut workspace).unwrap().to_vec(), y);
    });
}
