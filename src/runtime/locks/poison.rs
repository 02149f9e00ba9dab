//! How a panic marks the lock whose data it may have left half-done: as std does it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LockResult, PoisonError, TryLockError, TryLockResult};
use std::thread;

/// Whether a holder has panicked. The lock orders the accesses.
pub(super) struct Poison(AtomicBool);

/// What a guard knows of the moment at which it was made.
pub(super) struct Held {
    /// A guard that is made while its goroutine unwinds does not poison: the panic is an earlier
    /// one.
    was_panicking: bool,
}

impl Poison {
    pub(super) const fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    #[inline]
    pub(super) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn clear(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Called when the lock was locked by a goroutine that may write.
    #[inline]
    pub(super) fn hold(&self) -> Held {
        Held { was_panicking: thread::panicking() }
    }

    /// Called before that lock is released.
    #[inline]
    pub(super) fn release(&self, held: &Held) {
        if !held.was_panicking && thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[inline]
    pub(super) fn check<T>(&self, guard: T) -> LockResult<T> {
        if self.get() { Err(PoisonError::new(guard)) } else { Ok(guard) }
    }

    /// [`Self::check`] of a lock that may not have been locked.
    #[inline]
    pub(super) fn check_try<T>(&self, guard: Option<T>) -> TryLockResult<T> {
        match guard {
            None => Err(TryLockError::WouldBlock),
            Some(guard) => Ok(self.check(guard)?),
        }
    }
}
