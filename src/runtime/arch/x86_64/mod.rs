#![allow(unsafe_code, reason = "restores a flag")]
//! x86-64, System V.

#[cfg(target_arch = "x86_64")]
pub(crate) mod fp_control;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "tested on every host"))]
pub(crate) mod frame_rules;
#[cfg(all(target_arch = "x86_64", feature = "traceback"))]
pub(crate) mod native_frames;
#[cfg(target_arch = "x86_64")]
pub(crate) mod registers;
#[cfg(target_arch = "x86_64")]
pub(crate) mod save_area;
#[cfg(target_arch = "x86_64")]
pub(crate) mod switch;
#[cfg(target_arch = "x86_64")]
pub(crate) mod tls;

/// The first thing that a signal handler does: clears AC, which the kernel leaves as it was in the
/// interrupted code. Compiled code relies on unaligned accesses.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn enter_signal_handler() {
    // SAFETY: changes one flag, which compiled code expects to be clear.
    unsafe { std::arch::asm!("pushfq", "and dword ptr [rsp], 0xfffbffff", "popfq") };
}
