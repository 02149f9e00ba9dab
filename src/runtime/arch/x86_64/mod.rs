#![allow(unsafe_code, reason = "the entry of signal handlers")]
//! x86-64, System V.

#[cfg(target_arch = "x86_64")]
use std::sync::atomic::{AtomicUsize, Ordering};

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

/// The function that [`handler_entry`] calls. One for all signals, stored before any is installed.
#[cfg(target_arch = "x86_64")]
static HANDLER: AtomicUsize = AtomicUsize::new(0);

/// The address to install as the handler of signals, which calls `handler` with the arguments of
/// the kernel and an aligned stack.
///
/// The kernel aligns the stack of a handler. An emulator may not (qemu-user 7.2 with XSAVE), and
/// the first aligned store of a vector in the handler would fault.
#[cfg(target_arch = "x86_64")]
pub(crate) fn handler_entry(handler: usize) -> usize {
    HANDLER.store(handler, Ordering::Release);
    aligned_handler as *const () as usize
}

/// # Safety
/// 1. [`HANDLER`] is a function of the type of a signal handler.
/// 2. The kernel calls this, as a signal handler.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
unsafe extern "C" fn aligned_handler() {
    std::arch::naked_asm!(
        ".cfi_startproc",
        "push rbp",
        ".cfi_def_cfa_offset 16",
        ".cfi_offset rbp, -16",
        "mov rbp, rsp",
        ".cfi_def_cfa_register rbp",
        "and rsp, -16",
        // rdi, rsi and rdx are the arguments.
        "call qword ptr [rip + {handler}]",
        "leave",
        ".cfi_def_cfa rsp, 8",
        "ret",
        ".cfi_endproc",
        handler = sym HANDLER,
    )
}
