#![allow(unsafe_code, reason = "moves raw, immortal structures between queues")]
//! Making goroutines runnable, and the queues that they go to.
//!
//! A goroutine that belongs to a thread goes to the local queue of its M, or to its inbox if another
//! thread readies it. Any other goroutine goes to the run queue of this P, and from there, where that
//! is full, to the global queue. A goroutine that the running one readies goes to the run-next slot.

use std::ptr;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use crate::runtime::gmp::current::{getm, sched_of};
use crate::runtime::gmp::g::G;
use crate::runtime::gmp::m::M;
use crate::runtime::gmp::p::{RUNQ, bump};
use crate::runtime::gmp::parker::Parker;
use crate::runtime::gmp::queues::GQueue;
use crate::runtime::gmp::sched::Sched;
use crate::runtime::gmp::status::{Status, WaitReason};
use crate::runtime::gmp::timers;
use crate::runtime::os::futex;
use crate::runtime::sync::idle::Parking;

impl Sched {
    /// Puts `count` goroutines at the end of the global queue. Returns how many went in so far.
    pub(crate) fn push_global(&self, gs: &GQueue, count: usize) -> u32 {
        let global = self.global.lock().unwrap_or_else(PoisonError::into_inner);
        global.0.append(gs);
        let before = self.global_pushed.fetch_add(count as u32, Ordering::Relaxed);
        self.global_len.fetch_add(count, Ordering::Release);
        before.wrapping_add(count as u32)
    }

    /// Wakes one idle M, unless one looks for work already. Called after work was published.
    #[inline(always)]
    pub(crate) fn wake_one(&self) {
        if self.idle.someone_sleeps() {
            self.wake_one_idle();
        }
    }

    fn parkings(&self) -> impl Iterator<Item = &Parking> + Clone {
        self.ms.iter().map(|m| &m.remote.parking)
    }

    #[inline(never)]
    fn wake_one_idle(&self) {
        if let Some(parking) = self.idle.choose(self.parkings(), || work_exists(self)) {
            futex::wake(parking.word());
        }
    }
}

/// Puts a runnable goroutine at the end of a queue of this M.
#[inline(always)]
pub(crate) fn enqueue(m: &M, g: *mut G) {
    // SAFETY: immortal.
    if belongs_to_thread(unsafe { &*g }) {
        m.local.push(g);
    } else if m.p.runq.push(g).is_err() {
        spill(m, g);
    }
}

/// The run queue is full: half of it and the goroutine go to the global queue.
#[cold]
fn spill(m: &M, g: *mut G) {
    let half = GQueue::new();
    if !m.p.runq.take_half(|g| half.push(g)) {
        return enqueue(m, g); // there is room now
    }
    half.push(g);
    // SAFETY: `m` is this thread's M.
    let pushed = unsafe { sched_of(m) }.push_global(&half, RUNQ / 2 + 1);
    m.spills.set((m.spills.get().0.wrapping_add(1), pushed));
}

/// Whether the goroutine may run on its M only.
#[inline(always)]
fn belongs_to_thread(g: &G) -> bool {
    !g.migratable.get() && !g.m.load(Ordering::Relaxed).is_null()
}

/// The goroutine in the run-next slot may not run in the current time slice any more: it goes to the
/// end of a queue. Left in the slot it would starve as long as the queues have something, and the
/// goroutine that readied it is in one of them when it polls in a loop.
#[cold]
pub(crate) fn displace_run_next(m: &M) {
    let next = m.p.run_next.replace(ptr::null_mut());
    // SAFETY: immortal.
    let is_for_all = !belongs_to_thread(unsafe { &*next });
    enqueue(m, next);
    if is_for_all {
        // SAFETY: this thread's M.
        unsafe { sched_of(m) }.wake_one();
    }
}

/// Readies the sleepers of `owner` whose time has come, `m` being the M of this thread. A goroutine
/// that belongs to another thread goes there.
#[cold]
pub(crate) fn run_timers(m: &M, owner: &M) {
    let now = timers::now();
    while let Some(sleeper) = owner.p.timers.take_due(now) {
        bump(&m.p.counts.timers, 1);
        // SAFETY: a sleeping goroutine is readied by its timer only, and whoever takes that does it.
        unsafe { ready(sleeper, false) };
    }
}

/// # Safety
/// The goroutine waits, and the caller is the one who readies it.
#[inline(always)]
unsafe fn make_runnable(g: &G) {
    g.transition(Status::Waiting, Status::Runnable);
    g.set_wait_reason(WaitReason::None);
}

/// Makes a parked goroutine runnable. It runs next on its thread, if that is this one.
///
/// # Safety
/// The goroutine is in a [`gopark`] whose `unlock` was called, and nobody else readies it.
#[inline]
pub unsafe fn goready(parker: Parker) {
    // SAFETY: the caller's promise.
    unsafe { ready(parker, true) };
}

/// [`goready`], or with `next` false: behind what is runnable already.
///
/// # Safety
/// As for [`goready`].
#[inline]
pub(crate) unsafe fn ready(parker: Parker, next: bool) {
    // SAFETY: immortal.
    let g = unsafe { &*parker.0 };
    if g.is_thread.get() {
        g.thread_wake.store(1, Ordering::Release);
        return futex::wake(&g.thread_wake);
    }
    // SAFETY: the caller's promise.
    unsafe { make_runnable(g) };
    let m = getm();
    let home = g.m.load(Ordering::Relaxed);
    if ptr::eq(m, home) {
        // SAFETY: this thread's M.
        let m = unsafe { &*m };
        if m.run_id.load(Ordering::Relaxed) != g.run_id.load(Ordering::Relaxed) {
            return; // left behind by an earlier run that used this M
        }
        let queued = if next { m.p.run_next.replace(parker.0) } else { parker.0 };
        // SAFETY: null, or immortal.
        if let Some(g) = unsafe { queued.as_ref() } {
            let is_for_all = !belongs_to_thread(g);
            enqueue(m, queued);
            if is_for_all {
                // SAFETY: this thread's M.
                unsafe { sched_of(m) }.wake_one();
            }
        }
        return;
    }
    // SAFETY: Ms are immortal; it has been one since the goroutine started.
    let home = unsafe { &*home };
    if !g.migratable.get() {
        return home.push_remote(parker.0);
    }
    // SAFETY: an M's run outlives its goroutines' parks; a run that is over is not looked into.
    unsafe {
        if !m.is_null() && (*m).run_id.load(Ordering::Relaxed) == g.run_id.load(Ordering::Relaxed) {
            enqueue(&*m, parker.0);
            sched_of(&*m).wake_one();
        } else {
            // From outside of the run: the M that it parked on takes it in.
            home.push_remote(parker.0);
        }
    }
}

/// Whether any queue that all Ms take from has something.
pub(crate) fn work_exists(sched: &Sched) -> bool {
    sched.global_len.load(Ordering::Acquire) != 0 || sched.ms.iter().any(|m| !m.p.runq.is_empty())
}

/// Queues what was delivered, oldest first. Returns whether there is some for others.
#[cold]
pub(crate) fn drain_inbox(m: &M) -> bool {
    let mut taken = 0;
    m.remote.inbox.drain(|g| {
        // SAFETY: immortal.
        let run_id = unsafe { (*g).run_id.load(Ordering::Relaxed) };
        // A goroutine that an earlier run left behind belongs to a thread that is gone.
        if run_id == m.run_id.load(Ordering::Relaxed) {
            enqueue(m, g);
            taken += 1;
        }
    });
    taken > 1 && !m.p.runq.is_empty()
}
