#![allow(unsafe_code, reason = "words that emitted code reads")]
//! The two thread-local words of the runtime: the current goroutine and the current M.
//!
//! They are defined and read in assembly for two reasons. Emitted code needs one offset from `fs`
//! that holds on every thread, which the initial-exec model gives. And a migratable goroutine may
//! continue on another thread: an `asm!` without `pure` is executed each time, where the compiler
//! may keep the address of a `thread_local!` over a suspension.

use std::arch::{asm, global_asm};

use super::g::G;
use super::m::M;

global_asm!(
    ".pushsection .tbss.footbridge_tls,\"awT\",@nobits",
    ".p2align 4",
    ".globl footbridge_0_1_tls",
    ".hidden footbridge_0_1_tls",
    ".type footbridge_0_1_tls, @object",
    ".size footbridge_0_1_tls, 16",
    "footbridge_0_1_tls:",
    ".zero 16",
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

/// The goroutine that this thread runs, or null: on foreign threads and in the scheduler.
#[inline(always)]
pub(crate) fn getg() -> *mut G {
    let g: *mut G;
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

/// The M of this thread, or null on foreign threads.
#[inline(always)]
pub(crate) fn getm() -> *mut M {
    let m: *mut M;
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

/// Sets the current goroutine of this thread.
#[inline(always)]
pub(crate) fn setg(g: *mut G) {
    // SAFETY: writes the first word of this thread's block.
    unsafe {
        asm!(
            "mov {t}, qword ptr [rip + footbridge_0_1_tls@GOTTPOFF]",
            "mov qword ptr fs:[{t}], {g}",
            t = out(reg) _,
            g = in(reg) g,
            options(nostack, preserves_flags),
        );
    }
}

/// Sets the M of this thread.
pub(crate) fn setm(m: *mut M) {
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
