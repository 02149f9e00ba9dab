//! AArch64, AAPCS64 with LP64.
//!
//! Goroutines, channels, timers, panics and walks run here. What is not here yet is refused where
//! it is requested: preemption by a signal (`save_area`), and in `jit` polls, goroutine functions,
//! entries and adapters that execute (`jit/stubs/host.rs`).

#[cfg(target_arch = "aarch64")]
pub(crate) mod fp_control;
#[cfg_attr(not(target_arch = "aarch64"), allow(dead_code, reason = "tested on every host"))]
pub(crate) mod frame_rules;
#[cfg(all(target_arch = "aarch64", feature = "traceback"))]
pub(crate) mod native_frames;
#[cfg(target_arch = "aarch64")]
pub(crate) mod registers;
#[cfg(target_arch = "aarch64")]
pub(crate) mod save_area;
#[cfg(target_arch = "aarch64")]
pub(crate) mod switch;
#[cfg(target_arch = "aarch64")]
pub(crate) mod tls;

/// The first thing that a signal handler does. Nothing here: the kernel enters handlers with a
/// state that compiled code expects (PSTATE has no bit that user mode sets and compiled code relies
/// on; BTYPE is cleared).
#[cfg(target_arch = "aarch64")]
#[inline(always)]
pub(crate) fn enter_signal_handler() {}

/// The address to install as the handler of signals: that of `handler`. The stack pointer is always
/// aligned.
#[cfg(target_arch = "aarch64")]
pub(crate) fn handler_entry(handler: usize) -> usize {
    handler
}
