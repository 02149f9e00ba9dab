#![allow(unsafe_code, reason = "hands raw items to another thread")]
//! Parking and readying without a lost wake-up.
//!
//! The story of a goroutine that waits for an event, in time order:
//!
//! 1. It becomes *waiting* ([`park`]).
//! 2. `unlock` makes it visible to its waker: it releases a lock, or registers the goroutine by one
//!    exchange. From here on another thread may ready it.
//! 3. It leaves its stack for the next goroutine.
//! 4. The waker makes it *runnable* ([`make_runnable`]) and queues it: on the waker's own M with
//!    [`publish`], on another M with [`push_remote`].
//!
//! Steps 1 and 2 must not change places: the waker would find a goroutine that is still running.
//!
//! Between 2 and 3 the goroutine is runnable while it is still on its stack. That is no danger
//! where only its own thread can resume it, since that thread is busy with step 3. A migratable
//! goroutine can be resumed by another thread. So it saves its context first, and makes steps 1 and
//! 2 on the system stack.
//!
//! A foreign thread waits on a word of its own instead: [`park_thread`], [`ready_thread`].

use super::idle::Parking;
use super::inbox::{Inbox, Linked};
use super::primitive::{AtomicU32, Ordering, light_fence};
use super::status::{HasStatus, RUNNABLE, RUNNING, WAITING, transition};

/// Parks the running goroutine. `unlock` makes it visible to its waker. The caller leaves the
/// goroutine's stack next, or has left it (a migratable goroutine).
///
/// The way out is no closure: the switch is written out where the goroutine parks, and a closure of
/// that size is not inlined.
#[inline(always)]
pub(crate) fn park(g: &impl HasStatus, unlock: impl FnOnce()) {
    transition(g, RUNNING, WAITING);
    unlock();
}

/// Makes a parked goroutine runnable. The caller has the right to, and queues it afterwards.
#[inline(always)]
pub(crate) fn make_runnable(g: &impl HasStatus) {
    transition(g, WAITING, RUNNABLE);
}

/// Queues a runnable goroutine on this M, and wakes another M if any may run it.
///
/// `is_for_all` reads fields of the goroutine. That comes before `enqueue`: a thief may take the
/// goroutine from the queue at once, run it, and write to those fields.
#[inline(always)]
pub(crate) fn publish(
    is_for_all: impl FnOnce() -> bool,
    enqueue: impl FnOnce(),
    wake_one: impl FnOnce(),
) {
    let is_for_all = is_for_all();
    enqueue();
    if is_for_all {
        wake_one();
    }
}

/// Hands a runnable goroutine to the M that it belongs to, from another thread. `wake` wakes the
/// thread that sleeps on the word. Returns whether that M has yet to leave its sleep: then it
/// drains the inbox before it runs anything.
///
/// The fence stands against the one of an M that announces its sleep: either that M sees the
/// goroutine in its inbox, or this thread sees the announcement.
///
/// # Safety
/// 1. The caller owns the item, and gives it up here.
/// 2. The owner of the inbox takes items out by [`Inbox::drain`] only.
#[inline(always)]
pub(crate) unsafe fn push_remote<T: Linked>(
    inbox: &Inbox<T>,
    parking: &Parking,
    item: *mut T,
    wake: impl FnOnce(&AtomicU32),
) -> bool {
    // SAFETY: contract (1).
    unsafe { inbox.push(item) };
    light_fence();
    parking.unpark(wake)
}

/// Parks a foreign thread on its word. `unlock` makes it visible to its waker; `sleep(word, value)`
/// sleeps while the word has that value, and may return early.
pub(crate) fn park_thread(
    word: &AtomicU32,
    unlock: impl FnOnce(),
    sleep: impl Fn(&AtomicU32, u32),
) {
    // The waker stores after `unlock`, so that this store cannot undo its store.
    word.store(0, Ordering::Relaxed);
    unlock();
    while word.load(Ordering::Acquire) == 0 {
        sleep(word, 0);
    }
}

/// Readies a thread that [`park_thread`] parks. The word is not freed meanwhile, though the thread
/// may return before `wake` is called.
pub(crate) fn ready_thread(word: &AtomicU32, wake: impl FnOnce(&AtomicU32)) {
    word.store(1, Ordering::Release);
    wake(word);
}
