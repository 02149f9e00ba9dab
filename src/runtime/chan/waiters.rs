#![allow(unsafe_code, reason = "waiters lie in the stacks of those that wait")]
//! The goroutines that wait at a channel or a lock, and the lock that guards their queues.

use std::cell::Cell;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::runtime::gmp::parker::Parker;
use crate::runtime::gmp::timers::ParkClaim;
use crate::runtime::sched::park::current;
use crate::runtime::sched::ready::ready;
use crate::runtime::sync::Claim;

/// A lock for a few dozen instructions: taken by one exchange, released by a plain store.
pub(crate) struct SpinLock(AtomicBool);

impl SpinLock {
    pub(in crate::runtime) const fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    #[inline(always)]
    pub(in crate::runtime) fn lock(&self) {
        if self.0.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            self.contended();
        }
    }

    #[cold]
    fn contended(&self) {
        let mut spins = 0u32;
        loop {
            while self.0.load(Ordering::Relaxed) {
                // The holder may have lost its processor; it never parks with the lock.
                spins += 1;
                if spins.is_multiple_of(64) {
                    std::thread::yield_now()
                } else {
                    std::hint::spin_loop()
                }
            }
            if !self.0.swap(true, Ordering::Acquire) {
                return;
            }
        }
    }

    #[inline(always)]
    pub(in crate::runtime) fn unlock(&self) {
        self.0.store(false, Ordering::Release);
    }
}

/// What the waiters of one `send`, `recv` or `select` share.
pub(crate) struct Wait {
    /// Which case ended the wait, and the goroutine to ready then.
    pub(in crate::runtime) park: ParkClaim,
    /// Whether a value passed; otherwise the channel was closed. Written with the claim.
    passed: Cell<bool>,
    /// Several peers may compete for the claim: there are several cases, or there is a timer.
    shared: bool,
}

impl Wait {
    /// A wait of the calling goroutine (or thread) for one case, without a limit of time.
    #[inline(always)]
    pub(in crate::runtime) fn alone() -> Self {
        Self::new(Claim::open(), false)
    }

    /// For several cases, without a limit of time.
    pub(in crate::runtime) fn shared() -> Self {
        Self::new(Claim::open(), true)
    }

    /// For any number of cases, to park with a [`Limit`](super::super::task::Limit).
    pub(in crate::runtime) fn limited() -> Self {
        Self::new(Claim::arming(), true)
    }

    #[inline(always)]
    fn new(claim: Claim, shared: bool) -> Self {
        Self { park: ParkClaim { parker: current(), claim }, passed: Cell::new(false), shared }
    }

    /// Whether a value passed. Owner only, after the wait.
    #[inline(always)]
    pub(in crate::runtime) fn passed(&self) -> bool {
        self.passed.get()
    }
}

/// A goroutine in one queue.
pub(crate) struct Waiter {
    wait: *const Wait,
    /// Of a select: the number of the case. Of a lock: what the goroutine waits for.
    pub(in crate::runtime) case: usize,
    /// Where the value is (senders) or goes (receivers).
    pub(in crate::runtime) value: *mut (),
    next: Cell<*const Waiter>,
    previous: Cell<*const Waiter>,
    queued: Cell<bool>,
}

impl Waiter {
    pub(in crate::runtime) fn new(wait: &Wait, case: usize, value: *mut ()) -> Self {
        Self {
            wait,
            case,
            value,
            next: Cell::new(ptr::null()),
            previous: Cell::new(ptr::null()),
            queued: Cell::new(false),
        }
    }

    /// The goroutine, or thread, that waits.
    pub(in crate::runtime) fn parker(&self) -> Parker {
        // SAFETY: the wait lives as long as its waiters.
        unsafe { (*self.wait).park.parker }
    }
}

/// A queue of waiters, guarded by the lock of the channel.
pub(crate) struct Waiters {
    first: Cell<*const Waiter>,
    last: Cell<*const Waiter>,
}

impl Waiters {
    pub(in crate::runtime) const fn new() -> Self {
        Self { first: Cell::new(ptr::null()), last: Cell::new(ptr::null()) }
    }

    pub(in crate::runtime) fn is_empty(&self) -> bool {
        self.first.get().is_null()
    }

    /// # Safety
    /// The lock is held, and the waiter stays where it is until it is out of the queue.
    pub(in crate::runtime) unsafe fn push(&self, waiter: &Waiter) {
        let last = self.last.replace(waiter);
        waiter.previous.set(last);
        waiter.next.set(ptr::null());
        waiter.queued.set(true);
        if last.is_null() {
            self.first.set(waiter);
        } else {
            // SAFETY: queued waiters are where they were.
            unsafe { (*last).next.set(waiter) };
        }
    }

    /// Puts a waiter in front of all others.
    ///
    /// # Safety
    /// As for [`Self::push`].
    pub(in crate::runtime) unsafe fn push_front(&self, waiter: &Waiter) {
        let first = self.first.replace(waiter);
        waiter.previous.set(ptr::null());
        waiter.next.set(first);
        waiter.queued.set(true);
        if first.is_null() {
            self.last.set(waiter);
        } else {
            // SAFETY: queued waiters are where they were.
            unsafe { (*first).previous.set(waiter) };
        }
    }

    /// Takes a waiter out, if it is still in the queue.
    ///
    /// # Safety
    /// The lock is held, and the waiter is in this queue or in none.
    pub(in crate::runtime) unsafe fn remove(&self, waiter: &Waiter) {
        if !waiter.queued.replace(false) {
            return;
        }
        let (previous, next) = (waiter.previous.get(), waiter.next.get());
        // SAFETY: neighbours are queued, so they are where they were.
        unsafe {
            if previous.is_null() {
                self.first.set(next)
            } else {
                (*previous).next.set(next)
            }
            if next.is_null() { self.last.set(previous) } else { (*next).previous.set(previous) }
        }
    }

    /// Removes the waiters that are abandoned. Returns how many are left.
    ///
    /// # Safety
    /// The lock is held.
    pub(in crate::runtime) unsafe fn remove_abandoned(&self) -> usize {
        let (mut left, mut next) = (0, self.first.get());
        // SAFETY: queued waiters are where they were; the lock is held.
        unsafe {
            while let Some(waiter) = next.as_ref() {
                next = waiter.next.get();
                if waiter.parker().is_abandoned() {
                    self.remove(waiter);
                } else {
                    left += 1;
                }
            }
        }
        left
    }

    /// Takes the first waiter whose wait can still be claimed, and claims it. Others are dropped on
    /// the way: those that lost to another case or to their timer, and abandoned ones.
    ///
    /// # Safety
    /// The lock is held. The caller passes the value or not, and then calls [`fire`].
    pub(in crate::runtime) unsafe fn take<'a>(&self) -> Option<&'a Waiter> {
        // SAFETY: the contract of this function.
        unsafe { self.take_if(|_| true) }
    }

    /// [`Self::take`], unless `wanted` refuses the case of the first waiter: then that one stays.
    ///
    /// # Safety
    /// As for [`Self::take`].
    #[inline(always)]
    pub(in crate::runtime) unsafe fn take_if<'a>(
        &self,
        wanted: impl Fn(usize) -> bool,
    ) -> Option<&'a Waiter> {
        loop {
            // SAFETY: queued waiters are where they were; a claimed one stays until it is readied,
            // which is the caller's next act.
            let waiter = unsafe { self.first.get().as_ref()? };
            // SAFETY: it lives as long as its waiters.
            let wait = unsafe { &*waiter.wait };
            let is_abandoned = wait.park.parker.is_abandoned();
            if !is_abandoned && !wanted(waiter.case) {
                return None;
            }
            // SAFETY: the lock is held.
            unsafe { self.remove(waiter) };
            if is_abandoned {
                continue;
            }
            if !wait.shared {
                wait.park.claim.claim_alone(waiter.case);
                return Some(waiter);
            }
            if wait.park.claim.claim(waiter.case) {
                return Some(waiter);
            }
        }
    }
}

/// Waiters that were taken together, oldest first. They are linked by themselves, so that nothing
/// is allocated.
pub(in crate::runtime) struct Taken {
    first: *const Waiter,
    last: *const Waiter,
}

impl Taken {
    pub(in crate::runtime) const fn none() -> Self {
        Self { first: ptr::null(), last: ptr::null() }
    }

    pub(in crate::runtime) fn is_none(&self) -> bool {
        self.first.is_null()
    }

    /// Adds a waiter.
    ///
    /// # Safety
    /// It was taken from its queue, and only this list readies it.
    pub(in crate::runtime) unsafe fn add(&mut self, waiter: &Waiter) {
        waiter.next.set(ptr::null());
        if self.first.is_null() {
            self.first = waiter;
        } else {
            // SAFETY: taken waiters stay where they are until they are readied.
            unsafe { (*self.last).next.set(waiter) };
        }
        self.last = waiter;
    }

    /// Readies all of them. They run in their order: the run-next slot has room for the first one
    /// only, and would hand each to a queue after the next one.
    pub(in crate::runtime) fn fire(self, passed: bool) {
        let mut next = self.first;
        // SAFETY: taken waiters stay where they are until they are readied, which the contract of
        // `add` leaves to this list. The link is read before that.
        unsafe {
            while let Some(waiter) = next.as_ref() {
                next = waiter.next.get();
                fire_at(waiter, passed, ptr::eq(waiter, self.first));
            }
        }
    }
}

/// Readies a waiter that was taken, after its value passed or the channel was closed.
///
/// # Safety
/// The caller took the waiter, and does not use it afterwards.
pub(in crate::runtime) unsafe fn fire(waiter: &Waiter, passed: bool) {
    // SAFETY: the contract of this function.
    unsafe { fire_at(waiter, passed, true) };
}

/// [`fire`]. With `next` false it runs after those that are runnable already.
///
/// # Safety
/// As for [`fire`].
#[inline(always)]
unsafe fn fire_at(waiter: &Waiter, passed: bool, next: bool) {
    // SAFETY: alive until readied.
    unsafe {
        (*waiter.wait).passed.set(passed);
        let parker = (*waiter.wait).park.parker;
        ready(parker, next);
    }
}
