//! Suspending a goroutine while another thread inspects its stack.
//!
//! The story, in time order. On the left a thread that inspects a goroutine, on the right the M
//! that comes to run it:
//!
//! ```text
//!     request: store REQUESTED                 begin_running: store the status (running)
//!     heavy fence                              light fence
//!     found: load the status                   is_requested: load the word
//! ```
//!
//! 1. Each side stores, crosses its fence, and loads what the other side stores. So one of the two
//!    sees the other. No switch pays for this with more than a load.
//! 2. If the inspector sees the goroutine parked with its context saved, the goroutine is
//!    suspended: the M that comes to run it sees the request.
//! 3. That M waits ([`yield_to_suspender`]): it makes the goroutine runnable again, and sleeps on
//!    the word until the goroutine is resumed.
//! 4. The inspector resumes the goroutine ([`SuspendState::resume`]), and wakes the M if one
//!    sleeps.
//!
//! A status alone does not tell that the context is saved: a goroutine that parks is waiting
//! already while it still runs towards the switch. The saved pc tells. Switch stubs clear it when
//! they resume a context, and write it last when they save one.
//!
//! **Invariant.** One thread at a time suspends a goroutine; `walk/inspect.rs` sees to that.
//!
//! Rejected: a status of its own for suspended goroutines, set by compare-and-exchange (Go's
//! `_Gscan` bit). Every transition would have to be an exchange, too.

use super::primitive::{AtomicU32, AtomicUsize, Ordering, heavy_fence, light_fence};
use super::status::{HasStatus, RUNNABLE, RUNNING, WAITING, transition};

const FREE: u32 = 0;

const REQUESTED: u32 = 1;

/// As REQUESTED, and an M sleeps on the word until the goroutine is resumed.
const AWAITED: u32 = 2;

/// What a thread finds that has requested the suspension of a goroutine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    /// It does not run until it is resumed.
    Suspended,
    /// It runs, or is on its way to or from a switch.
    Running,
    /// It has ended.
    Dead,
}

/// A goroutine, as far as its suspension is concerned.
pub(crate) trait Suspendable: HasStatus {
    fn suspend_state(&self) -> &SuspendState;

    /// The pc of the saved context. 0: the context is not saved.
    fn saved_pc(&self) -> &AtomicUsize;
}

/// Whether another thread wants a goroutine suspended.
pub(crate) struct SuspendState(AtomicU32);

impl SuspendState {
    pub(crate) fn new() -> Self {
        Self(AtomicU32::new(FREE))
    }

    /// Requests the suspension. [`found`] tells when the goroutine is suspended.
    pub(crate) fn request(&self) {
        self.0.store(REQUESTED, Ordering::Relaxed);
        heavy_fence();
    }

    /// Takes the request back, and resumes the goroutine if it is suspended. `wake` wakes the M
    /// that sleeps on the word; it is called if one may.
    ///
    /// Release: what this thread has read and written on the stack happens before the goroutine
    /// runs.
    pub(crate) fn resume(&self, wake: impl FnOnce(&AtomicU32)) {
        if self.0.swap(FREE, Ordering::Release) == AWAITED {
            wake(&self.0);
        }
    }

    /// Whether the goroutine must not run. Called after its status was stored.
    #[inline(always)]
    fn is_requested(&self) -> bool {
        light_fence();
        // Acquire: the inspector has read the stack before it resumed the goroutine, and may have
        // changed what is on it.
        self.0.load(Ordering::Acquire) != FREE
    }
}

/// Makes a runnable goroutine running. Returns whether another thread wants it suspended: then the
/// caller goes through [`yield_to_suspender`] before the goroutine runs.
#[inline(always)]
#[must_use]
pub(crate) fn begin_running(g: &impl Suspendable) -> bool {
    transition(g, RUNNABLE, RUNNING);
    g.suspend_state().is_requested()
}

/// Waits until no thread wants the goroutine suspended, and leaves it running.
///
/// `sleep(word, value)` sleeps while the word has that value, and may return early. `deschedule`
/// leaves the goroutine's stack for the scheduler, and returns when the goroutine runs again.
///
/// Not inlined by callers: `deschedule` may return on another thread.
pub(crate) fn yield_to_suspender(
    g: &impl Suspendable,
    sleep: impl Fn(&AtomicU32, u32),
    deschedule: impl Fn(),
) {
    let (state, status) = (g.suspend_state(), g.status_word());
    while state.is_requested() {
        if !await_resume(g) {
            deschedule();
            continue;
        }
        sleep(&state.0, AWAITED);
        status.store(RUNNING, Ordering::Release);
    }
}

/// Makes the goroutine runnable again, so that the inspector finds it suspended, and announces that
/// this M sleeps. Returns false where that must not be: its context is not saved.
///
/// Then this thread is on the goroutine's stack: the goroutine was about to leave it, was readied,
/// and was picked again. The inspector does not find it suspended before it has left.
fn await_resume(g: &impl Suspendable) -> bool {
    let (status, saved_pc) = (g.status_word(), g.saved_pc());
    if saved_pc.load(Ordering::Relaxed) == 0 {
        return false;
    }
    status.store(RUNNABLE, Ordering::Release);
    let word = &g.suspend_state().0;
    // Fails where the goroutine was resumed meanwhile. Then the word is FREE, and the sleep ends at
    // once.
    let _ = word.compare_exchange(REQUESTED, AWAITED, Ordering::Relaxed, Ordering::Relaxed);
    true
}

/// Checks a goroutine whose suspension this thread has requested.
pub(crate) fn found(g: &impl Suspendable) -> Found {
    let (status, saved_pc) = (g.status_word(), g.saved_pc());
    match status.load(Ordering::Acquire) {
        RUNNABLE | WAITING if saved_pc.load(Ordering::Acquire) != 0 => Found::Suspended,
        RUNNABLE | WAITING | RUNNING => Found::Running,
        _ => Found::Dead,
    }
}
