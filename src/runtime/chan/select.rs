#![allow(unsafe_code, reason = "slots whose types are erased")]
//! Select: one of several sends and receives, whichever can happen first.
//!
//! All channels are locked at once, in the order of their addresses, so that two selects over the
//! same channels do not wait for each other. If no case can happen, one waiter is put into the
//! queue of each case; all of them share one claim.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr;
use std::time::Duration;

use crate::runtime::chan::channel::{Attempt, Chan, Inner};
use crate::runtime::chan::waiters::{SpinLock, Wait, Waiter, Waiters};
use crate::runtime::gmp::status::WaitReason;
use crate::runtime::sched::park::{gopark, may_park, refuse_park};
use crate::runtime::sync::Claim;
use crate::runtime::task::{Limit, sleep};

/// One case of a [`select`]: a send or a receive that may happen.
#[must_use = "a case happens in a select"]
pub struct Case<'a> {
    channel: &'a dyn Channel,
    sending: bool,
    /// `*mut Option<T>` of the caller.
    slot: *mut (),
    /// The borrow of the slot.
    borrow: PhantomData<&'a mut ()>,
}

impl<'a> Case<'a> {
    /// Receives from `channel` into `slot`. When the case is chosen, the slot holds the value, or
    /// `None` if the channel is closed.
    ///
    /// ```
    /// use footbridge::runtime::{Case, Chan, select};
    /// let (channel, mut slot) = (Chan::new(1), None);
    /// channel.send(7)?;
    /// select(&mut [Case::recv(&channel, &mut slot)]);
    /// assert_eq!(slot, Some(7));
    /// # Ok::<(), footbridge::runtime::SendError<u8>>(())
    /// ```
    pub fn recv<T: Send>(channel: &'a Chan<T>, slot: &'a mut Option<T>) -> Self {
        *slot = None;
        let slot = ptr::from_mut(slot).cast();
        Self { channel: &*channel.0, sending: false, slot, borrow: PhantomData }
    }

    /// Sends what is in `slot` to `channel`. When the case is chosen, the slot is `None`, or still
    /// holds the value if the channel is closed. An empty slot makes a case that never happens.
    ///
    /// ```
    /// use footbridge::runtime::{Case, Chan, select};
    /// let (channel, mut slot) = (Chan::new(1), Some(7));
    /// select(&mut [Case::send(&channel, &mut slot)]);
    /// assert_eq!((slot, channel.recv()), (None, Ok(7)));
    /// ```
    pub fn send<T: Send>(channel: &'a Chan<T>, slot: &'a mut Option<T>) -> Self {
        let slot = ptr::from_mut(slot).cast();
        Self { channel: &*channel.0, sending: true, slot, borrow: PhantomData }
    }
}

impl fmt::Debug for Case<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.sending { "send to" } else { "receive from" };
        write!(f, "Case({what} {:p})", self.channel)
    }
}

/// A channel whose type of values is erased. The slots are `*mut Option<T>`.
trait Channel {
    fn spin_lock(&self) -> &SpinLock;
    /// Empties a slot.
    ///
    /// # Safety
    /// The slot is of this channel's type.
    unsafe fn reset(&self, slot: *mut ());
    /// Whether the case can ever happen.
    ///
    /// # Safety
    /// The slot is of this channel's type.
    unsafe fn is_enabled(&self, sending: bool, slot: *mut ()) -> bool;
    /// Tries the case under the lock, which is released unless the case would block.
    ///
    /// # Safety
    /// The lock is held; the slot is of this channel's type.
    unsafe fn attempt(&self, sending: bool, slot: *mut ()) -> Attempt;
    /// Makes room for the value of a waiter, and moves the value of a sender there.
    ///
    /// # Safety
    /// The slot is of this channel's type.
    unsafe fn prepare(&self, sending: bool, slot: *mut (), staging: &mut Staging);
    /// Moves the value between staging and slot after the wait.
    ///
    /// # Safety
    /// 1. The slot is of this channel's type.
    /// 2. `prepare` was called before with the same staging.
    unsafe fn finish(&self, sending: bool, slot: *mut (), staging: &mut Staging, passed: bool);
    /// # Safety
    /// The lock is held as long as the queue is used.
    unsafe fn queue(&self, sending: bool) -> &Waiters;
}

/// Room for a value while a select waits, boxed since its size is erased.
struct Staging(*mut ());

impl<T> Channel for Inner<T> {
    fn spin_lock(&self) -> &SpinLock {
        &self.lock
    }

    unsafe fn reset(&self, slot: *mut ()) {
        // SAFETY: of this channel's type.
        unsafe { *slot.cast::<Option<T>>() = None };
    }

    unsafe fn is_enabled(&self, sending: bool, slot: *mut ()) -> bool {
        // SAFETY: of this channel's type.
        !sending || unsafe { (*slot.cast::<Option<T>>()).is_some() }
    }

    unsafe fn attempt(&self, sending: bool, slot: *mut ()) -> Attempt {
        // SAFETY: of this channel's type.
        let slot = unsafe { &mut *slot.cast::<Option<T>>() };
        if sending {
            let mut value = MaybeUninit::new(slot.take().expect("an enabled case has a value"));
            // SAFETY: the lock is held; the value is put back unless it was moved out.
            let attempt = unsafe { self.send_locked(value.as_mut_ptr()) };
            if !matches!(attempt, Attempt::Passed) {
                // SAFETY: not moved out.
                *slot = Some(unsafe { value.assume_init() });
            }
            attempt
        } else {
            let mut value = MaybeUninit::uninit();
            // SAFETY: the lock is held; the value is read if one was left.
            unsafe {
                let attempt = self.recv_locked(value.as_mut_ptr());
                if matches!(attempt, Attempt::Passed) {
                    *slot = Some(value.assume_init());
                }
                attempt
            }
        }
    }

    unsafe fn prepare(&self, sending: bool, slot: *mut (), staging: &mut Staging) {
        let mut room = Box::new(MaybeUninit::<T>::uninit());
        if sending {
            // SAFETY: of this channel's type.
            let slot = unsafe { &mut *slot.cast::<Option<T>>() };
            room.write(slot.take().expect("an enabled case has a value"));
        }
        staging.0 = Box::into_raw(room).cast();
    }

    unsafe fn finish(&self, sending: bool, slot: *mut (), staging: &mut Staging, passed: bool) {
        // SAFETY: made by `prepare`. A sender's value is still there unless it passed, a
        // receiver's is there if it did.
        unsafe {
            let room = Box::from_raw(staging.0.cast::<MaybeUninit<T>>());
            if passed != sending {
                *slot.cast::<Option<T>>() = Some(*room.assume_init());
            }
        }
    }

    unsafe fn queue(&self, sending: bool) -> &Waiters {
        // SAFETY: the lock is held.
        unsafe { self.queue(sending) }
    }
}

/// Waits until one of the cases can happen, makes it happen, and returns its index. Where several
/// can, one is chosen at random. Without cases this parks for ever.
///
/// ```
/// use footbridge::runtime::{self, Case, Chan, select};
/// runtime::run(|| {
///     let (a, b) = (Chan::new(1), Chan::<u8>::new(1));
///     a.send("hello").expect("open");
///     let (mut from_a, mut from_b) = (None, None);
///     let chosen = select(&mut [Case::recv(&a, &mut from_a), Case::recv(&b, &mut from_b)]);
///     assert_eq!((chosen, from_a, from_b), (0, Some("hello"), None));
/// });
/// ```
///
/// # Panics
/// Where it would have to park in [`systemstack`](crate::runtime::systemstack).
#[track_caller]
pub fn select(cases: &mut [Case<'_>]) -> usize {
    reset(cases);
    if let Some(chosen) = poll(cases, true) {
        return chosen;
    }
    if !may_park() {
        lock_order(cases).iter().for_each(|lock| lock.unlock());
        refuse_park();
    }
    wait(cases, &Wait::shared(), None).expect("without a limit of time only a case ends the wait")
}

/// As [`select`], but `None` if no case can happen now.
///
/// ```
/// use footbridge::runtime::{Case, Chan, try_select};
/// let (channel, mut slot) = (Chan::<u8>::new(1), None);
/// assert_eq!(try_select(&mut [Case::recv(&channel, &mut slot)]), None);
/// ```
pub fn try_select(cases: &mut [Case<'_>]) -> Option<usize> {
    reset(cases);
    poll(cases, false)
}

/// As [`select`], but `None` if no case could happen within `timeout`. Then the slots of sends
/// still hold their values.
///
/// ```
/// use std::time::Duration;
/// use footbridge::runtime::{Case, Chan, select_timeout};
/// let (a, b) = (Chan::<u8>::new(1), Chan::new(0));
/// let (mut from_a, mut to_b) = (None, Some("value"));
/// let mut cases = [Case::recv(&a, &mut from_a), Case::send(&b, &mut to_b)];
/// assert_eq!(select_timeout(&mut cases, Duration::from_millis(1)), None);
/// assert_eq!((from_a, to_b), (None, Some("value")));
/// ```
///
/// # Panics
/// Where it would have to park in [`systemstack`](crate::runtime::systemstack).
#[track_caller]
pub fn select_timeout(cases: &mut [Case<'_>], timeout: Duration) -> Option<usize> {
    let chosen = try_select(cases);
    if chosen.is_some() || timeout.is_zero() {
        return chosen;
    }
    if !may_park() {
        refuse_park();
    }
    if cases.is_empty() {
        // A park with a limit relies on a lock that its end must take: see `Claim`.
        sleep(timeout);
        return None;
    }
    let shared = Wait::limited();
    // SAFETY: dropped at the end of this function; made by `Wait::limited`.
    let limit = unsafe { Limit::set(&shared.park, timeout) };
    poll(cases, true).or_else(|| wait(cases, &shared, Some(&limit)))
}

/// Empties the slots of receives. A case may be used twice, and the drop of what is in a slot may
/// do anything, so this is not done under a lock.
fn reset(cases: &mut [Case<'_>]) {
    for case in cases.iter().filter(|case| !case.sending) {
        // SAFETY: a case's slot is of its channel's type.
        unsafe { case.channel.reset(case.slot) };
    }
}

/// Tries every case once, from a random one on. With `keep` and no success, all locks stay held.
fn poll(cases: &mut [Case<'_>], keep: bool) -> Option<usize> {
    let locks = lock_order(cases);
    for lock in &locks {
        lock.lock();
    }
    let start = random(cases.len());
    for i in 0..cases.len() {
        let at = (start + i) % cases.len();
        let case = &cases[at];
        // SAFETY: a case's slot is of its channel's type; all locks are held.
        unsafe {
            if !case.channel.is_enabled(case.sending, case.slot) {
                continue;
            }
            match case.channel.attempt(case.sending, case.slot) {
                Attempt::WouldBlock => {}
                Attempt::Passed | Attempt::Closed => {
                    // This channel's lock is released already.
                    let own = ptr::from_ref(case.channel.spin_lock());
                    locks.iter().filter(|l| !ptr::eq(**l, own)).for_each(|l| l.unlock());
                    return Some(at);
                }
            }
        }
    }
    if !keep {
        locks.iter().for_each(|lock| lock.unlock());
    }
    None
}

/// The locks of all channels, each once, by address: every select takes them in the same order.
fn lock_order<'a>(cases: &[Case<'a>]) -> Vec<&'a SpinLock> {
    let mut locks: Vec<&SpinLock> = cases.iter().map(|case| case.channel.spin_lock()).collect();
    locks.sort_by_key(|lock| ptr::from_ref(*lock));
    locks.dedup_by_key(|lock| ptr::from_ref(*lock));
    locks
}

/// Parks in the queues of all cases; the caller can park. All locks are held on entry and released
/// on return. `shared` was made for the limit, or for none.
fn wait(cases: &mut [Case<'_>], shared: &Wait, limit: Option<&Limit<'_>>) -> Option<usize> {
    let locks = lock_order(cases);
    let mut waiters: Vec<Option<(Waiter, Staging)>> = Vec::with_capacity(cases.len());
    for (at, case) in cases.iter().enumerate() {
        // SAFETY: slots are of their channels' types; all locks are held.
        unsafe {
            if !case.channel.is_enabled(case.sending, case.slot) {
                waiters.push(None);
                continue;
            }
            let mut staging = Staging(ptr::null_mut());
            case.channel.prepare(case.sending, case.slot, &mut staging);
            waiters.push(Some((Waiter::new(shared, at, staging.0), staging)));
        }
    }
    for (case, waiter) in cases.iter().zip(&waiters) {
        if let Some((waiter, _)) = waiter {
            // SAFETY: the locks are held; the vector does not grow any more.
            unsafe { case.channel.queue(case.sending).push(waiter) };
        }
    }
    let reason = if cases.is_empty() { WaitReason::SelectNoCases } else { WaitReason::Select };
    let unlock = || locks.iter().for_each(|lock| lock.unlock());
    match limit {
        // SAFETY: a peer that takes a waiter claims the wait, and the one that wins readies once.
        None => unsafe { gopark(reason, unlock) },
        // SAFETY: a peer that takes a waiter claims the wait, and the one that wins readies once;
        // the caller can park.
        Some(limit) => unsafe { limit.park(reason, unlock) },
    }
    for lock in &locks {
        lock.lock();
    }
    for (case, waiter) in cases.iter().zip(&waiters) {
        if let Some((waiter, _)) = waiter {
            // SAFETY: the locks are held.
            unsafe { case.channel.queue(case.sending).remove(waiter) };
        }
    }
    locks.iter().for_each(|lock| lock.unlock());
    let outcome = shared.park.claim.outcome();
    for (at, (case, waiter)) in cases.iter().zip(&mut waiters).enumerate() {
        if let Some((_, staging)) = waiter {
            let passed = at == outcome && shared.passed();
            // SAFETY: out of every queue, so no peer touches the staging.
            unsafe { case.channel.finish(case.sending, case.slot, staging, passed) };
        }
    }
    (outcome != Claim::TIMED_OUT).then_some(outcome)
}

/// A random number below `bound`; 0 for 0.
fn random(bound: usize) -> usize {
    thread_local! {
        static SEED: Cell<u64> = const { Cell::new(0x9e37_79b9_7f4a_7c15) };
    }
    // The access is over before anything can park.
    let seed = SEED.with(|seed| {
        let mut x = seed.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        seed.set(x);
        x
    });
    (seed >> 33) as usize % bound.max(1)
}
