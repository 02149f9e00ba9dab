//! The word of a mutex: who holds it, and who gets it next.
//!
//! Those that wait stand in a queue, which has a lock of its own. The word says enough about the
//! queue that a mutex without waiters is locked and released by one exchange each:
//!
//! * [`LOCKED`]: a goroutine holds the mutex.
//! * [`QUEUED`]: the queue may have a waiter. Written with the queue locked.
//! * [`WOKEN`]: a waiter was taken from the queue and readied, and has not competed for the mutex
//!   yet. Until it has, no other waiter is readied: all but one of them would lose.
//!
//! The story of a goroutine that finds the mutex locked, in time order:
//!
//! 1. It locks the queue, and either gets the mutex after all or sets `QUEUED`
//!    ([`lock_or_queue`]). Then it parks in the queue, which it unlocks.
//! 2. The holder releases the mutex. Its exchange finds `QUEUED` ([`unlock`]), so it locks the
//!    queue, takes the first waiter, and passes the mutex on ([`pass_on`]).
//! 3. A waiter that is taken for the first time is readied while the mutex is free, and competes
//!    with the goroutines that run. While one of these locks and releases it again and again, that
//!    costs no switch.
//! 4. If it loses it parks again, in front. The next release hands the mutex over to it: the mutex
//!    stays locked, and the waiter owns it when it runs.
//!
//! **The end of a run.** A waiter that was readied may be abandoned before it competes, and then
//! `WOKEN` means nothing. Callers know which waiter that is. The holder that releases the mutex
//! takes another waiter, and one that queues clears the flag. Both are needed: a holder that found
//! the waiter alive could otherwise release the mutex past one that queues afterwards.
//!
//! **Fairness.** Waiters are taken in the order in which they came, and each loses once at most.
//!
//! Rejected: hand every contended mutex over. The goroutine that runs would park at its next lock,
//! and each lock would cost a switch. Rejected: hand over after a time, as Go does after 1 ms: that
//! takes a clock, and a bound that no count shows.

use super::primitive::{AtomicU32, Ordering};

const LOCKED: u32 = 1;
const QUEUED: u32 = 2;
const WOKEN: u32 = 4;

/// Locks the mutex if no goroutine holds it.
#[inline(always)]
pub(crate) fn try_lock(word: &AtomicU32) -> bool {
    let mut now = 0;
    loop {
        match word.compare_exchange(now, now | LOCKED, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => return true,
            Err(seen) if seen & LOCKED != 0 => return false,
            Err(seen) => now = seen,
        }
    }
}

/// Locks the mutex, or announces a waiter. Returns whether it was locked; otherwise the caller
/// queues, before it unlocks the queue. Called with the queue locked. `clears_woken`: the caller
/// was readied without the mutex, or the waiter that was is abandoned.
pub(crate) fn lock_or_queue(word: &AtomicU32, clears_woken: bool) -> bool {
    let mut now = word.load(Ordering::Relaxed);
    loop {
        let rest = if clears_woken { now & !WOKEN } else { now };
        let is_free = now & LOCKED == 0;
        let next = if is_free { rest | LOCKED } else { rest | QUEUED };
        match word.compare_exchange(now, next, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => return is_free,
            Err(seen) => now = seen,
        }
    }
}

/// Releases the mutex, unless a waiter must be taken. Then it returns false, and the holder locks
/// the queue and calls [`pass_on`]. `is_woken_abandoned`: the waiter that was readied never
/// competes. It is called only if there is one, and others wait.
#[inline(always)]
pub(crate) fn unlock(word: &AtomicU32, is_woken_abandoned: impl Fn() -> bool) -> bool {
    let mut now = LOCKED;
    loop {
        if now & QUEUED != 0 && (now & WOKEN == 0 || is_woken_abandoned()) {
            return false;
        }
        match word.compare_exchange(now, now & !LOCKED, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return true,
            Err(seen) => now = seen,
        }
    }
}

/// The waiter that a holder took from the queue.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// There was none: those that were there are abandoned.
    None,
    /// It will compete for the mutex.
    Competes,
    /// It has lost before, and owns the mutex from here on.
    Owns,
}

/// Releases the mutex or hands it over. Called by its holder, with the queue locked, after
/// [`unlock`] has returned false. `more`: the queue has other waiters. The caller readies the
/// waiter afterwards.
///
/// A store does, since nothing else writes the word: it is locked, and so is the queue.
pub(crate) fn pass_on(word: &AtomicU32, next: Next, more: bool) {
    let state = match next {
        Next::None => 0,
        Next::Competes => WOKEN,
        Next::Owns => LOCKED,
    };
    word.store(if more { state | QUEUED } else { state }, Ordering::Release);
}
