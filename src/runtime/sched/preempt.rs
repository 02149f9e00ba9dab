#![allow(unsafe_code, reason = "leaves a goroutine's stack")]
//! Preemption: how a goroutine that runs for too long yields to others.
//!
//! Terms:
//!
//! * A *request* is made of the goroutine that an M runs: it is to yield. It stands in the stack
//!   limits of the goroutine and of the thread, and is over when the next tick begins.
//! * A *poll* compares rsp with the stack limit. A *safe-point* is an instruction at which JIT code
//!   can be descheduled with all registers saved.
//! * *Cooperative* preemption happens at a poll, *asynchronous* preemption at a safe-point that a
//!   signal has interrupted.
//!
//! The story, in time order:
//!
//! 1. sysmon (`sysmon.rs`) sees that an M has run one goroutine for a whole time slice. It makes a
//!    request ([`request`]): it stores [`REQUESTED`], which is larger than any address, as the
//!    stack limit of the goroutine and of the thread. Where another goroutine waits for the
//!    processor, it also sends SIGURG (`preempt_signal.rs`) to the thread, unless one is on its
//!    way.
//! 2. JIT code that polls finds its rsp below the stack limit, and calls the poll stub
//!    ([`polled`]). Rust code does the same in [`checkpoint`], and goroutine functions when they
//!    return.
//! 3. The signal handler (`async_preempt.rs`) inspects where it has interrupted the thread. At a
//!    safe-point, with room on the stack, it resumes the thread in the async-preempt stub. Anywhere
//!    else it does nothing: the request stands, and the next poll sees it.
//! 4. Either stub (`jit/stubs/preempt`) saves the whole machine state, and calls
//!    [`yield_to_request`]. It puts the goroutine at the end of its queue, and schedules
//!    (`schedule::deschedule0`). It keeps errno, which the interrupted code may be about to read.
//! 5. `schedule::make_current` sets the stack limits of the next goroutine anew.
//!
//! Rust and C code are never preempted: an interrupted `malloc`, `Mutex`, `RefCell` or lazy
//! thread-local would be entered by the next goroutine of the thread.
//!
//! Why a stale request is harmless. A preempter reads which goroutine an M runs, and may come too
//! late. Then it sets the stack limit of a goroutine that does not run, which is set anew when it
//! does; or that of the thread, whose next goroutine yields early, once. The handler trusts nothing
//! that the preempter has read: it inspects everything itself.
//!
//! Rejected: to preempt in Rust code at its own safe-points. The compiler has none. Rejected: a
//! timer signal for each thread (`timer_create`), instead of sysmon. It would interrupt system
//! calls of programs whose goroutines never run for long.

use std::ptr;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering, compiler_fence};
use std::time::Duration;

use crate::jit::has_preemptible_code;
use crate::runtime::arch::switch::{mcall, stack_pointer};
use crate::runtime::arch::tls;
use crate::runtime::gmp::current::{getg, getm};
use crate::runtime::gmp::g::G;
use crate::runtime::gmp::m::M;
use crate::runtime::gmp::preempt_state::{Counters, PreemptState, Refusal, Thread, count};
use crate::runtime::gmp::status::Status;
use crate::runtime::os::errno;
use crate::runtime::os::signals::{self, Action, Number};
use crate::runtime::os::threads::{self, ThreadStatus, Tid};
use crate::runtime::sched::fp_control::with_thread_fp_control;
use crate::runtime::sched::panic_state::{is_panicking, with_calm_words};
use crate::runtime::sched::schedule::deschedule0;
use crate::runtime::sync::preempt_request::{self, REQUESTED, Signalled, is_requested};

/// Requests that the goroutine which an M runs yields. Returns whether it runs one.
pub(crate) fn request(m: &M) -> bool {
    request_if(m, true, |_| true).is_some()
}

/// As [`request`], if the M runs this goroutine.
pub(crate) fn request_of(m: &M, g: &G) -> bool {
    request_if(m, true, |current| ptr::eq(current, g)).is_some()
}

/// As [`request`], by a signal too or at polls only. `None`: the M runs no goroutine.
pub(crate) fn request_by(m: &M, by_signal: bool) -> Option<Signalled> {
    request_if(m, by_signal, |_| true)
}

fn request_if(m: &M, by_signal: bool, is_meant: impl Fn(&G) -> bool) -> Option<Signalled> {
    let PreemptState { thread, pending, counters, .. } = &m.preempt;
    let thread = thread.lock().unwrap_or_else(PoisonError::into_inner);
    let Thread { tid, signal, stack_limit } = thread.as_ref()?;
    let limits_of = |g: *mut G| {
        // SAFETY: null, or a G, which is never freed.
        let g = unsafe { g.as_ref() }.filter(|g| is_meant(g))?;
        count(&counters.requested);
        m.p.ticks.end_time_slice();
        // SAFETY: the thread has not ended: it removes the address first, under the lock.
        Some([&g.stack_limit, unsafe { &**stack_limit }])
    };
    let signal = signal.filter(|_| by_signal && has_preemptible_code());
    let send = signal.map(|signal| move || send(counters, *tid, signal));
    preempt_request::request(&m.curg, limits_of, pending, send)
}

/// Sends the preemption signal to a thread. Returns whether that was possible.
pub(crate) fn send(counters: &Counters, tid: Tid, signal: Number) -> bool {
    // A program that has removed the handler must not be ended for that.
    let ends_process =
        signals::is_fatal_by_default(signal) && signals::action_of(signal) == Action::None;
    // Counted first: the handler may run, and what it interrupts may read the counters, before the
    // call returns.
    count(&counters.signals);
    let is_sent = !ends_process && signals::send_to_thread(tid, signal);
    if !is_sent {
        counters.signals.fetch_sub(1, Ordering::Relaxed);
    }
    is_sent
}

/// Whether requests of an M are made by a signal too. Without preemptible code one could only
/// disturb system calls of the program.
pub(crate) fn takes_signals(m: &M) -> bool {
    let thread = m.preempt.thread.lock().unwrap_or_else(PoisonError::into_inner);
    has_preemptible_code() && thread.as_ref().is_some_and(|thread| thread.signal.is_some())
}

/// How long the thread of an M that takes signals has had a processor. `None`: it takes none, or
/// the kernel does not tell.
pub(crate) fn thread_cpu_time(m: &M) -> Option<Duration> {
    let thread = m.preempt.thread.lock().unwrap_or_else(PoisonError::into_inner);
    let takes_signals = |thread: &&Thread| thread.signal.is_some() && has_preemptible_code();
    threads::cpu_time(thread.as_ref().filter(takes_signals)?.tid)
}

/// What the kernel says about the thread of an M. `None`: it has none, or /proc does not tell.
pub(crate) fn thread_status(m: &M) -> Option<ThreadStatus> {
    let thread = m.preempt.thread.lock().unwrap_or_else(PoisonError::into_inner);
    ThreadStatus::of(thread.as_ref()?.tid)
}

/// Whether the goroutine, which this thread runs, is in a state in which it can be preempted.
pub(crate) fn may_preempt(g: &G, m: &M) -> bool {
    g.status() == Status::Running
        && g.no_preempt.load(Ordering::Relaxed) == 0
        && !m.on_system_stack.get()
}

/// Called by the poll stub: JIT code has found no room above its stack limit.
pub(crate) extern "C" fn polled(_sp: usize) {
    yield_if_requested();
}

/// Yields if there is a request.
#[inline(never)]
fn yield_if_requested() {
    // SAFETY: null, or this thread's G and M, which are never freed.
    let (Some(g), Some(m)) = (unsafe { (getg().as_ref(), getm().as_ref()) }) else {
        return;
    };
    if !is_requested(&g.stack_limit) && tls::stack_limit() != REQUESTED {
        return; // Little stack is left, and there is no request.
    }
    if may_preempt(g, m) {
        yield_to_request(g, m, &m.preempt.counters.cooperative);
    } else {
        m.preempt.refuse(Refusal::Disabled);
    }
}

/// Deschedules the running goroutine to the end of its queue. Not inlined: it may return on another
/// thread.
#[inline(never)]
pub(crate) fn yield_to_request(g: &G, m: &M, counter: &AtomicU64) {
    count(counter);
    // Code that does not yield by itself relies on errno over any of its instructions.
    let errno = errno::get();
    if is_panicking(g, m) {
        with_calm_words(g, m, || deschedule(g, m));
    } else {
        deschedule(g, m);
    }
    errno::set(errno);
}

fn deschedule(g: &G, m: &M) {
    let suspend = || {
        // SAFETY: on the goroutine's stack; the system stack is free below its saved rsp.
        unsafe { mcall(&g.sched, m.system_sp.get(), deschedule0, ptr::from_ref(g)) };
    };
    // At a `checkpoint` the FP control state is the goroutine's. The stubs have loaded the
    // thread's.
    if g.keeps_fp_control.get() {
        with_thread_fp_control(g, suspend);
    } else {
        suspend();
    }
}

/// Yields to other goroutines if this one has run for its time slice. Without a request this costs
/// one compare.
///
/// Rust code is never preempted, so that a long loop without channels, goroutine functions and the
/// like should call this from time to time. On a thread that runs no goroutine it does nothing.
///
/// `errno` is the same afterwards, as after each preemption of JIT code. Functions that suspend the
/// goroutine at its own wish, such as [`gosched`](crate::runtime::gosched), do not preserve it.
///
/// ```
/// use footbridge::runtime::{self, checkpoint};
///
/// let sum = runtime::run(|| {
///     (0..1_000u64).fold(0, |sum, n| {
///         checkpoint();
///         sum + n
///     })
/// });
/// assert_eq!(sum, 499_500);
/// ```
#[inline(always)]
pub fn checkpoint() {
    if stack_pointer() <= tls::stack_limit() {
        yield_if_requested();
    }
}

/// Runs `f` on this goroutine without yielding to others at polls or in JIT code, even if its time
/// slice is over. `f` may still park by itself.
///
/// This is for JIT code that is entered while a lock is held which other goroutines of this thread
/// may want.
///
/// ```
/// use footbridge::runtime::{self, checkpoint, without_preemption};
///
/// let result = runtime::run(|| {
///     without_preemption(|| {
///         checkpoint(); // Does not yield here.
///         42
///     })
/// });
/// assert_eq!(result, 42);
/// ```
pub fn without_preemption<R>(f: impl FnOnce() -> R) -> R {
    struct Forbidden<'a>(Option<&'a G>);
    impl Drop for Forbidden<'_> {
        fn drop(&mut self) {
            if let Some(g) = self.0 {
                g.no_preempt.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
    // SAFETY: null, or this thread's G, which is never freed.
    let g = unsafe { getg().as_ref() };
    if let Some(g) = g {
        g.no_preempt.fetch_add(1, Ordering::Relaxed);
    }
    // The handler runs on this thread. It sees the count from the first instruction of `f` on.
    compiler_fence(Ordering::SeqCst);
    let _forbidden = Forbidden(g);
    f()
}
