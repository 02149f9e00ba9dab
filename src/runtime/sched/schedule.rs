#![allow(unsafe_code, reason = "the scheduler moves between stacks")]
//! The scheduler: who runs next, on which thread, and what a thread does when there is nothing.
//!
//! The story of a goroutine, in time order:
//!
//! 1. `go` takes a dead G with its stack (or makes one), puts the closure at the top of the stack
//!    and the G into the run queue of this P. An M that idles is woken to steal it.
//! 2. An M picks it. From its first instruction on it belongs to that M, unless it is migratable.
//! 3. `gopark` makes it waiting. The goroutine itself picks the next one and switches to it
//!    directly; only if there is none does it call the scheduler on the system stack (`mcall`).
//! 4. `goready` makes it runnable: on its own thread by the run-next slot, from another thread by
//!    the inbox of its M.
//! 5. When its closure returns or panics, `goexit0` (`life.rs`) runs on the system stack, since the
//!    stack may be used again at once, publishes the end to whoever joins, and schedules.
//!
//! Why a park cannot lose a wake-up: a goroutine that belongs to a thread is resumed by that
//! thread only, and that thread is busy parking it. One that is migratable might be resumed
//! elsewhere before its context is saved, so it always parks through `mcall`, and what makes it
//! visible to its waker is done there, on the system stack.
//!
//! Why an M does not sleep over work, and why not all of them wake for it: `idle.rs`.
//!
//! Fairness. A goroutine that was readied by the running one goes next, and shares its time slice,
//! so that two who wake each other in turn have one slice and not two. Queues are first in, first
//! out; the global one is looked at once in so many time_slices, and timers once in so many rounds or
//! when sysmon says that one is late.

use std::ptr;
use std::sync::atomic::Ordering;

use crate::runtime::arch::switch::{gogo, goswitch, mcall};
use crate::runtime::gmp::current::{sched_of, set_g_and_stack_limit, this_m};
use crate::runtime::gmp::g::G;
use crate::runtime::gmp::m::M;
use crate::runtime::gmp::status::Status;
use crate::runtime::gmp::timers;
use crate::runtime::sched::find::{find_without_sleep, pick_next, steal};
use crate::runtime::sched::idle::sleep_until_work;
use crate::runtime::sched::ready::{displace_run_next, enqueue, run_timers, work_exists};
use crate::runtime::sync::preempt_request;

/// How long an M without work looks for some before it sleeps, in nanoseconds: less than what it costs
/// to fall asleep and to be woken.
const SPIN_NS: u64 = 10_000;

/// How long it leaves others theirs, in nanoseconds, when it has just run out of its own, and between two
/// looks: a goroutine that its own thread gets to soon costs a tenth there of what it costs elsewhere,
/// and who looks all the time takes the queue's lines from who fills it.
const PATIENCE_NS: u64 = 2_000;

/// Makes `g` the goroutine that `m` runs. A switch to it follows.
#[inline(always)]
pub(crate) fn make_current(m: &M, g: *mut G) {
    // SAFETY: immortal, and taken from a queue of ours: nobody else may run it.
    let gr = unsafe { &*g };
    gr.transition(Status::Runnable, Status::Running);
    if gr.suspend.is_requested() {
        yield_to_suspender(m, gr);
    }
    gr.m.store(ptr::from_ref(m).cast_mut(), Ordering::Relaxed);
    let sp = gr.sched.sp();
    if sp < gr.lowest_sp.get() {
        gr.lowest_sp.set(sp);
    }
    // A new turn: what was asked of an earlier one is over.
    let limit = m.preempt.limit_of(gr);
    preempt_request::begin_tick(&m.curg, g, &gr.stack_limit, limit, || {
        set_g_and_stack_limit(g, limit)
    });
}

/// Somebody wants the goroutine still that is to run next.
#[cold]
#[inline(never)]
fn yield_to_suspender(m: &M, g: &G) {
    while g.suspend.is_requested() {
        if !g.wait_while_suspended() {
            // It is the one that this thread is on the stack of, and finds nobody else to leave for.
            // SAFETY: on the goroutine's stack; the system stack is free below its saved rsp.
            unsafe { mcall(&g.sched, m.system_sp.get(), deschedule0, ptr::from_ref(g)) };
        }
    }
}

/// The end of a time slice, on the system stack. Such a turn was long: what is looked at once in many
/// turns is looked at now.
pub(crate) unsafe extern "C" fn deschedule0(g: *const G) -> ! {
    // SAFETY: called by `preempt.rs` on the system stack of this M; the context is saved.
    unsafe {
        let m = this_m();
        let sched = sched_of(m);
        set_g_and_stack_limit(ptr::null_mut(), 0);
        if m.p.timers.any() {
            run_timers(m, m);
        }
        let waiting_for_all = sched.pop_global(m);
        if !waiting_for_all.is_null() {
            enqueue(m, waiting_for_all);
        } else if m.p.runq.is_empty() && !sched.stopping.load(Ordering::Relaxed) {
            // Others may keep theirs waiting in Rust code, which is not interrupted.
            let waiting_for_other = steal(m, sched);
            if !waiting_for_other.is_null() {
                enqueue(m, waiting_for_other);
            }
        }
        if !m.p.run_next.get().is_null() {
            // Its slice, which that one would have shared, is over: it is not to wait for another
            // one of the same goroutine.
            displace_run_next(m);
        }
        (*g).transition(Status::Running, Status::Runnable);
        enqueue(m, g.cast_mut());
        sched.wake_one();
        schedule(m)
    }
}

/// Leaves the running goroutine `g`, which is in a queue or waits, for the next one.
///
/// # Safety
/// The caller runs on `g`, on `m`, and only this thread can resume `g`.
#[inline(always)]
pub(crate) unsafe fn switch_away(m: &M, g: &G) {
    let next = pick_next(m);
    if next.is_null() {
        // SAFETY: the caller's promise; the system stack is free below its saved rsp.
        return unsafe { mcall(&g.sched, m.system_sp.get(), schedule0, ptr::from_ref(m)) };
    }
    make_current(m, next);
    if !ptr::eq(next, g) {
        // SAFETY: `next` is runnable, taken from a queue by us alone, and has a saved context.
        unsafe { goswitch(&g.sched, &(*next).sched) };
    }
}

pub(crate) unsafe extern "C" fn schedule0(m: *const M) -> ! {
    // SAFETY: called by `switch_away` and `mstart` on the system stack of this M.
    unsafe {
        set_g_and_stack_limit(ptr::null_mut(), 0);
        schedule(&*m)
    }
}

/// The heart of an M, on its system stack: finds a goroutine and goes to it. When the run is
/// over, continues whoever called `mstart`.
///
/// # Safety
/// On the system stack of `m`, this thread's M, with nothing below that is needed.
#[inline(always)]
pub(crate) unsafe fn schedule(m: &'static M) -> ! {
    m.curg.store(ptr::null_mut(), Ordering::Relaxed);
    match find_runnable(m) {
        Some(g) => {
            make_current(m, g);
            // SAFETY: runnable and taken by us alone.
            unsafe { gogo(&(*g).sched) }
        }
        // SAFETY: saved by `mstart`, continued once.
        None => unsafe { gogo(&m.g0) },
    }
}

/// A goroutine to run; sleeps until there is one. `None` when the run is over.
#[inline(always)]
fn find_runnable(m: &'static M) -> Option<*mut G> {
    let next = pick_next(m);
    if !next.is_null() {
        return Some(next);
    }
    find_runnable_slow(m)
}

#[inline(never)]
fn find_runnable_slow(m: &'static M) -> Option<*mut G> {
    // SAFETY: this thread's M.
    let sched = unsafe { sched_of(m) };
    // Whether this M is counted in `sched.spinning`.
    let mut spinning = false;
    // Who was woken was woken for work that waits.
    let mut may_steal = false;
    loop {
        let mut found = find_without_sleep(m, sched, may_steal);
        if found.is_none() && !sched.stopping.load(Ordering::Acquire) {
            // Look on for a while, but not with everybody.
            spinning = spinning || sched.idle.start_spinning(sched.ms.len());
            let start = timers::now();
            let (mut now, mut next_steal) = (start, start + PATIENCE_NS);
            while found.is_none() && now < start + SPIN_NS {
                may_steal = !spinning || now >= next_steal;
                if may_steal {
                    next_steal = now + PATIENCE_NS;
                }
                found = find_without_sleep(m, sched, may_steal);
                if !spinning {
                    break;
                }
                std::hint::spin_loop();
                now = timers::now();
            }
        }
        if std::mem::take(&mut spinning) {
            let was_last = sched.idle.stop_spinning();
            // There may be more where this came from, and nobody else is looking.
            if was_last && found.is_some() && work_exists(sched) {
                sched.wake_one();
            }
        }
        if sched.stopping.load(Ordering::Acquire) {
            return None;
        }
        if found.is_some() {
            return found;
        }
        spinning = sleep_until_work(m, sched);
        may_steal = true;
    }
}
