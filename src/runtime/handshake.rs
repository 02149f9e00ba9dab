//! Two handshakes of preemption, on words that somebody else owns.
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

use super::primitive::{AtomicBool, AtomicU32, AtomicUsize, Ordering, fence};

/// A guard that every rsp is below.
pub(crate) const REQUESTED: usize = usize::MAX;

/// The memory orders of the handshakes, in one place so that the model can weaken them.
#[derive(Clone, Copy)]
pub(crate) struct Orders {
    /// Of the exchanges of the flag that says whether a signal is on its way.
    pub(crate) pending: Ordering,
    /// Whether there is a fence between announcement and look.
    pub(crate) fenced: bool,
}

/// The orders that are right.
pub(crate) const ORDERS: Orders = Orders { pending: Ordering::AcqRel, fenced: true };

/// Stores a request in the guards, where polls see it.
pub(crate) fn ask(guards: [&AtomicUsize; 2]) {
    for guard in guards {
        guard.store(REQUESTED, Ordering::Relaxed);
    }
}

/// As [`ask`]; returns whether a signal must be sent for the request.
pub(crate) fn request(guards: [&AtomicUsize; 2], pending: &AtomicBool, orders: Orders) -> bool {
    ask(guards);
    !pending.swap(true, orders.pending)
}

/// What the handler does first. Returns whether a signal was expected.
pub(crate) fn acknowledge(pending: &AtomicBool, orders: Orders) -> bool {
    pending.swap(false, orders.pending)
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
pub(crate) fn announce_sleep(word: &AtomicU32, orders: Orders) -> bool {
    let announced = exchange(word, AWAKE, ASLEEP);
    if orders.fenced {
        fence(Ordering::SeqCst);
    }
    announced
}

/// Ends the sleep, by whoever comes first: sysmon itself or an M.
pub(crate) fn end_sleep(word: &AtomicU32) -> bool {
    exchange(word, ASLEEP, AWAKE)
}

/// For an M that is counted as idle no more. Returns whether sysmon must be woken: only one M does
/// that.
pub(crate) fn must_wake(word: &AtomicU32, orders: Orders) -> bool {
    if orders.fenced {
        fence(Ordering::SeqCst);
    }
    word.load(Ordering::Relaxed) == ASLEEP && end_sleep(word)
}

fn exchange(word: &AtomicU32, from: u32, to: u32) -> bool {
    word.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
}
