#![allow(unsafe_code, reason = "immortal structures of this thread")]
//! The goroutine, the M and the runtime instance of the calling thread: the thread-local words of
//! `arch/tls`, with their types.
//!
//! A goroutine may resume on another thread. No value of this file may be kept over a suspension of
//! a migratable goroutine, and a function that suspends one is not inlined: the compiler would
//! otherwise reuse the address of a thread-local that it computed before.

use std::sync::atomic::Ordering;

use crate::runtime::arch::tls;
use crate::runtime::gmp::g::G;
use crate::runtime::gmp::m::M;
use crate::runtime::gmp::sched::Sched;

/// The goroutine that this thread runs. Null on foreign threads, and in the scheduler.
#[inline(always)]
pub(crate) fn getg() -> *mut G {
    tls::g() as *mut G
}

/// The M of this thread. Null on foreign threads.
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
/// 1. The thread is an M.
/// 2. The reference is not used after a suspension of a migratable goroutine.
#[inline(always)]
pub(crate) unsafe fn this_m() -> &'static M {
    // SAFETY: the thread is an M by contract (1), and an M is never freed.
    unsafe { &*getm() }
}

/// The runtime instance of an M.
///
/// # Safety
/// 1. `m` is the M of the calling thread.
/// 2. The reference is not used after the thread has left the run.
#[inline(always)]
pub(crate) unsafe fn sched_of(m: &M) -> &'static Sched {
    // SAFETY: `run` stores the address before the thread becomes an M, and frees the instance after
    // all Ms have left: contracts (1) and (2).
    unsafe { &*m.sched.load(Ordering::Relaxed) }
}

/// The runtime instance that the calling thread belongs to, if any.
pub(crate) fn this_sched() -> Option<&'static Sched> {
    let m = getm();
    // SAFETY: an M is never freed, and this is the calling thread's.
    (!m.is_null()).then(|| unsafe { sched_of(&*m) })
}
