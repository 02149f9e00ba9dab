#![allow(unsafe_code, reason = "leaves a goroutine's stack")]
//! How a goroutine suspends itself: `gopark` and `gosched`.
//!
//! Why a park cannot lose a wake-up: a goroutine that belongs to a thread is resumed by that thread
//! only, and that thread is busy parking it. One that is migratable might be resumed elsewhere before
//! its context is saved, so it always parks through `mcall`, and what makes it visible to its waker is
//! done there, on the system stack.

use std::cell::Cell;
use std::ptr;
use std::sync::atomic::Ordering;

use crate::runtime::arch::switch::{goswitch, mcall};
use crate::runtime::gmp::current::{getg, getm, sched_of, set_g_and_stack_limit, this_m};
use crate::runtime::gmp::g;
use crate::runtime::gmp::g::{Backlog, G};
use crate::runtime::gmp::m::M;
use crate::runtime::gmp::parker::Parker;
use crate::runtime::gmp::queues::GQueue;
use crate::runtime::gmp::sched::Sched;
use crate::runtime::gmp::status::{Status, WaitReason};
use crate::runtime::os::futex;
use crate::runtime::sched::find::{RUN_NEXT_STREAK, pick_next};
use crate::runtime::sched::fp_control::with_thread_fp_control;
use crate::runtime::sched::ready::{displace_run_next, enqueue, ready};
use crate::runtime::sched::schedule::{make_current, schedule, schedule0, switch_away};

/// Gives way: the goroutine goes to the end of its queue. On a foreign thread this is
/// `std::thread::yield_now`.
#[inline(always)]
#[track_caller]
pub fn gosched() {
    let (from, to) = prepare_gosched();
    if !ptr::eq(from, to) {
        // SAFETY: `from` runs here and is in a queue of this thread; `to` was taken by us.
        unsafe { goswitch(&(*from).sched, &(*to).sched) };
    }
}

#[inline(never)]
#[track_caller]
fn prepare_gosched() -> (*const G, *const G) {
    let none = (ptr::null(), ptr::null());
    let g = getg();
    if g.is_null() {
        std::thread::yield_now();
        return none;
    }
    // SAFETY: on a goroutine; immortal structures of this thread.
    let (gr, m) = unsafe { (&*g, this_m()) };
    assert_may_park(m);
    if gr.keeps_fp_control.get() {
        with_thread_fp_control(gr, gosched);
        return none;
    }
    if gr.migratable.get() {
        if std::thread::panicking() {
            // The count of panics is the thread's: `gopark` keeps the goroutine here.
            // SAFETY: readied once, by itself.
            unsafe { gopark(WaitReason::None, || ready(Parker(g), false)) };
            return none;
        }
        // SAFETY: a goroutine's stack; the system stack is free below its saved rsp.
        unsafe { mcall(&gr.sched, m.system_sp.get(), gosched0, g.cast_const()) };
        return none;
    }
    gr.transition(Status::Running, Status::Runnable);
    enqueue_yielded(m, gr);
    let next = pick_next(m);
    if next.is_null() {
        // SAFETY: the system stack is free below its saved rsp.
        unsafe { mcall(&gr.sched, m.system_sp.get(), schedule0, ptr::from_ref(m)) };
        return none;
    }
    make_current(m, next);
    (g, next)
}

/// A migratable goroutine gives way; on the system stack, since others may take it at once.
unsafe extern "C" fn gosched0(g: *const G) -> ! {
    // SAFETY: called by `gosched` on the system stack of this M; the context is saved.
    unsafe {
        let m = this_m();
        set_g_and_stack_limit(ptr::null_mut(), 0);
        (*g).transition(Status::Running, Status::Runnable);
        let sched = sched_of(m);
        if sched.global_len.load(Ordering::Relaxed) == 0 {
            enqueue(m, g.cast_mut());
        } else {
            // What waits in the global queue has its turn first.
            let only = GQueue::new();
            only.push(g.cast_mut());
            sched.push_global(&only, 1);
        }
        sched.wake_one();
        schedule(m)
    }
}

/// Puts the running goroutine, which yields and stays on its thread, after everything that is
/// runnable here.
#[inline(always)]
fn enqueue_yielded(m: &M, g: &G) {
    // SAFETY: this thread's M.
    let sched = unsafe { sched_of(m) };
    let p = &m.p;
    if !p.run_next.get().is_null() && !p.ticks.may_inherit(RUN_NEXT_STREAK) {
        displace_run_next(m);
    }
    let has_backlog = !p.runq.is_empty() || sched.global_len.load(Ordering::Relaxed) != 0;
    if has_backlog || !m.yielded.is_empty() {
        return yield_after_backlog(m, sched, g);
    }
    m.local.push(ptr::from_ref(g).cast_mut());
}

/// In `local` the goroutine would run before most of what waits in the run queue and the global
/// queue: a producer that starts many goroutines and yields after each batch would run ahead of all
/// of them.
#[inline(never)]
fn yield_after_backlog(m: &M, sched: &Sched, g: &G) {
    let is_global = sched.global_len.load(Ordering::Relaxed) != 0;
    let before = match is_global {
        true => sched.global_pushed.load(Ordering::Relaxed),
        false => m.p.runq.tail_position(),
    };
    g.backlog.set(Backlog { is_global, moved: 0, spills: m.spills.get().0, before });
    m.yielded.push(ptr::from_ref(g).cast_mut());
}

/// Parks the running goroutine until [`goready`]. `unlock` runs when the goroutine can be readied
/// safely: what it makes visible lets others call `goready`.
///
/// On a foreign thread the thread sleeps.
///
/// # Safety
/// 1. Exactly one call of `goready` with what [`current`] returned follows for each `gopark`, after
///    `unlock` was called.
/// 2. `unlock` does not park, and does not unwind.
///
/// # Panics
/// On a system stack, which cannot park.
#[inline(always)]
#[track_caller]
pub unsafe fn gopark(reason: WaitReason, unlock: impl FnOnce()) {
    let g = getg();
    if g.is_null() {
        // SAFETY: the stand-in is this thread's.
        return unsafe { park_thread(&*g::thread_waiter(), reason, unlock) };
    }
    // SAFETY: on a goroutine; immortal structures of this thread.
    let (gr, m) = unsafe { (&*g, this_m()) };
    assert_may_park(m);
    if gr.keeps_fp_control.get() {
        // SAFETY: by the contract of this function.
        return with_thread_fp_control(gr, || unsafe { gopark(reason, unlock) });
    }
    gr.set_wait_reason(reason);
    if gr.migratable.get() {
        // A goroutine that unwinds stays: the count of panics is the thread's.
        if !std::thread::panicking() {
            // SAFETY: by the contract of this function.
            return unsafe { park_migratable(gr, m, unlock) };
        }
        gr.migratable.set(false);
        gr.transition(Status::Running, Status::Waiting);
        unlock();
        // SAFETY: not migratable now, so only this thread resumes it.
        unsafe { switch_away(m, gr) };
        gr.migratable.set(true);
        return;
    }
    gr.transition(Status::Running, Status::Waiting);
    unlock();
    // SAFETY: whoever readies it puts it into a queue of this thread.
    unsafe { switch_away(m, gr) };
}

/// # Safety
/// As for [`gopark`].
unsafe fn park_migratable(g: &G, m: &M, unlock: impl FnOnce()) {
    struct ParkCall<'a> {
        g: &'a G,
        unlock: Cell<Option<&'a mut dyn FnMut()>>,
    }
    unsafe extern "C" fn park0(call: *const ParkCall<'_>) -> ! {
        // SAFETY: on the system stack of this M; the context is saved. `call` lies in the
        // goroutine's stack and is not touched after `unlock`.
        unsafe {
            let m = this_m();
            set_g_and_stack_limit(ptr::null_mut(), 0);
            let unlock = (*call).unlock.take().expect("set by park_migratable");
            (*call).g.transition(Status::Running, Status::Waiting);
            unlock();
            schedule(m)
        }
    }
    let mut unlock = Some(unlock);
    let mut unlock_once = || (unlock.take().expect("called once"))();
    let call = ParkCall { g, unlock: Cell::new(Some(&mut unlock_once)) };
    // SAFETY: a goroutine's stack; the system stack is free below its saved rsp.
    unsafe { mcall(&g.sched, m.system_sp.get(), park0, &raw const call) };
}

/// # Safety
/// `g` is the stand-in of this thread; otherwise as for [`gopark`].
unsafe fn park_thread(g: &G, reason: WaitReason, unlock: impl FnOnce()) {
    g.thread_wake.store(0, Ordering::Relaxed);
    g.set_wait_reason(reason);
    unlock();
    while g.thread_wake.load(Ordering::Acquire) == 0 {
        futex::wait(&g.thread_wake, 0, None);
    }
    g.set_wait_reason(WaitReason::None);
}

/// Who calls.
#[inline]
pub fn current() -> Parker {
    match getg() {
        g if g.is_null() => Parker(g::thread_waiter()),
        g => Parker(g),
    }
}

/// Whether the caller may park now: not on a system stack.
#[inline(always)]
pub(crate) fn may_park() -> bool {
    let m = getm();
    // SAFETY: this thread's M, which is immortal.
    m.is_null() || !unsafe { (*m).on_system_stack.get() }
}

/// What `gopark` does where [`may_park`] says no, for those who must undo something before.
#[cold]
#[track_caller]
pub(crate) fn refuse_park() -> ! {
    panic!("a goroutine cannot park inside of systemstack: the system stack is its thread's")
}

#[inline(always)]
#[track_caller]
fn assert_may_park(m: &M) {
    if m.on_system_stack.get() {
        refuse_park();
    }
}
