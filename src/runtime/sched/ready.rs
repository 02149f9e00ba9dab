#![allow(unsafe_code, reason = "moves raw, immortal structures between queues")]
//! Making goroutines runnable: which queue each goes to, and which M is woken for it.
//!
//! This file must not take a goroutine out to run it: that is `find.rs`.
//!
//! | the goroutine | readied by the running one | otherwise |
//! | --- | --- | --- |
//! | belongs to this M | run-next slot | `local` |
//! | belongs to another M | the inbox of that M | the inbox of that M |
//! | may run anywhere, and parked on this M | run-next slot | the run queue of this P |
//! | may run anywhere, and parked on another M of the run | the run queue of this P | same |
//! | may run anywhere, readied from outside of the run | the inbox of the M it parked on | same |
//!
//! A goroutine that the run-next slot already has is moved to a queue. A run queue that is full is
//! spilled to the global queue by half.

use std::ptr;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::runtime::gmp::current::{getm, sched_of};
use crate::runtime::gmp::g::{Backlog, G};
use crate::runtime::gmp::m::M;
use crate::runtime::gmp::p::{RUNQ, bump};
use crate::runtime::gmp::parker::Parker;
use crate::runtime::gmp::queues::GQueue;
use crate::runtime::gmp::sched::Sched;
use crate::runtime::gmp::status::WaitReason;
use crate::runtime::gmp::timers;
use crate::runtime::os::futex;
use crate::runtime::sync::idle::{self, Idle, Instance, Parking};
use crate::runtime::sync::park;

impl Instance for Sched {
    fn idle(&self) -> &Idle {
        &self.idle
    }

    fn stopping(&self) -> &AtomicBool {
        &self.stopping
    }

    fn parkings(&self) -> impl Iterator<Item = &Parking> + Clone {
        self.ms.iter().map(|m| &m.remote.parking)
    }

    fn work_exists(&self) -> bool {
        work_exists(self)
    }

    fn wake(&self, _chosen: &Parking, word: &AtomicU32) {
        futex::wake(word);
    }
}

impl Sched {
    /// Puts `count` goroutines at the end of the global queue. Returns how many have entered it so
    /// far.
    pub(crate) fn push_global(&self, gs: &GQueue, count: usize) -> u32 {
        let global = self.global.lock().unwrap_or_else(PoisonError::into_inner);
        global.0.append(gs);
        let before = self.global_pushed.fetch_add(count as u32, Ordering::Relaxed);
        self.global_len.fetch_add(count, Ordering::Release);
        before.wrapping_add(count as u32)
    }

    /// Wakes a sleeping M, unless one is spinning already. Called after work was published.
    #[inline(always)]
    pub(crate) fn wake_one(&self) {
        idle::wake_one(self);
    }
}

/// Puts a runnable goroutine at the end of a queue of this M. From here on another M may run it, if
/// any may.
#[inline(always)]
pub(crate) fn enqueue(m: &M, g: *mut G) {
    // SAFETY: a G is never freed.
    if belongs_to_thread(unsafe { &*g }) {
        m.local.push(g);
    } else if m.p.runq.push(g).is_err() {
        spill(m, g);
    }
}

/// Moves half of the run queue, which is full, and the goroutine to the global queue. One lock for
/// many goroutines.
#[cold]
fn spill(m: &M, g: *mut G) {
    let half = GQueue::new();
    if !m.p.runq.take_half(|g| half.push(g)) {
        return enqueue(m, g); // Thieves have made room.
    }
    half.push(g);
    // SAFETY: `m` is this thread's M.
    let pushed = unsafe { sched_of(m) }.push_global(&half, RUNQ / 2 + 1);
    m.spills.set((m.spills.get().0.wrapping_add(1), pushed));
}

/// [`enqueue`], and wakes another M if any may run the goroutine.
///
/// Where the goroutine may run is read before it is queued: `park::publish` says why.
#[inline(always)]
fn enqueue_and_wake(m: &M, g: *mut G) {
    park::publish(
        // SAFETY: a G is never freed.
        || !belongs_to_thread(unsafe { &*g }),
        || enqueue(m, g),
        // SAFETY: `m` is this thread's M, which has not left its run.
        || unsafe { sched_of(m) }.wake_one(),
    );
}

/// Whether the goroutine may run on its M only.
#[inline(always)]
fn belongs_to_thread(g: &G) -> bool {
    !g.migratable.get() && !g.m.load(Ordering::Relaxed).is_null()
}

/// Moves the goroutine in the run-next slot, which may not inherit the time slice any more, to the
/// end of a queue.
///
/// It must not stay in the slot. There it would starve as long as the queues have something, and
/// the goroutine that readied it is in one of them when it polls in a loop.
#[cold]
pub(crate) fn displace_run_next(m: &M) {
    enqueue_and_wake(m, m.p.run_next.replace(ptr::null_mut()));
}

/// Puts a goroutine that this M has run, and that yields or whose time slice is over, after
/// everything that is runnable here. From here on another M may run it, if any may.
///
/// In `local` a goroutine of this thread would run before most of what waits in the run queue and
/// the global queue: a producer that starts many goroutines and yields after each batch would run
/// ahead of all of them. So it goes to `yielded`, with the position of what must run before it.
///
/// Rejected: a queue for all Ms that also holds goroutines of one thread. A spill reorders it, so
/// that it does not keep the order either. Positions do, over spills, too.
#[inline(never)]
pub(crate) fn enqueue_last(m: &M, sched: &Sched, g: &G) {
    let p = &m.p;
    if !p.run_next.get().is_null() && !p.ticks.may_inherit() {
        displace_run_next(m);
    }
    let is_global = sched.global_len.load(Ordering::Relaxed) != 0;
    let queued = ptr::from_ref(g).cast_mut();
    if !belongs_to_thread(g) {
        if is_global {
            let only = GQueue::new();
            only.push(queued);
            sched.push_global(&only, 1);
        } else {
            enqueue(m, queued);
        }
    } else if is_global || !p.runq.is_empty() || !m.yielded.is_empty() {
        let before = match is_global {
            true => sched.global_pushed.load(Ordering::Relaxed),
            false => p.runq.tail_position(),
        };
        g.backlog.set(Backlog { is_global, moved: 0, spills: m.spills.get().0, before });
        m.yielded.push(queued);
    } else {
        m.local.push(queued);
    }
}

/// Readies the goroutines of `owner` whose timers are due. `m` is the M of this thread. A goroutine
/// that belongs to another thread goes there.
#[cold]
pub(crate) fn run_timers(m: &M, owner: &M) {
    let now = timers::now();
    while let Some(sleeper) = owner.p.timers.take_due(now) {
        bump(&m.p.counts.timers, 1);
        // SAFETY: the goroutine waits for this timer, which `take_due` hands out once: a sleeping
        // goroutine is readied by its timer only, and of a wait with a limit the timer has the
        // claim.
        unsafe { ready(sleeper, false) };
    }
}

/// Makes a parked goroutine runnable. It runs next on its thread, if that is this one. If the
/// parker is a foreign thread, the thread wakes.
///
/// ```
/// use footbridge::runtime::{self, WaitReason, current, go, goready, gopark};
///
/// runtime::run(|| {
///     let me = current();
///     // SAFETY: the goroutine that `unlock` starts readies this one, once.
///     unsafe { gopark(WaitReason::Other, || drop(go(move || goready(me)))) };
/// });
/// ```
///
/// # Safety
/// 1. The goroutine is in a [`gopark`](crate::runtime::gopark) whose `unlock` was called or is
///    running.
/// 2. No other call readies it from that `gopark`.
#[inline]
pub unsafe fn goready(parker: Parker) {
    // SAFETY: the contract of this function.
    unsafe { ready(parker, true) };
}

/// [`goready`]. With `next` false the goroutine runs after those that are runnable already.
///
/// # Safety
/// 1. and 2. of [`goready`].
#[inline]
pub(crate) unsafe fn ready(parker: Parker, next: bool) {
    // SAFETY: a G is never freed.
    let g = unsafe { &*parker.0 };
    if g.is_thread.get() {
        return park::ready_thread(&g.thread_wake, futex::wake);
    }
    park::make_runnable(g);
    g.set_wait_reason(WaitReason::None);
    // The goroutine is this thread's until it is queued. Every field is read before that: another M
    // may run it at once.
    let m = getm();
    let home = g.m.load(Ordering::Relaxed);
    if ptr::eq(m, home) {
        // SAFETY: the M that the goroutine parked on, which is never freed; it is this thread's.
        let m = unsafe { &*m };
        if m.run_id.load(Ordering::Relaxed) != g.run_id.load(Ordering::Relaxed) {
            return; // Its run is over. This M serves another one now.
        }
        let queued = if next { m.p.run_next.replace(parker.0) } else { parker.0 };
        if !queued.is_null() {
            enqueue_and_wake(m, queued);
        }
        return;
    }
    // SAFETY: an M is never freed, and the goroutine has had one since it started.
    let home = unsafe { &*home };
    if !g.migratable.get() {
        home.push_remote(parker.0);
        return;
    }
    // SAFETY: null, or this thread's M, which is never freed.
    match unsafe { m.as_ref() } {
        Some(m) if m.run_id.load(Ordering::Relaxed) == g.run_id.load(Ordering::Relaxed) => {
            enqueue(m, parker.0);
            // SAFETY: this thread's M, which has not left its run.
            unsafe { sched_of(m) }.wake_one();
        }
        // From outside of the run: the M that it parked on takes it in.
        _ => {
            home.push_remote(parker.0);
        }
    }
}

/// Sends `count` goroutines of this M's run queue, or as many as there are, to another M, which
/// probably sleeps: any M may run them. Returns false where it does not sleep.
///
/// An inbox is its owner's: what is in it waits while the owner runs a goroutine that does not
/// yield. Nothing that another M could start may wait for that. An M that leaves its sleep drains
/// its inbox before it runs anything. One that has left it may have begun to run something. So what
/// it has not drained is taken back, by the same exchange, which gives each goroutine to one of the
/// two.
pub(crate) fn send_to_sleeper(m: &M, sleeper: &M, count: usize) -> bool {
    let mut last = m.p.runq.pop();
    let mut sent = u64::from(!last.is_null());
    for _ in 1..count {
        let next = m.p.runq.pop();
        if next.is_null() {
            break; // Thieves have come.
        }
        // SAFETY: a G is never freed; this one was taken from this M's queue, and is given up here.
        unsafe { sleeper.remote.inbox.push(last) };
        sent += 1;
        last = next;
    }
    if last.is_null() {
        return false;
    }
    let sleeps = sleeper.push_remote(last);
    if sleeps {
        bump(&m.p.counts.sent, sent);
    } else {
        take_back(m, sleeper);
    }
    sleeps
}

/// Takes the goroutines that have not started from the inbox of another M, and queues them here.
///
/// The other M may have searched while they were in no queue, and now be on its way to sleep: it
/// found neither its inbox nor a queue with something. So what is queued here is published like
/// any other work.
#[cold]
fn take_back(m: &M, other: &M) {
    other.remote.inbox.drain(|g| {
        // SAFETY: a G is never freed, and this one is this thread's since it was drained.
        let has_started = unsafe { !(*g).m.load(Ordering::Relaxed).is_null() };
        if has_started {
            other.push_remote(g);
        } else {
            enqueue(m, g);
        }
    });
    if !m.p.runq.is_empty() {
        // SAFETY: this thread's M, which has not left its run.
        unsafe { sched_of(m) }.wake_one();
    }
}

/// Whether a queue that all Ms take from has something.
pub(crate) fn work_exists(sched: &Sched) -> bool {
    sched.global_len.load(Ordering::Acquire) != 0 || sched.ms.iter().any(|m| !m.p.runq.is_empty())
}

/// Queues what other threads have pushed, oldest first. Returns whether another M should be woken
/// for part of it.
#[cold]
pub(crate) fn drain_inbox(m: &M) -> bool {
    let mut taken = 0;
    m.remote.inbox.drain(|g| {
        // SAFETY: a G is never freed, and this one is this M's since it was drained.
        let run_id = unsafe { (*g).run_id.load(Ordering::Relaxed) };
        // A goroutine of an earlier run of this M is abandoned: its thread has ended.
        if run_id == m.run_id.load(Ordering::Relaxed) {
            enqueue(m, g);
            taken += 1;
        }
    });
    // A single one runs next, unless another goroutine of this thread does.
    let is_next = taken <= 1 && m.p.run_next.get().is_null() && m.local.is_empty();
    !is_next && !m.p.runq.is_empty()
}
