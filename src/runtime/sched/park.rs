#![allow(unsafe_code, reason = "leaves a goroutine's stack")]
//! How a goroutine suspends itself: `gopark` and `gosched`.
//!
//! `sync/park.rs` has the protocol, and the reason why no wake-up is lost. Two kinds of goroutine
//! differ in one thing:
//!
//! * A goroutine that belongs to its thread makes itself visible to its waker on its own stack, and
//!   then switches away. Only its thread can resume it, and that thread is busy here.
//! * A migratable goroutine could be resumed by another thread before its context is saved. So it
//!   leaves for the system stack first (`mcall` saves the context), and is made visible there.
//!
//! A goroutine that keeps an FP control state of its own goes through `with_thread_fp_control`,
//! which calls these functions again with the flag cleared. One that panics goes through
//! `with_calm_words`, which calls them again as for a goroutine that does not panic, and that
//! belongs to its thread.

use std::cell::Cell;
use std::ptr;

use crate::runtime::arch::switch::{goswitch, mcall};
use crate::runtime::gmp::current::{getg, getm, sched_of, set_g_and_stack_limit, this_m};
use crate::runtime::gmp::g::{self, G};
use crate::runtime::gmp::m::M;
use crate::runtime::gmp::parker::Parker;
use crate::runtime::gmp::status::{Status, WaitReason};
use crate::runtime::os::futex;
use crate::runtime::sched::find::{is_local_only, pick_local, pick_next};
use crate::runtime::sched::fp_control::with_thread_fp_control;
use crate::runtime::sched::panic_state::{is_panicking, with_calm_words};
use crate::runtime::sched::ready::enqueue_last;
use crate::runtime::sched::schedule::{make_current, schedule, schedule0, switch_away};
use crate::runtime::sync::park;

/// Yields: the goroutine goes to the end of its queue, after everything that is runnable on its
/// processor. On a foreign thread this is `std::thread::yield_now`.
///
/// ```
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicBool, Ordering};
/// use footbridge::runtime::{self, go, gosched};
///
/// runtime::run(|| {
///     let ready = Arc::new(AtomicBool::new(false));
///     let flag = ready.clone();
///     let other = go(move || flag.store(true, Ordering::Release));
///     while !ready.load(Ordering::Acquire) {
///         gosched();
///     }
///     other.join().expect("it does not panic");
/// });
/// ```
///
/// # Panics
/// On a system stack, whose goroutine cannot yield.
#[inline(always)]
#[track_caller]
pub fn gosched() {
    let (from, to) = prepare_gosched();
    if !ptr::eq(from, to) {
        // SAFETY: `from` runs here, and is in a queue that only this thread takes from. `to` was
        // taken from a queue, so that this M alone may run it, and its context is saved.
        unsafe { goswitch(&(*from).sched, &(*to).sched) };
    }
}

/// Queues the running goroutine and makes the next one current. Returns both; the same twice, if no
/// switch is left to make.
///
/// Apart from `gosched`, which is inlined: the switch is written out at each of its sites, and this
/// is not. The processor predicts the jump of a switch by its site, and a goroutine that switches
/// at two sites has two predictions. (One shared site costs more than twice as much.)
#[inline(never)]
#[track_caller]
fn prepare_gosched() -> (*const G, *const G) {
    let none = (ptr::null(), ptr::null());
    let g = getg();
    if g.is_null() {
        std::thread::yield_now();
        return none;
    }
    // SAFETY: this thread runs a goroutine, and so is an M; a G is never freed.
    let (gr, m) = unsafe { (&*g, this_m()) };
    assert_may_park(m);
    if gr.keeps_fp_control.get() {
        with_thread_fp_control(gr, gosched);
        return none;
    }
    if is_panicking(gr, m) {
        with_calm_words(gr, m, gosched);
        return none;
    }
    if gr.migratable.get() {
        // SAFETY: on the goroutine's stack; the system stack is free below its saved rsp.
        unsafe { mcall(&gr.sched, m.system_sp.get(), gosched0, g.cast_const()) };
        return none;
    }
    gr.transition(Status::Running, Status::Runnable);
    // SAFETY: this thread's M, which has not left its run.
    let sched = unsafe { sched_of(m) };
    let next = if is_local_only(m, sched) {
        m.local.push(g);
        pick_local(m)
    } else {
        enqueue_last(m, sched, gr);
        pick_next(m)
    };
    if next.is_null() {
        // SAFETY: on the goroutine's stack; the system stack is free below its saved rsp.
        unsafe { mcall(&gr.sched, m.system_sp.get(), schedule0, ptr::from_ref(m)) };
        return none;
    }
    make_current(m, next);
    (g, next)
}

/// A migratable goroutine yields. On the system stack, since another M may take it at once.
///
/// # Safety
/// 1. Called by `mcall` on the system stack of this thread's M.
/// 2. `g` is the goroutine that runs, and its context is saved.
unsafe extern "C" fn gosched0(g: *const G) -> ! {
    // SAFETY: the thread is an M by contract (1), and `schedule` may run there; a G is never freed.
    unsafe {
        let m = this_m();
        set_g_and_stack_limit(ptr::null_mut(), 0);
        (*g).transition(Status::Running, Status::Runnable);
        let sched = sched_of(m);
        enqueue_last(m, sched, &*g);
        sched.wake_one();
        schedule(m)
    }
}

/// Parks the running goroutine until [`goready`](crate::runtime::goready). `unlock` is called when
/// the goroutine can be readied: it makes visible what lets others call `goready`.
///
/// On a foreign thread the thread sleeps.
///
/// ```
/// use std::sync::Mutex;
/// use footbridge::runtime::{self, Parker, WaitReason, current, go, goready, gopark, gosched};
///
/// static WAITING: Mutex<Option<Parker>> = Mutex::new(None);
///
/// runtime::run(|| {
///     let waiter = go(|| {
///         let mut waiting = WAITING.lock().expect("not poisoned");
///         *waiting = Some(current());
///         // SAFETY: what takes the parker readies it, once. `unlock` only releases the lock.
///         unsafe { gopark(WaitReason::Other, || drop(waiting)) };
///         "resumed"
///     });
///     let parker = loop {
///         gosched();
///         if let Some(parker) = WAITING.lock().expect("not poisoned").take() {
///             break parker;
///         }
///     };
///     // SAFETY: it is in `gopark`, whose `unlock` has released the lock.
///     unsafe { goready(parker) };
///     assert_eq!(waiter.join().expect("no panic"), "resumed");
/// });
/// ```
///
/// # Safety
/// 1. Exactly one call of `goready` with what [`current`] returned follows for each `gopark`, at or
///    after the call of `unlock`.
/// 2. `unlock` does not park, and does not unwind.
///
/// # Panics
/// On a system stack, whose goroutine cannot park.
#[inline(always)]
#[track_caller]
pub unsafe fn gopark(reason: WaitReason, unlock: impl FnOnce()) {
    let g = getg();
    if g.is_null() {
        // SAFETY: a G is never freed, and this one is this thread's waiter.
        return unsafe { park_thread(&*g::thread_waiter(), reason, unlock) };
    }
    // SAFETY: this thread runs a goroutine, and so is an M; a G is never freed.
    let (gr, m) = unsafe { (&*g, this_m()) };
    assert_may_park(m);
    if gr.keeps_fp_control.get() {
        // SAFETY: the contract of this function.
        return with_thread_fp_control(gr, || unsafe { gopark(reason, unlock) });
    }
    if is_panicking(gr, m) {
        // SAFETY: the contract of this function.
        return with_calm_words(gr, m, || unsafe { gopark(reason, unlock) });
    }
    gr.set_wait_reason(reason);
    if gr.migratable.get() {
        // SAFETY: the contract of this function.
        return unsafe { park_migratable(gr, m, unlock) };
    }
    park::park(gr, unlock);
    // SAFETY: on `gr`; the thread that readies it queues it on this M.
    unsafe { switch_away(m, gr) };
}

/// # Safety
/// 1. and 2. of [`gopark`].
/// 3. `g` runs here, on this thread's M `m`.
unsafe fn park_migratable(g: &G, m: &M, unlock: impl FnOnce()) {
    struct ParkCall<'a> {
        g: &'a G,
        unlock: Cell<Option<&'a mut dyn FnMut()>>,
    }
    unsafe extern "C" fn park0(call: *const ParkCall<'_>) -> ! {
        // SAFETY: called by `mcall` on the system stack of this thread's M, where `schedule` may
        // run; the context is saved. `call` lies in the goroutine's stack: after `unlock` another
        // thread may run the goroutine, so that nothing of it is touched.
        unsafe {
            let m = this_m();
            set_g_and_stack_limit(ptr::null_mut(), 0);
            let unlock = (*call).unlock.take().expect("set by park_migratable");
            park::park((*call).g, unlock);
            schedule(m)
        }
    }
    let mut unlock = Some(unlock);
    let mut unlock_once = || (unlock.take().expect("called once"))();
    let call = ParkCall { g, unlock: Cell::new(Some(&mut unlock_once)) };
    // SAFETY: contract (3): on the goroutine's stack; the system stack is free below its saved rsp.
    unsafe { mcall(&g.sched, m.system_sp.get(), park0, &raw const call) };
}

/// # Safety
/// 1. and 2. of [`gopark`].
/// 3. `g` is the waiter of this thread.
unsafe fn park_thread(g: &G, reason: WaitReason, unlock: impl FnOnce()) {
    g.set_wait_reason(reason);
    park::park_thread(&g.thread_wake, unlock, |word, value| futex::wait(word, value, None));
    g.set_wait_reason(WaitReason::None);
}

/// The calling goroutine, or foreign thread, as a value by which it is readied.
///
/// ```
/// use footbridge::runtime::{self, current};
///
/// assert_eq!(current(), current());
/// assert_ne!(runtime::run(current), current());
/// ```
#[inline]
pub fn current() -> Parker {
    match getg() {
        g if g.is_null() => Parker(g::thread_waiter()),
        g => Parker(g),
    }
}

/// Whether the caller may park now: it is not on a system stack.
#[inline(always)]
pub(crate) fn may_park() -> bool {
    let m = getm();
    // SAFETY: not null, so this thread's M, which is never freed.
    m.is_null() || !unsafe { (*m).on_system_stack.get() }
}

/// What `gopark` does where [`may_park`] says no. For callers that must undo something before.
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
