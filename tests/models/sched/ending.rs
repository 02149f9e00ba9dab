//! The end of a run: no thread ends before every thread has left the scheduler.

use std::sync::Arc;

use loom::cell::UnsafeCell;

use super::explore::{Body, Model, Mutant, RACE, SLEEPS, explore, see_broken, together};
use super::gmp::Sleeper;
use super::latch::CountLatch;
use super::primitive::How::{Relaxed, Torn};
use super::primitive::{AtomicU32, How, Weak};

const THREADS: usize = 3;

/// A run with a thread-local for each of its threads. loom sees accesses that race.
struct Run {
    latch: CountLatch,
    sleepers: [Sleeper; THREADS],
    locals: [UnsafeCell<u32>; THREADS],
}

// SAFETY: loom checks the accesses of the cells.
unsafe impl Send for Run {}
// SAFETY: loom checks the accesses of the cells.
unsafe impl Sync for Run {}

impl Run {
    /// The M has run its last goroutine. Its thread ends.
    fn end_thread(&self, thread: usize, waits: bool) {
        let wake_all = |_: &AtomicU32| self.sleepers.iter().for_each(Sleeper::wake);
        let sleep = |word: &_, value| self.sleepers[thread].wait(word, value);
        match waits {
            true => self.latch.count_down_and_wait(wake_all, sleep),
            false => self.latch.count_down(1, wake_all),
        }
        // SAFETY: loom checks that no other thread has access.
        self.locals[thread].with_mut(|local| unsafe { *local = 0xdead });
    }
}

/// Each thread runs a goroutine that reads a thread-local of the next thread, and then ends.
fn end_in(waits: bool) {
    let run = Arc::new(Run {
        latch: CountLatch::new(THREADS as u32),
        sleepers: std::array::from_fn(|_| Sleeper::new()),
        locals: std::array::from_fn(|_| UnsafeCell::new(42)),
    });
    let thread = |thread: usize| -> Body {
        let run = Arc::clone(&run);
        Box::new(move || {
            // SAFETY: loom checks that no thread writes.
            let local = run.locals[(thread + 1) % THREADS].with(|local| unsafe { *local });
            assert_eq!(local, 42, "read after its thread has ended");
            run.end_thread(thread, waits);
        })
    };
    together((0..THREADS).map(thread).collect());
}

fn end() {
    end_in(true);
}

const END: Model = Model {
    name: "the threads of a run end",
    body: end,
    preemptions: Some(2),
    least: 1000,
    without: &[],
};

#[test]
fn no_thread_ends_before_all_have_left() {
    explore(END);
}

/// A thread that ends alone destroys what other threads read.
#[test]
#[should_panic(expected = "Causality violation")]
fn threads_that_do_not_wait_end_too_early() {
    loom::model(|| end_in(false));
}

const fn latch(function: &'static str, operation: &'static str, how: How) -> Weak {
    Weak { file: "latch.rs", function, operation, how }
}

pub(crate) const MUTANTS: &[Mutant] = &[
    Mutant { weak: latch("count_down", "0.fetch_sub", Relaxed), model: END, says: RACE },
    Mutant { weak: latch("count_down", "0.fetch_sub", Torn), model: END, says: SLEEPS },
    Mutant { weak: latch("wait", "0.load", Relaxed), model: END, says: RACE },
];

#[test]
fn latches_that_are_weakened_break() {
    see_broken(MUTANTS);
}
