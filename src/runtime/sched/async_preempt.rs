#![allow(unsafe_code, reason = "redirects an interrupted thread")]
//! The handler of the preemption signal.
//!
//! It may touch thread-local words, atomics of G and M, the registry, and eight bytes below the red
//! zone of a goroutine's stack. It takes no lock, allocates nothing, and uses no lazy thread-local.

use std::ptr;
use std::sync::atomic::Ordering;

use crate::jit::{RED_ZONE_BYTES, SafePoint, lookup};
use crate::runtime::arch::Registers;
use crate::runtime::gmp::current::{getg, getm};
use crate::runtime::gmp::m::M;
use crate::runtime::gmp::preempt_state::{PID, Refusal};
use crate::runtime::os::signals::Signal;
use crate::runtime::sched::preempt::{may_preempt, yield_to_request};
use crate::runtime::sync::preempt_request;
use crate::runtime::sync::preempt_request::is_requested;

/// The handler of the preemption signal: see the head of `preempt.rs`.
pub(crate) fn on_signal(signal: &mut Signal) {
    let is_ours = signal.is_sent_by(PID.load(Ordering::Relaxed));
    // Acknowledged in all cases, and before anything is inspected: a request from now on sends a
    // signal of its own.
    // SAFETY: null, or immortal: this thread's M.
    let m = unsafe { getm().as_ref() };
    let is_expected = m.is_some_and(|m| preempt_request::acknowledge(&m.preempt.pending));
    if is_expected && let Some(m) = m {
        match interruption(m, signal.registers()) {
            // SAFETY: `interruption` has returned the pc for this signal.
            Ok(resume_pc) => unsafe { redirect(m, signal, resume_pc) },
            Err(why) => m.preempt.refuse(why),
        }
    }
    // Two signals may have become one. A program that waits for SIGURG, too, can bear one too many.
    if !(is_expected && is_ours) {
        signal.chain();
    }
}

/// Where the interrupted goroutine goes on if it is put aside here.
fn interruption(m: &M, at: Registers) -> Result<usize, Refusal> {
    // SAFETY: immortal.
    let Some(g) = (unsafe { getg().as_ref() }) else {
        return Err(Refusal::Stale); // in the scheduler
    };
    if !ptr::eq(g, m.curg.load(Ordering::Relaxed)) || !is_requested(&g.stack_limit) {
        return Err(Refusal::Stale);
    }
    if !may_preempt(g, m) {
        return Err(Refusal::Disabled);
    }
    let Registers { pc, sp, .. } = at;
    // A goroutine that was made current, but not switched to yet, is refused here: rsp is in the
    // stack of the one before. So are system stacks, and handlers of other signals.
    if sp < m.preempt.limit_of(g) || sp > g.stack.get().hi || !sp.is_multiple_of(8) {
        return Err(Refusal::Stack);
    }
    let Some(code) = lookup(pc) else {
        return Err(Refusal::NativeCode);
    };
    match code.safe_point() {
        SafePoint::NotPreemptible => Err(Refusal::NotPreemptible),
        SafePoint::Unsafe => Err(Refusal::UnsafeRange),
        SafePoint::ResumeAt(offset_bytes) => Ok(code.start() + offset_bytes),
    }
}

/// Lets the thread go on in the stub.
///
/// # Safety
/// [`interruption`] has returned the pc for this signal.
unsafe fn redirect(m: &M, signal: &mut Signal, resume_pc: usize) {
    let sp = signal.registers().sp - RED_ZONE_BYTES - 8;
    // SAFETY: inside of the goroutine's stack, by the check of the headroom; below the red zone
    // nothing is alive.
    unsafe { (sp as *mut usize).write(resume_pc) };
    // SAFETY: the stub is entered with a return address at sp, and keeps every register.
    unsafe { signal.resume_at(m.preempt.async_stub.load(Ordering::Relaxed), sp) };
}

/// Called by the async stub.
pub(crate) extern "C" fn interrupted(_sp: usize) {
    // SAFETY: on a goroutine: the handler has looked.
    let (g, m) = unsafe { (&*getg(), &*getm()) };
    yield_to_request(g, m, &m.preempt.counters.asynchronous);
}
