//! Sysmon's sleep, on a word of the runtime instance.
//!
//! Sysmon announces that it will sleep, and then checks once more whether all Ms are idle. An M that
//! leaves the idle state says so, and then checks whether sysmon sleeps. Each puts a fence between its
//! store and its load, so that one of the two sees the other.
//!
//! The primitives come from `super`: the crate hands in the real ones, the model test loom's.

use super::primitive::{AtomicU32, Ordering, fence};

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
