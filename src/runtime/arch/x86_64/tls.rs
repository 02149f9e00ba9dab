#![allow(unsafe_code, reason = "words that emitted code reads")]
//! Access to the thread-local words from `fs` (layout and reasons: `arch/tls.rs`).
//!
//! The access sequence is that of the initial-exec model (System V psABI x86-64, and Ulrich
//! Drepper, "ELF Handling For Thread-Local Storage", section 4.4.6): an entry of the global offset
//! table holds the offset. A linker that makes an executable replaces the load by a constant.

use std::arch::asm;
use std::sync::atomic::AtomicUsize;

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

/// Address of this thread's word at an offset from the one of the current goroutine.
pub(crate) fn word(offset: i32) -> *const AtomicUsize {
    let base: usize;
    // SAFETY: reads the base of `fs`, which the psABI keeps in its own first word, and an entry
    // of the global offset table. Not `pure`: the thread may be another one at the next call.
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

/// The stack limit of the goroutine that this thread runs; 0 where there is none.
#[inline(always)]
pub(crate) fn stack_limit() -> usize {
    let stack_limit: usize;
    // SAFETY: reads the third word of this thread's block. Not `pure`, as in `word`.
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

/// Sets the current goroutine of this thread and its stack limit.
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

/// The goroutine that this thread runs; 0 on foreign threads and in the scheduler.
#[inline(always)]
pub(crate) fn g() -> usize {
    let g: usize;
    // SAFETY: reads the first word of this thread's block. Not `pure`, as in `word`.
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

/// The M of this thread; 0 on foreign threads.
#[inline(always)]
pub(crate) fn m() -> usize {
    let m: usize;
    // SAFETY: reads the second word of this thread's block. Not `pure`, as in `word`.
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

/// Sets the M of this thread.
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
