//! The addresses of the stubs that switch stacks. They are emitted once for the process
//! (`start/switch_stubs.rs`).

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::jit::stubs::switch::SwitchStubs;

// Each is 0 until the stubs are emitted and never changes afterwards. `start/switch_stubs.rs`
// returns to a thread only after the stores, and every goroutine is made after that: the loads need
// no order.
static GOGO: AtomicUsize = AtomicUsize::new(0);
static MCALL: AtomicUsize = AtomicUsize::new(0);
static SYSTEMSTACK: AtomicUsize = AtomicUsize::new(0);
static GOROUTINE_ENTRY: AtomicUsize = AtomicUsize::new(0);

/// Makes these the stubs of the process.
pub(crate) fn set(stubs: SwitchStubs) {
    let SwitchStubs { gogo, mcall, systemstack, goroutine_entry } = stubs;
    GOGO.store(gogo, Ordering::Relaxed);
    MCALL.store(mcall, Ordering::Relaxed);
    SYSTEMSTACK.store(systemstack, Ordering::Relaxed);
    GOROUTINE_ENTRY.store(goroutine_entry, Ordering::Relaxed);
}

/// The stub that `switch::gogo` jumps to.
#[inline(always)]
pub(super) fn gogo() -> usize {
    GOGO.load(Ordering::Relaxed)
}

/// The stub that `switch::mcall` jumps to.
#[inline(always)]
pub(super) fn mcall() -> usize {
    MCALL.load(Ordering::Relaxed)
}

/// The systemstack stub: an `extern "C-unwind" fn(argument, function, stack pointer)`
/// (`sched/systemstack.rs`).
#[inline(always)]
pub(crate) fn systemstack() -> usize {
    SYSTEMSTACK.load(Ordering::Relaxed)
}

/// The pc at which a goroutine starts.
pub(crate) fn goroutine_entry() -> usize {
    GOROUTINE_ENTRY.load(Ordering::Relaxed)
}
