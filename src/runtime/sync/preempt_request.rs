//! Handshakes of preemption, on words that somebody else owns.
//!
//! **A request and the turn of a goroutine.** Who requests looks whom a thread runs, and stores the
//! request in the limits of both. Who begins a turn sets the limits anew before it says so. A request
//! that comes too late is seen in the thread's next turn, or in the goroutine's, and is over then.
//!
//! **A request and its signal.** Who requests stores the request in the guard, and then sends a
//! signal unless one is on its way. The handler acknowledges first and looks at the guard then. So
//! a request for which no signal is sent is seen by the handler of the one that is on its way: that
//! one has not acknowledged yet when the request finds it pending.
//!
//! **Sysmon's sleep.** Sysmon announces that it will sleep, and then looks once more whether all Ms
//! are idle. An M that is idle no more says so, and then looks whether sysmon sleeps. Each puts a
//! fence between its store and its load, so that one of the two sees the other.
//!
//! The primitives come from `super`: the crate hands in the real ones, the model test loom's.

use super::primitive::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

/// A guard that every rsp is below.
pub(crate) const REQUESTED: usize = usize::MAX;

/// What whoever makes a goroutine current does: a new turn begins, and what was asked of an earlier
/// one is over. `set_thread` makes the goroutine the thread's, and sets the thread's guard to the
/// limit.
///
/// That comes before others can see whom the thread runs. So a request that finds the goroutine
/// current comes behind both, and stands.
#[inline(always)]
pub(crate) fn begin_tick<G>(
    current: &AtomicPtr<G>,
    g: *mut G,
    stack_limit: &AtomicUsize,
    limit: usize,
    set_thread: impl FnOnce(),
) {
    stack_limit.store(limit, Ordering::Relaxed);
    set_thread();
    current.store(g, Ordering::Release);
}

/// Whom a thread runs, for whoever makes a request.
pub(crate) fn current<G>(current: &AtomicPtr<G>) -> *mut G {
    current.load(Ordering::Acquire)
}

/// Stores a request in the limits, where polls see it.
pub(crate) fn store_request(limits: [&AtomicUsize; 2]) {
    for limit in limits {
        limit.store(REQUESTED, Ordering::Relaxed);
    }
}

/// As [`store_request`]; returns whether a signal must be sent for the request.
pub(crate) fn request(limits: [&AtomicUsize; 2], pending: &AtomicBool) -> bool {
    store_request(limits);
    !pending.swap(true, Ordering::AcqRel)
}

/// What the handler does first. Returns whether a signal was expected.
pub(crate) fn acknowledge(pending: &AtomicBool) -> bool {
    pending.swap(false, Ordering::AcqRel)
}

/// Whether somebody has asked.
pub(crate) fn is_requested(stack_limit: &AtomicUsize) -> bool {
    stack_limit.load(Ordering::Relaxed) == REQUESTED
}
