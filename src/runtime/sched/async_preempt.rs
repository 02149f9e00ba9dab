#![allow(unsafe_code, reason = "redirects an interrupted thread")]
//! The handler of the preemption signal: step 3 of the story in `preempt.rs`.
//!
//! The handler may touch thread-local words, atomics of G and M, the registry, and eight bytes
//! below the red zone of a goroutine's stack. It must not take a lock, allocate, panic, or use a
//! lazy thread-local: the thread may have been interrupted inside of any of these.

use std::ptr;
use std::sync::atomic::Ordering;

use crate::jit::{RED_ZONE_BYTES, SafePoint, lookup};
use crate::runtime::arch::Registers;
use crate::runtime::gmp::current::{getg, getm};
use crate::runtime::gmp::m::M;
use crate::runtime::gmp::preempt_state::Refusal;
use crate::runtime::os::signals::Signal;
use crate::runtime::sched::preempt::{may_preempt, yield_to_request};
use crate::runtime::sync::preempt_request::{self, is_requested};

/// The handler of the preemption signal.
pub(crate) fn on_signal(signal: &mut Signal) {
    // SAFETY: null, or this thread's M, which is never freed.
    let m = unsafe { getm().as_ref() };
    // Every signal is acknowledged, and before anything is inspected: `sync/preempt_request.rs`.
    let inspected = m.and_then(|m| {
        let registers = signal.registers();
        let inspected = preempt_request::handle(&m.preempt.pending, || inspect(m, registers));
        inspected.map(|inspected| (m, inspected))
    });
    let is_expected = inspected.is_some();
    match inspected {
        Some((m, Ok(resume_pc))) => {
            m.preempt.found_by_signal(true);
            // SAFETY: `inspect` has returned the pc for this signal.
            unsafe { redirect(m, signal, resume_pc) };
        }
        Some((m, Err(why))) => {
            m.preempt.refuse(why);
            match why {
                // It says nothing about the code of the goroutine that was meant.
                Refusal::Stale => {}
                Refusal::UnsafePoint => m.preempt.found_by_signal(true),
                _ => m.preempt.found_by_signal(false),
            }
        }
        None => {}
    }
    // The kernel merges signals: one of the program may have become one with this crate's. A
    // program that uses this signal, too, can bear one too many.
    // Without a mark, which a sandbox may refuse, one that is expected is taken for the crate's.
    let is_ours = signal.is_marked() || is_expected && signal.is_sent_by_this_process();
    if !is_ours {
        signal.chain();
    }
}

/// The pc at which the interrupted goroutine resumes if it is preempted here.
fn inspect(m: &M, at: Registers) -> Result<usize, Refusal> {
    // SAFETY: null, or this thread's G, which is never freed.
    let Some(g) = (unsafe { getg().as_ref() }) else {
        return Err(Refusal::Stale); // In the scheduler.
    };
    if !ptr::eq(g, m.curg.load(Ordering::Relaxed)) || !is_requested(&g.stack_limit) {
        return Err(Refusal::Stale);
    }
    if !may_preempt(g, m) {
        return Err(Refusal::Disabled);
    }
    let Registers { pc, sp, .. } = at;
    // A goroutine that was made current, and not switched to yet, is refused here: rsp is in the
    // stack of the one before. So are system stacks, and handlers of other signals.
    if sp < m.preempt.limit_of(g) || sp > g.stack.get().hi || !sp.is_multiple_of(8) {
        return Err(Refusal::Stack);
    }
    let Some(code) = lookup(pc) else {
        return Err(Refusal::NativeCode);
    };
    match code.safe_point() {
        SafePoint::NotPreemptible => Err(Refusal::NotPreemptible),
        SafePoint::Unsafe => Err(Refusal::UnsafePoint),
        SafePoint::ResumeAt(offset_bytes) => Ok(code.start() + offset_bytes),
    }
}

/// Resumes the thread in the async-preempt stub.
///
/// # Safety
/// [`inspect`] has returned the pc for this signal.
unsafe fn redirect(m: &M, signal: &mut Signal, resume_pc: usize) {
    let sp = signal.registers().sp - RED_ZONE_BYTES - 8;
    // SAFETY: `inspect` has checked the headroom, so that the word is in the goroutine's stack;
    // below the red zone nothing is alive (System V psABI, section 3.2.2).
    unsafe { (sp as *mut usize).write(resume_pc) };
    // SAFETY: the stub is entered with a return address at rsp, and keeps every register.
    unsafe { signal.resume_at(m.preempt.async_stub.load(Ordering::Relaxed), sp) };
}

/// Called by the async-preempt stub.
pub(crate) extern "C" fn interrupted(_sp: usize) {
    // SAFETY: the handler has found this thread on a goroutine, and so on an M; neither is ever
    // freed.
    let (g, m) = unsafe { (&*getg(), &*getm()) };
    yield_to_request(g, m, &m.preempt.counters.asynchronous);
}
