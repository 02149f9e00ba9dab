#![allow(unsafe_code, reason = "words that emitted code reads")]
//! Access to the thread-local words from TPIDR_EL0 (layout and reasons: `arch/tls.rs`).
//!
//! The access sequence is the one of initial-exec (ELF for the Arm 64-bit Architecture, section
//! "Relocations for thread-local storage"): `adrp` and `ldr` make the offset from an entry of the
//! global offset table. A linker that makes an executable rewrites each of the two by itself, to
//! `movz` and `movk`, so that both must name the same register.

use std::arch::asm;
use std::sync::atomic::AtomicUsize;

/// Offset of the current goroutine from TPIDR_EL0, the same on every thread.
pub(crate) fn g_offset() -> i32 {
    let offset: i64;
    // SAFETY: reads an entry of the global offset table.
    unsafe {
        asm!(
            "adrp {offset}, :gottprel:footbridge_0_1_tls",
            "ldr {offset}, [{offset}, :gottprel_lo12:footbridge_0_1_tls]",
            offset = out(reg) offset,
            options(nomem, nostack, preserves_flags, pure),
        );
    }
    i32::try_from(offset).expect("static thread-local storage is within 2 GiB of its base")
}

/// Address of this thread's word at an offset from the one of the current goroutine.
pub(crate) fn word(offset: i32) -> *const AtomicUsize {
    let base: usize;
    // SAFETY: reads TPIDR_EL0 and an entry of the global offset table. Not `pure`: the thread may
    // be another one at the next call.
    unsafe {
        asm!(
            "adrp {offset}, :gottprel:footbridge_0_1_tls",
            "mrs {base}, tpidr_el0",
            "ldr {offset}, [{offset}, :gottprel_lo12:footbridge_0_1_tls]",
            "add {base}, {base}, {offset}",
            base = out(reg) base,
            offset = out(reg) _,
            options(nostack, preserves_flags, readonly),
        );
    }
    base.wrapping_add_signed(offset as isize) as *const AtomicUsize
}

/// Loads the word of this thread at an offset that is part of the instruction.
macro_rules! load {
    ($offset:literal) => {{
        let value: usize;
        // SAFETY: reads a word of this thread's block. Not `pure`, as in `word`.
        unsafe {
            asm!(
                "adrp {offset}, :gottprel:footbridge_0_1_tls",
                "mrs {value}, tpidr_el0",
                "ldr {offset}, [{offset}, :gottprel_lo12:footbridge_0_1_tls]",
                "add {value}, {value}, {offset}",
                concat!("ldr {value}, [{value}, #", $offset, "]"),
                value = out(reg) value,
                offset = out(reg) _,
                options(nostack, preserves_flags, readonly),
            );
        }
        value
    }};
}

/// The goroutine that this thread runs; 0 on foreign threads and in the scheduler.
#[inline(always)]
pub(crate) fn g() -> usize {
    let g: usize;
    // SAFETY: reads the first word of this thread's block. Not `pure`, as in `word`.
    unsafe {
        asm!(
            "adrp {offset}, :gottprel:footbridge_0_1_tls",
            "mrs {g}, tpidr_el0",
            "ldr {offset}, [{offset}, :gottprel_lo12:footbridge_0_1_tls]",
            "ldr {g}, [{g}, {offset}]",
            g = out(reg) g,
            offset = out(reg) _,
            options(nostack, preserves_flags, readonly),
        );
    }
    g
}

/// The M of this thread; 0 on foreign threads.
#[inline(always)]
pub(crate) fn m() -> usize {
    load!("8")
}

/// The stack limit of the goroutine that this thread runs; 0 where there is none.
#[inline(always)]
pub(crate) fn stack_limit() -> usize {
    load!("16")
}

/// Sets the current goroutine of this thread and its stack limit.
#[inline(always)]
pub(crate) fn set_g_and_stack_limit(g: usize, limit: usize) {
    // SAFETY: writes the first and the third word of this thread's block.
    unsafe {
        asm!(
            "adrp {offset}, :gottprel:footbridge_0_1_tls",
            "mrs {base}, tpidr_el0",
            "ldr {offset}, [{offset}, :gottprel_lo12:footbridge_0_1_tls]",
            "add {base}, {base}, {offset}",
            "str {g}, [{base}]",
            "str {limit}, [{base}, #16]",
            base = out(reg) _,
            offset = out(reg) _,
            g = in(reg) g,
            limit = in(reg) limit,
            options(nostack, preserves_flags),
        );
    }
}

/// Sets the M of this thread.
pub(crate) fn set_m(m: usize) {
    // SAFETY: writes the second word of this thread's block.
    unsafe {
        asm!(
            "adrp {offset}, :gottprel:footbridge_0_1_tls",
            "mrs {base}, tpidr_el0",
            "ldr {offset}, [{offset}, :gottprel_lo12:footbridge_0_1_tls]",
            "add {base}, {base}, {offset}",
            "str {m}, [{base}, #8]",
            base = out(reg) _,
            offset = out(reg) _,
            m = in(reg) m,
            options(nostack, preserves_flags),
        );
    }
}
