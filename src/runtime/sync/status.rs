//! The word that says what a goroutine does, and how it is moved from one status to the next.
//!
//! One thread at a time has the right to make a transition: the M that runs the goroutine, the M
//! that took it from a queue, or the thread that readies it. So a transition is a load and a store.
//!
//! Rejected: a compare-and-exchange for each transition. It would catch two threads that both claim
//! the right, which is a bug; every switch would pay two locked instructions for that. The load
//! catches most such bugs.

use super::primitive::{AtomicU32, Ordering};

// The statuses that protocols of this room are about. `gmp/status.rs` has all.
pub(crate) const RUNNABLE: u32 = 1;

pub(crate) const RUNNING: u32 = 2;

pub(crate) const WAITING: u32 = 4;

/// A goroutine, as far as its status is concerned.
pub(crate) trait HasStatus {
    fn status_word(&self) -> &AtomicU32;

    /// Reports a transition of a goroutine that is in another status, and does not return.
    fn refuse(&self, now: u32, from: u32, to: u32) -> !;
}

/// Makes a transition that the caller has the right to make.
///
/// Release: a thread that suspends the goroutine reads the status and then the stack
/// (`suspend.rs`).
#[inline(always)]
pub(crate) fn transition(g: &impl HasStatus, from: u32, to: u32) {
    let status = g.status_word();
    let now = status.load(Ordering::Relaxed);
    if now != from {
        g.refuse(now, from, to);
    }
    status.store(to, Ordering::Release);
}
