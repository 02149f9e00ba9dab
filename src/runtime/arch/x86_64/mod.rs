#![allow(unsafe_code, reason = "restores a flag")]
//! x86-64.

use std::arch::asm;

pub(crate) mod fp_control;
pub(crate) mod registers;
pub(crate) mod save_area;
pub(crate) mod switch;
pub(crate) mod tls;

/// The first thing that a signal handler does: clears AC, which the kernel leaves as it was in the
/// interrupted code. Compiled code relies on unaligned accesses.
#[inline(always)]
pub(crate) fn enter_signal_handler() {
    // SAFETY: changes one flag, which compiled code expects to be clear.
    unsafe { asm!("pushfq", "and dword ptr [rsp], 0xfffbffff", "popfq") };
}
