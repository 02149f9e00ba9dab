#![allow(unsafe_code, reason = "loads the control registers of floating-point units")]
//! Floating-point control modes: what a thread has, and goroutines that keep modes of their own.
//!
//! The modes are the control bits of MXCSR (exception masks, rounding, flush-to-zero,
//! denormals-are-zero) and the x87 control word (masks, precision, rounding). A function call keeps
//! them (System V psABI, section 3.2.3), so that code which changes them puts them back before it
//! returns. A switch between goroutines does not look at them: all goroutines of a thread run in
//! the modes that the thread had when it became an M. Threads inherit those of their creator, so
//! that this is one set of modes for a run.
//!
//! The story of a goroutine that keeps modes of its own, in time order:
//!
//! 1. [`keep_fp_control`] sets a flag in the goroutine, which lies in the line that a switch
//!    touches anyway.
//! 2. Where the goroutine suspends itself (`gosched`, `gopark`, `give_way`), the flag is tested. If
//!    it is set, [`with_thread_fp_control`] stores the modes in its frame, loads those of the thread, and
//!    suspends as if the flag were not set. So the next goroutine, and the scheduler, run in the
//!    modes of the thread, and a goroutine that does not ask pays a branch.
//! 3. When it goes on, on whatever thread, it loads its own.
//! 4. When it ends, it loads those of the thread, and the flag is cleared: each time that it leaves
//!    for the scheduler, since it may be continued for the destructor of its result.
//!
//! The stubs that put a goroutine aside at any instruction save the modes with everything else and
//! load those of the thread by themselves (`jit/stubs/preempt.rs`).
//!
//! Nothing here may compute with floating-point numbers.

use crate::runtime::arch::fp_control::FpControl;
use crate::runtime::arch::tls;
use crate::runtime::gmp::current::getg;
use crate::runtime::gmp::g::G;

/// Lets the running goroutine keep floating-point control modes of its own over everything that
/// suspends it, or not. Returns what was so before. A goroutine starts without.
///
/// The modes are the control bits of MXCSR, which are exception masks, rounding, flush-to-zero and
/// denormals-are-zero (Intel SDM volume 1, section 10.2.3), and the x87 control word, which is masks,
/// precision and rounding (section 8.1.5). A function keeps them for its caller (System V psABI,
/// section 3.2.3), and so does a suspension that happens in it, but only as the *thread's*: a
/// goroutine that parks, or gives way in [`gosched`](super::gosched) or
/// [`checkpoint`](super::checkpoint), in other modes hands them to the next goroutine and finds those
/// of somebody else. One that has called this with `true` may do so in any modes: others run in
/// those of the thread, and it goes on in its own, also on another thread. That costs about fifteen
/// nanoseconds for each suspension; for goroutines that do not ask, a branch.
///
/// Where JIT code itself gives way, which is at a poll, at the return of a goroutine function and
/// where a signal interrupts it, stubs save the modes with the other registers and load those of the
/// thread, for each goroutine, whether it has asked or not.
///
/// When a goroutine that keeps its own calls this with `false`, or ends, also by a panic, the modes of
/// the thread are loaded: those that it had when the run began. On one that keeps none, `false`
/// loads nothing. Flags of past exceptions belong to nobody, as the psABI has it: they may be gone
/// after a suspension, or be somebody else's.
///
/// This is for JIT and C code that computes in other modes and calls functions that suspend. The
/// Rust compiler relies on the default modes, so that Rust code in between should not compute
/// with floating-point numbers. Goroutines that it starts begin in the modes of the thread.
///
/// On a thread that runs no goroutine it does nothing and returns `false`.
///
/// ```
/// use footbridge::runtime;
///
/// runtime::run(|| {
///     assert_eq!(runtime::keep_fp_control(true), false);
///     // ... call JIT code that sets modes, calls goroutine functions and sets them back ...
///     assert_eq!(runtime::keep_fp_control(false), true);
/// });
/// assert_eq!(runtime::keep_fp_control(true), false);
/// ```
pub fn keep_fp_control(keep: bool) -> bool {
    // SAFETY: null, or immortal.
    let Some(g) = (unsafe { getg().as_ref() }) else {
        return false;
    };
    let kept = g.keeps_fp_control.replace(keep);
    if kept && !keep {
        tls::fp_control().load();
    }
    kept
}

/// Suspends the running goroutine `g`, which keeps its modes, by `suspend`. The thread may be another
/// one afterwards, so that this is inlined nowhere.
///
/// `suspend` does not unwind: that the goroutine may be suspended here was found out before, and the
/// `unlock` of `gopark` has promised it.
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

/// Called by a goroutine that ends, behind the last user's code that it runs: the next one runs in
/// the modes of the thread.
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
