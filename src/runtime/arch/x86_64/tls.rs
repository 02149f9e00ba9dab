#![allow(unsafe_code, reason = "words that emitted code reads")]
//! The thread-local words of the runtime. Emitted code reads them by their offsets from `fs`.
//!
//! | | |
//! | --- | --- |
//! | 0 | the current goroutine |
//! | 8 | the M that the thread is |
//! | 16 | the guard of the current goroutine, or 0: see `preempt.rs` |
//! | 24 | the poll stub of the run |
//! | 32 | a resume address, for three instructions (`jit/stubs/preempt.rs`) |
//! | 40 | the stack check stub of the run |
//! | 48 | the floating-point control modes of the thread: see `fp_control.rs` |
//!
//! They are defined and read in assembly for two reasons. Emitted code needs one offset from `fs`
//! that holds on every thread, which the initial-exec model gives. And a migratable goroutine may
//! continue on another thread: an `asm!` without `pure` is executed each time, where the compiler
//! may keep the address of a `thread_local!` over a suspension.

use std::arch::{asm, global_asm};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::runtime::arch::fp_control::FpControl;

global_asm!(
    ".pushsection .tbss.footbridge_tls,\"awT\",@nobits",
    ".p2align 4",
    ".globl footbridge_0_1_tls",
    ".hidden footbridge_0_1_tls",
    ".type footbridge_0_1_tls, @object",
    ".size footbridge_0_1_tls, 56",
    "footbridge_0_1_tls:",
    ".zero 56",
    ".popsection",
);

/// Offset of the current goroutine from the base of `fs`, the same on every thread.
pub(crate) fn g_offset() -> i32 {
    let offset: i64;
    // SAFETY: reads an entry of the global offset table.
    unsafe {
        asm!(
            "mov {offset}, qword ptr [rip + footbridge_0_1_tls@GOTTPOFF]",
            offset = out(reg) offset,
            options(nomem, nostack, preserves_flags, pure),
        );
    }
    i32::try_from(offset).expect("static thread-local storage is within 2 GiB of its base")
}

/// Offsets of the other words from the one of the current goroutine.
pub(crate) const STACK_LIMIT_OFF: i32 = 16;

pub(crate) const POLL_OFF: i32 = 24;

pub(crate) const RESUME_OFF: i32 = 32;

pub(crate) const STACK_CHECK_OFF: i32 = 40;

pub(crate) const FP_CONTROL_OFF: i32 = 48;

/// Address of this thread's word so many bytes behind that of the current goroutine.
fn word(offset: i32) -> *const AtomicUsize {
    let base: usize;
    // SAFETY: reads the base of `fs`, which the psABI keeps in its own first word, and an entry
    // of the global offset table.
    unsafe {
        asm!(
            "mov {base}, qword ptr [rip + footbridge_0_1_tls@GOTTPOFF]",
            "add {base}, qword ptr fs:[0]",
            base = out(reg) base,
            options(nostack, readonly),
        );
    }
    base.wrapping_add_signed(offset as isize) as *const AtomicUsize
}

/// This thread's guard word. It goes when the thread does.
pub(crate) fn stack_limit_word() -> *const AtomicUsize {
    word(STACK_LIMIT_OFF)
}

/// Makes these the poll stub and the stack check stub of this thread.
pub(crate) fn set_poll_stubs(poll: usize, stack_check: usize) {
    // SAFETY: words of this thread.
    unsafe {
        (*word(POLL_OFF)).store(poll, Ordering::Relaxed);
        (*word(STACK_CHECK_OFF)).store(stack_check, Ordering::Relaxed);
    }
}

/// Makes these the modes of this thread, as [`FpControl`] are laid out.
pub(crate) fn set_fp_control(modes: FpControl) {
    // SAFETY: a word of this thread.
    unsafe { (*word(FP_CONTROL_OFF)).store(modes.to_word(), Ordering::Relaxed) };
}

/// The modes of this thread while it is an M.
pub(crate) fn fp_control() -> FpControl {
    // SAFETY: a word of this thread.
    FpControl::from_word(unsafe { (*word(FP_CONTROL_OFF)).load(Ordering::Relaxed) })
}

/// What the resume word of this thread holds.
pub(crate) fn resume_word() -> usize {
    // SAFETY: a word of this thread.
    unsafe { (*word(RESUME_OFF)).load(Ordering::Relaxed) }
}

/// The guard of the goroutine that this thread runs; 0 where there is none.
#[inline(always)]
pub(crate) fn stack_limit() -> usize {
    let stack_limit: usize;
    // SAFETY: reads the third word of this thread's block.
    unsafe {
        asm!(
            "mov {stack_limit}, qword ptr [rip + footbridge_0_1_tls@GOTTPOFF]",
            "mov {stack_limit}, qword ptr fs:[{stack_limit} + 16]",
            stack_limit = out(reg) stack_limit,
            options(nostack, preserves_flags, readonly),
        );
    }
    stack_limit
}

/// Sets the word of the current goroutine, and the stack limit.
#[inline(always)]
pub(crate) fn set_g_and_stack_limit(g: usize, stack_limit: usize) {
    // SAFETY: writes the first and the third word of this thread's block.
    unsafe {
        asm!(
            "mov {t}, qword ptr [rip + footbridge_0_1_tls@GOTTPOFF]",
            "mov qword ptr fs:[{t}], {g}",
            "mov qword ptr fs:[{t} + 16], {stack_limit}",
            t = out(reg) _,
            g = in(reg) g,
            stack_limit = in(reg) stack_limit,
            options(nostack, preserves_flags),
        );
    }
}

/// The word of the current goroutine.
#[inline(always)]
pub(crate) fn g() -> usize {
    let g: usize;
    // SAFETY: reads the first word of this thread's block.
    unsafe {
        asm!(
            "mov {g}, qword ptr [rip + footbridge_0_1_tls@GOTTPOFF]",
            "mov {g}, qword ptr fs:[{g}]",
            g = out(reg) g,
            options(nostack, preserves_flags, readonly),
        );
    }
    g
}

/// The word of the M that this thread is.
#[inline(always)]
pub(crate) fn m() -> usize {
    let m: usize;
    // SAFETY: reads the second word of this thread's block.
    unsafe {
        asm!(
            "mov {m}, qword ptr [rip + footbridge_0_1_tls@GOTTPOFF]",
            "mov {m}, qword ptr fs:[{m} + 8]",
            m = out(reg) m,
            options(nostack, preserves_flags, readonly),
        );
    }
    m
}

/// Sets the word of the M that this thread is.
pub(crate) fn set_m(m: usize) {
    // SAFETY: writes the second word of this thread's block.
    unsafe {
        asm!(
            "mov {t}, qword ptr [rip + footbridge_0_1_tls@GOTTPOFF]",
            "mov qword ptr fs:[{t} + 8], {m}",
            t = out(reg) _,
            m = in(reg) m,
            options(nostack, preserves_flags),
        );
    }
}
