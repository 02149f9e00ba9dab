#![allow(unsafe_code, reason = "a signal handler that redirects")]
//! Preemption: how a goroutine that runs too long gives way to others.
//!
//! The story, in time order:
//!
//! 1. sysmon (`sysmon.rs`) sees that an M has run one goroutine for a whole time slice. It makes
//!    a request (`handshake.rs`): it stores [`REQUESTED`], which is larger than any address, as the guard of the
//!    goroutine and of the thread, and sends SIGURG to the thread, unless one is on its way.
//! 2. JIT code that polls finds its rsp below the guard at the next poll, and calls the poll stub.
//!    Rust code does the same in [`checkpoint`], goroutine functions when they return.
//! 3. The signal handler looks where it has interrupted the thread. In JIT code that its author
//!    registered as preemptible, with room on the stack, it lets the thread go on in the *async
//!    preempt* stub. Anywhere else it does nothing: the request stands, and the next poll sees it.
//! 4. Either stub saves the whole machine state and calls a function of this file, which puts the
//!    goroutine at the end of its queue (a sticky one's is its M's) and schedules.
//! 5. Whoever makes a goroutine current sets the guard to the limit of its stack again.
//!
//! Rust and C code are never interrupted for another goroutine: an interrupted `malloc`, `Mutex`,
//! `RefCell` or lazy thread-local would be entered by the next goroutine of the thread.
//!
//! Why stale requests are harmless: whoever requests reads which goroutine an M runs, and may
//! come too late. Then the guard of a goroutine that runs no more is set, which is undone when it
//! runs again; or the thread's guard is set for the next one, which gives way early, once. The
//! handler looks at everything itself, and acknowledges every signal, also one that finds nothing.
//!
//! What the handler may touch: thread-local words, atomics of G and M, the registry, eight bytes
//! below the red zone of a goroutine's stack. No lock, no allocation, no lazy thread-local.

use std::ptr;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering, compiler_fence};

use crate::jit::has_preemptible_code;
use crate::runtime::arch::switch::{mcall, stack_pointer};
use crate::runtime::arch::tls;
use crate::runtime::gmp::current::{getg, getm};
use crate::runtime::gmp::g::G;
use crate::runtime::gmp::m::M;
use crate::runtime::gmp::preempt_state::{Refusal, Thread, count};
use crate::runtime::gmp::status::Status;
use crate::runtime::os::threads;
use crate::runtime::sched::fp_control::with_thread_fp_control;
use crate::runtime::sched::schedule::deschedule0;
use crate::runtime::sync::preempt_request;
use crate::runtime::sync::preempt_request::{REQUESTED, is_requested};

/// Asks the goroutine that an M runs to give way. Returns whether there was one to ask.
pub(crate) fn request(m: &M) -> bool {
    request_if(m, |_| true)
}

/// As [`request`], if the M runs this goroutine.
pub(crate) fn request_of(m: &M, g: &G) -> bool {
    request_if(m, |current| ptr::eq(current, g))
}

fn request_if(m: &M, is_meant: impl Fn(&G) -> bool) -> bool {
    let target = &m.preempt;
    let thread = target.thread.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(Thread { tid, stack_limit }) = *thread else {
        return false;
    };
    // SAFETY: immortal.
    let current = unsafe { preempt_request::current(&m.curg).as_ref() };
    let Some(g) = current.filter(|g| is_meant(g)) else {
        return false;
    };
    count(&target.counters.requested);
    m.p.ticks.end_time_slice();
    // SAFETY: the thread has not ended: it takes the address back first, under the lock.
    let limits = [&g.stack_limit, unsafe { &*stack_limit }];
    if tid == 0 || !has_preemptible_code() {
        // A signal could only disturb system calls of the program.
        preempt_request::store_request(limits);
    } else if preempt_request::request(limits, &target.pending) {
        count(&target.counters.signals);
        if !threads::send_preempt_signal(tid) {
            preempt_request::acknowledge(&target.pending);
        }
    }
    true
}

/// Whether the goroutine, which this thread runs, can be put aside as far as its state says.
pub(crate) fn may_preempt(g: &G, m: &M) -> bool {
    g.status() == Status::Running
        && g.no_preempt.load(Ordering::Relaxed) == 0
        && !m.on_system_stack.get()
}

/// Called by the poll stub; by code that finds no room above its guard.
pub(crate) extern "C" fn polled(_sp: usize) {
    yield_if_requested();
}

/// Gives way if somebody asked for it.
#[inline(never)]
fn yield_if_requested() {
    // SAFETY: immortal.
    let (Some(g), Some(m)) = (unsafe { (getg().as_ref(), getm().as_ref()) }) else {
        return;
    };
    if !is_requested(&g.stack_limit) && tls::stack_limit() != REQUESTED {
        return; // just little stack left
    }
    if may_preempt(g, m) {
        yield_to_request(g, m, &m.preempt.counters.cooperative);
    } else {
        m.preempt.refuse(Refusal::Disabled);
    }
}

/// Puts the running goroutine aside, to the end of its queue. Inlined nowhere: the thread may be
/// another one afterwards.
#[inline(never)]
pub(crate) fn yield_to_request(g: &G, m: &M, counter: &AtomicU64) {
    // The count of panics is the thread's. It may be this goroutine's, which then must come back
    // here, or that of one that parked while it unwinds, and waits for this one to give way.
    let stays = g.migratable.get() && std::thread::panicking();
    if stays {
        g.migratable.set(false);
    }
    count(counter);
    let suspend = || {
        // SAFETY: on the goroutine's stack; the system stack is free below its saved rsp.
        unsafe { mcall(&g.sched, m.system_sp.get(), deschedule0, ptr::from_ref(g)) };
    };
    // At a `checkpoint` the modes are the goroutine's; the stubs have loaded the thread's.
    if g.keeps_fp_control.get() {
        with_thread_fp_control(g, suspend);
    } else {
        suspend();
    }
    if stays {
        g.migratable.set(true);
    }
}

/// Gives way to other goroutines if this one has run for its time slice. Without a request this
/// costs one compare.
///
/// Rust code is never interrupted for another goroutine, so that a long loop without channels,
/// goroutine functions and the like should call this from time to time. On a thread that runs no
/// goroutine it does nothing.
#[inline(always)]
pub fn checkpoint() {
    if stack_pointer() <= tls::stack_limit() {
        yield_if_requested();
    }
}

/// Runs `f` on this goroutine without giving way to others at polls or in JIT code, whatever the
/// time slice. `f` may still park by itself.
///
/// For JIT code that is entered while a lock is held which others on this thread may want.
pub fn without_preemption<R>(f: impl FnOnce() -> R) -> R {
    struct Forbidden<'a>(Option<&'a G>);
    impl Drop for Forbidden<'_> {
        fn drop(&mut self) {
            if let Some(g) = self.0 {
                g.no_preempt.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
    // SAFETY: immortal.
    let g = unsafe { getg().as_ref() };
    if let Some(g) = g {
        g.no_preempt.fetch_add(1, Ordering::Relaxed);
    }
    // The handler on this thread sees the count from the first instruction of `f` on.
    compiler_fence(Ordering::SeqCst);
    let _forbidden = Forbidden(g);
    f()
}
