#![allow(unsafe_code, reason = "immortal structures of this thread")]
//! The goroutine, the M and the runtime instance of the calling thread.

use std::sync::atomic::Ordering;

use crate::runtime::arch::tls;
use crate::runtime::gmp::g::G;
use crate::runtime::gmp::m::M;
use crate::runtime::gmp::sched::Sched;

/// The goroutine that this thread runs, or null: on foreign threads and in the scheduler.
#[inline(always)]
pub(crate) fn getg() -> *mut G {
    tls::g() as *mut G
}

/// The M of this thread, or null on foreign threads.
#[inline(always)]
pub(crate) fn getm() -> *mut M {
    tls::m() as *mut M
}

/// Sets the M of this thread.
pub(crate) fn setm(m: *mut M) {
    tls::set_m(m as usize);
}

/// Sets the current goroutine of this thread and its stack limit.
#[inline(always)]
pub(crate) fn set_g_and_stack_limit(g: *mut G, stack_limit: usize) {
    tls::set_g_and_stack_limit(g as usize, stack_limit);
}

/// The M of this thread.
///
/// # Safety
/// The thread is an M; the reference is not kept over a suspension of a migratable goroutine.
#[inline(always)]
pub(crate) unsafe fn this_m() -> &'static M {
    // SAFETY: the thread is an M by the contract, and those are immortal.
    unsafe { &*getm() }
}

/// # Safety
/// As for [`this_m`].
#[inline(always)]
pub(crate) unsafe fn sched_of(m: &M) -> &'static Sched {
    // SAFETY: set before the thread became an M, and alive until all its Ms have left.
    unsafe { &*m.sched.load(Ordering::Relaxed) }
}

/// The run that the calling thread belongs to, if any.
pub(crate) fn this_sched() -> Option<&'static Sched> {
    let m = getm();
    // SAFETY: this thread's M, and its run.
    (!m.is_null()).then(|| unsafe { sched_of(&*m) })
}
