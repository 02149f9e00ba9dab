//! Handshakes of preemption, on words that somebody else owns.
//!
//! **A request and the turn of a goroutine.** Who requests looks whom a thread runs, and stores the
//! request in the guards of both. Who begins a turn sets the guards anew before it says so. A request
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

use super::primitive::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering, fence};

/// A guard that every rsp is below.
pub(crate) const REQUESTED: usize = usize::MAX;

/// What whoever makes a goroutine current does: a new turn begins, and what was asked of an earlier
/// one is over. `set_thread` makes the goroutine the thread's, and sets the thread's guard to the
/// limit.
///
/// That comes before others can see whom the thread runs. So a request that finds the goroutine
/// current comes behind both, and stands.
#[inline(always)]
pub(crate) fn begin_turn<G>(
    current: &AtomicPtr<G>,
    g: *mut G,
    guard: &AtomicUsize,
    limit: usize,
    set_thread: impl FnOnce(),
) {
    guard.store(limit, Ordering::Relaxed);
    set_thread();
    current.store(g, Ordering::Release);
}

/// Whom a thread runs, for whoever makes a request.
pub(crate) fn current<G>(current: &AtomicPtr<G>) -> *mut G {
    current.load(Ordering::Acquire)
}

/// Stores a request in the guards, where polls see it.
pub(crate) fn ask(guards: [&AtomicUsize; 2]) {
    for guard in guards {
        guard.store(REQUESTED, Ordering::Relaxed);
    }
}

/// As [`ask`]; returns whether a signal must be sent for the request.
pub(crate) fn request(guards: [&AtomicUsize; 2], pending: &AtomicBool) -> bool {
    ask(guards);
    !pending.swap(true, Ordering::AcqRel)
}

/// What the handler does first. Returns whether a signal was expected.
pub(crate) fn acknowledge(pending: &AtomicBool) -> bool {
    pending.swap(false, Ordering::AcqRel)
}

/// Whether somebody has asked.
pub(crate) fn is_requested(guard: &AtomicUsize) -> bool {
    guard.load(Ordering::Relaxed) == REQUESTED
}

// States of the word that sysmon sleeps on.
pub(crate) const AWAKE: u32 = 0;
pub(crate) const ASLEEP: u32 = 1;
pub(crate) const ENDED: u32 = 2;

/// Announces that sysmon will sleep. If this succeeds, it looks whether all Ms are idle, and sleeps
/// only then, until the word changes.
pub(crate) fn announce_sleep(word: &AtomicU32) -> bool {
    let announced = exchange(word, AWAKE, ASLEEP);
    fence(Ordering::SeqCst);
    announced
}

/// Ends the sleep, by whoever comes first: sysmon itself or an M.
pub(crate) fn end_sleep(word: &AtomicU32) -> bool {
    exchange(word, ASLEEP, AWAKE)
}

/// For an M that is counted as idle no more. Returns whether sysmon must be woken: only one M does
/// that.
pub(crate) fn must_wake(word: &AtomicU32) -> bool {
    fence(Ordering::SeqCst);
    word.load(Ordering::Relaxed) == ASLEEP && end_sleep(word)
}

fn exchange(word: &AtomicU32, from: u32, to: u32) -> bool {
    word.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
}
