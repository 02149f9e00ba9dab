//! The right to write a report in a handler of a fault: one thread has it at a time.
//!
//! Threads that fault at once report one after the other, and none ends the process while another
//! one waits to report. In time order:
//!
//! 1. A thread counts itself in [`REPORTS`], and waits until no other thread has the right.
//! 2. It writes its report.
//! 3. It passes the right on, leaves the count, and waits until the count is zero. What it does
//!    next may end the process.
//!
//! Each wait has a limit: a report may block on a standard error that no process reads. A signal
//! handler may call everything here: it uses atomics and system calls.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::runtime::os::{futex, threads};

/// How long a thread sleeps before it checks again.
const NAP: Duration = Duration::from_millis(10);

/// How often it does.
const NAPS: usize = 1000;

/// The number of the thread that has the right; 0: none.
///
/// Invariant: a thread stores its own number, by compare-and-exchange of 0, and stores 0 when it
/// passes the right on. So a thread that finds its own number has the right, and was interrupted
/// by a fault while it wrote its report.
static REPORTER: AtomicU32 = AtomicU32::new(0);

/// How many threads write a report or wait for the right.
static REPORTS: AtomicU32 = AtomicU32::new(0);

/// Whether the calling thread has the right already.
pub(super) fn is_held_here() -> bool {
    let reporter = REPORTER.load(Ordering::Relaxed);
    reporter != 0 && reporter == this_thread()
}

/// Waits for the right. Returns whether the thread has got it: else it must not report. In either
/// case [`finish`] comes next.
pub(super) fn acquire() -> bool {
    REPORTS.fetch_add(1, Ordering::SeqCst);
    let this_thread = this_thread();
    (0..NAPS).any(|_| {
        let taken = REPORTER.compare_exchange(0, this_thread, Ordering::SeqCst, Ordering::Relaxed);
        taken.is_ok() || {
            futex::wait(&REPORTER, taken.err().unwrap_or(0), Some(NAP));
            false
        }
    })
}

/// Passes the right on, if the calling thread has it, and waits for the reports of other threads.
pub(super) fn finish() {
    if is_held_here() {
        REPORTER.store(0, Ordering::SeqCst);
        futex::wake_all(&REPORTER);
    }
    REPORTS.fetch_sub(1, Ordering::SeqCst);
    for _ in 0..NAPS {
        match REPORTS.load(Ordering::SeqCst) {
            0 => return,
            reports => futex::wait(&REPORTS, reports, Some(NAP)),
        }
    }
}

fn this_thread() -> u32 {
    threads::current_tid().cast_unsigned()
}
