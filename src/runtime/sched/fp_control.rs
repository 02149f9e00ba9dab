#![allow(unsafe_code, reason = "loads the control registers of floating-point units")]
//! FP control state: which one a goroutine runs in, and goroutines that keep one of their own.
//!
//! On x86-64 the state is the control bits of MXCSR (exception masks, rounding, flush-to-zero,
//! denormals-are-zero) and the x87 control word (masks, precision, rounding). A function call
//! preserves it (System V psABI, section 3.2.3), so that code which changes it restores it before
//! it returns.
//!
//! A switch between goroutines does not touch the state. All goroutines of a thread run in the
//! state that the thread had when it became an M. Threads inherit the state of their creator, so
//! that this is one state for a run.
//!
//! The story of a goroutine that keeps a state of its own, in time order:
//!
//! 1. [`keep_fp_control`] sets a flag in the G, in the cache line that a switch touches anyway.
//! 2. Where the goroutine suspends itself (`gosched`, `gopark`, `yield_to_request`), the flag is
//!    tested. If it is set, [`with_thread_fp_control`] stores the state in its frame, loads the
//!    thread's, and suspends as if the flag were not set. So the next goroutine, and the scheduler,
//!    run in the thread's state. A goroutine that does not keep its own pays a branch.
//! 3. When it resumes, on any thread, it loads its own.
//! 4. When it ends, it loads the thread's and clears the flag ([`end`]). It does so each time that
//!    it leaves for the scheduler for good: it may be resumed for the destructor of its result,
//!    which may call [`keep_fp_control`] again.
//!
//! The stubs that deschedule a goroutine at any instruction save the state with everything else,
//! and load the thread's by themselves (`jit/stubs/preempt`).
//!
//! This file must not compute with floating-point numbers.

use crate::runtime::arch::fp_control::FpControl;
use crate::runtime::arch::tls;
use crate::runtime::gmp::current::getg;
use crate::runtime::gmp::g::G;

/// Lets the running goroutine keep an FP control state of its own over everything that suspends it,
/// or not. Returns what was set before. A goroutine starts without.
///
/// The state is the control bits of MXCSR, which are exception masks, rounding, flush-to-zero and
/// denormals-are-zero (Intel SDM volume 1, section 10.2.3), and the x87 control word, which is
/// masks, precision and rounding (section 8.1.5). A function preserves it for its caller (System V
/// psABI, section 3.2.3). A suspension inside of the function preserves the *thread's* state only:
/// a goroutine that parks, or yields in [`gosched`](crate::runtime::gosched) or
/// [`checkpoint`](crate::runtime::checkpoint), in another state hands it to the next goroutine,
/// and finds another goroutine's when it resumes. A goroutine that has called this with `true`
/// may suspend in any state: others run in the thread's, and it resumes in its own, on another
/// thread, too. That costs about fifteen nanoseconds for each suspension, and a branch for
/// goroutines that do not use it.
///
/// Where JIT code itself yields (at a poll, at the return of a goroutine function, and where a
/// signal interrupts it), stubs save the state with the other registers and load the thread's, for
/// every goroutine.
///
/// When a goroutine that keeps its own calls this with `false`, or ends (by a panic, too), the
/// thread's state is loaded: the one that the thread had when the run began. On a goroutine that
/// keeps none, `false` loads nothing. Flags of past exceptions are not part of the state: after a
/// suspension they may be gone, or be another goroutine's.
///
/// This is for JIT and C code that computes in another state and calls functions that suspend. The
/// Rust compiler relies on the default state, so that Rust code in between should not compute with
/// floating-point numbers. Goroutines that it starts begin in the thread's state.
///
/// On a thread that runs no goroutine it does nothing and returns `false`.
///
/// ```
/// use footbridge::runtime;
///
/// runtime::run(|| {
///     assert_eq!(runtime::keep_fp_control(true), false);
///     // ... call JIT code that changes the state, calls goroutine functions and restores it ...
///     assert_eq!(runtime::keep_fp_control(false), true);
/// });
/// assert_eq!(runtime::keep_fp_control(true), false);
/// ```
pub fn keep_fp_control(keep: bool) -> bool {
    // SAFETY: null, or this thread's G, which is never freed.
    let Some(g) = (unsafe { getg().as_ref() }) else {
        return false;
    };
    let kept = g.keeps_fp_control.replace(keep);
    if kept && !keep {
        tls::fp_control().load();
    }
    kept
}

/// Suspends the running goroutine `g`, which keeps its own state, by `suspend`. Not inlined: it may
/// return on another thread.
///
/// `suspend` does not unwind. The caller has checked that the goroutine may be suspended here, and
/// the `unlock` of `gopark` does not unwind by contract.
#[cold]
#[inline(never)]
pub(crate) fn with_thread_fp_control(g: &G, suspend: impl FnOnce()) {
    let own = FpControl::current();
    g.keeps_fp_control.set(false);
    tls::fp_control().load();
    suspend();
    own.load();
    g.keeps_fp_control.set(true);
}

/// Called by a goroutine that ends, after the last code of the user that it runs: the next
/// goroutine runs in the thread's state.
#[inline(always)]
pub(crate) fn end(g: &G) {
    if g.keeps_fp_control.get() {
        end_keeping(g);
    }
}

#[cold]
#[inline(never)]
fn end_keeping(g: &G) {
    g.keeps_fp_control.set(false);
    tls::fp_control().load();
}
