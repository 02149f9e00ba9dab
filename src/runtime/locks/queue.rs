#![allow(unsafe_code, reason = "waiters lie in the stacks of those that wait")]
//! The queue of a lock.

use std::panic::{RefUnwindSafe, UnwindSafe};
use std::ptr;
use std::time::Duration;

use crate::runtime::chan::waiters::{SpinLock, Taken, Wait, Waiter, Waiters, fire};
use crate::runtime::gmp::parker::Parker;
use crate::runtime::gmp::status::WaitReason;
use crate::runtime::sched::park::{gopark, may_park, refuse_park};
use crate::runtime::sync::Claim;
use crate::runtime::task::Limit;

/// Goroutines and threads that wait, in their order, and the lock that guards them.
pub(super) struct Queue {
    lock: SpinLock,
    waiters: Waiters,
}

// SAFETY: the waiters are touched with the lock held only.
unsafe impl Send for Queue {}

// SAFETY: the same holds through a shared reference.
unsafe impl Sync for Queue {}

// Nothing of a queue is left half-done by a panic: no code of a caller runs while it is locked.
impl UnwindSafe for Queue {}

impl RefUnwindSafe for Queue {}

/// Where a waiter is put.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Front,
    Back,
}

impl Queue {
    pub(super) const fn new() -> Self {
        Self { lock: SpinLock::new(), waiters: Waiters::new() }
    }

    /// Locks the queue, for a few dozen instructions. The caller does not park meanwhile, but by
    /// [`Locked::park`].
    pub(super) fn lock(&self) -> Locked<'_> {
        self.lock.lock();
        Locked(self)
    }

    /// Parks at the end of the queue for `timeout` at most. `release` is called when the caller is
    /// in the queue. It neither parks nor unwinds. Returns whether the caller was taken out in
    /// time.
    ///
    /// # Panics
    /// In `systemstack`; `release` is not called then.
    #[track_caller]
    pub(super) fn park_within(
        &self,
        timeout: Duration,
        reason: WaitReason,
        release: impl FnOnce(),
    ) -> bool {
        if !may_park() {
            refuse_park();
        }
        let wait = Wait::limited();
        // The timer before the lock: see `Claim`.
        // SAFETY: dropped when this function returns; made by `Wait::limited`.
        let limit = unsafe { Limit::set(&wait.park, timeout) };
        let waiter = Waiter::new(&wait, 0, ptr::null_mut());
        self.lock.lock();
        // SAFETY: the lock is held, and its release makes the waiter visible. `Waiters::take`
        // claims the wait, and `fire` readies. This frame stays until the waiter is out of the
        // queue.
        unsafe {
            self.waiters.push(&waiter);
            limit.park(reason, || {
                release();
                self.lock.unlock();
            });
        }
        let in_time = wait.park.claim.outcome() != Claim::TIMED_OUT;
        if !in_time {
            let _locked = self.lock();
            // SAFETY: the lock is held, and the waiter is in this queue or in none.
            unsafe { self.waiters.remove(&waiter) };
        }
        in_time
    }
}

/// A queue that is locked. Dropping this unlocks it.
pub(super) struct Locked<'a>(&'a Queue);

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.0.lock.unlock();
    }
}

/// A waiter that was taken out. It stays where it is until it is readied, and is readied once.
pub(super) struct One<'a>(&'a Waiter);

impl One<'_> {
    /// What it waits for, as it told [`Locked::park`].
    pub(super) fn what(&self) -> usize {
        self.0.case
    }

    pub(super) fn parker(&self) -> Parker {
        self.0.parker()
    }

    /// Readies it. `passed` is what [`Locked::park`] returns.
    pub(super) fn ready(self, passed: bool) {
        // SAFETY: it was taken, and `self` is consumed.
        unsafe { fire(self.0, passed) };
    }
}

/// Several of them, to be readied together, oldest first.
pub(super) struct Several(Taken);

impl Several {
    pub(super) fn new() -> Self {
        Self(Taken::none())
    }

    pub(super) fn add(&mut self, one: One<'_>) {
        // SAFETY: it was taken, and `one` is consumed.
        unsafe { self.0.add(one.0) };
    }

    /// Readies them. `passed` is what [`Locked::park`] returns.
    pub(super) fn ready(self, passed: bool) {
        if !self.0.is_none() {
            self.0.fire(passed);
        }
    }
}

impl<'a> Locked<'a> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.waiters.is_empty()
    }

    /// Removes the waiters whose runs have ended. Returns how many are left.
    pub(super) fn remove_abandoned(&self) -> usize {
        // SAFETY: the lock is held.
        unsafe { self.0.waiters.remove_abandoned() }
    }

    /// Takes the first waiter out, if `wanted` accepts what it waits for. The caller readies it
    /// after it has unlocked the queue.
    pub(super) fn take_if(&self, wanted: impl Fn(usize) -> bool) -> Option<One<'a>> {
        // SAFETY: the lock is held; a `One` is readied once.
        unsafe { self.0.waiters.take_if(wanted) }.map(One)
    }

    /// Takes the first waiter out.
    pub(super) fn take(&self) -> Option<One<'a>> {
        self.take_if(|_| true)
    }

    /// Takes all waiters out, and unlocks the queue.
    pub(super) fn take_all(self) -> Several {
        let mut all = Several::new();
        while let Some(one) = self.take() {
            all.add(one);
        }
        all
    }

    /// Parks until the caller is taken out and readied. Returns what it was readied with. `release`
    /// is called when the caller is in the queue, before that is unlocked. It neither parks nor
    /// unwinds.
    ///
    /// # Panics
    /// In `systemstack`; the queue is unlocked and `release` is not called then.
    #[track_caller]
    pub(super) fn park(
        self,
        what: usize,
        place: Place,
        reason: WaitReason,
        release: impl FnOnce(),
    ) -> bool {
        if !may_park() {
            drop(self);
            refuse_park();
        }
        let wait = Wait::alone();
        let waiter = Waiter::new(&wait, what, ptr::null_mut());
        let queue = self.0;
        // `unlock` releases the lock.
        std::mem::forget(self);
        // SAFETY: the lock is held; this frame stays until the waiter was taken and readied, which
        // happens once; what is unlocked is what makes it visible.
        unsafe {
            match place {
                Place::Front => queue.waiters.push_front(&waiter),
                Place::Back => queue.waiters.push(&waiter),
            }
            gopark(reason, || {
                release();
                queue.lock.unlock();
            });
        }
        wait.passed()
    }
}
