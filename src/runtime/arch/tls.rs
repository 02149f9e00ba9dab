#![allow(unsafe_code, reason = "words that emitted code reads")]
//! The thread-local words of the runtime. Emitted code reads them by their offsets from the thread
//! pointer (`fs` on x86-64, TPIDR_EL0 on AArch64).
//!
//! | offset | word |
//! | --- | --- |
//! | 0 | the current goroutine, or 0 |
//! | 8 | the M that the thread is, or 0 |
//! | 16 | the stack limit of the current goroutine, or 0 (`sched/preempt.rs`) |
//! | 24 | the poll stub of the runtime instance |
//! | 32 | a resume address, for the last instructions of a preemption stub (`jit/stubs/preempt`) |
//! | 40 | the stack check stub of the runtime instance |
//! | 48 | the FP control state of the thread (`fp_control.rs` of the machine) |
//!
//! They are words here and nothing else: `gmp/current` knows what the addresses point to.
//!
//! They are defined and read in assembly for two reasons. Emitted code needs one offset from the
//! thread pointer that holds on every thread, which the initial-exec model gives. And a migratable
//! goroutine may resume on another thread: an `asm!` without `pure` is executed each time, where
//! the compiler may keep the address of a `thread_local!` over a suspension.
//!
//! A library that `dlopen` loads gets these 56 bytes from what glibc keeps free in each thread's
//! static block for that purpose (tunable `glibc.rtld.optional_static_tls`, 512 bytes by default).

use std::arch::global_asm;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::runtime::arch::machine::fp_control::FpControl;
use crate::runtime::arch::machine::tls::word;

pub(crate) use crate::runtime::arch::machine::tls::{
    g, g_offset, m, set_g_and_stack_limit, set_m, stack_limit,
};

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

// Offsets of the other words from the one of the current goroutine. Words 0, 8 and 16 are read and
// written by instructions of the machine's file.
pub(crate) const STACK_LIMIT_OFF: i32 = 16;
pub(crate) const POLL_OFF: i32 = 24;
pub(crate) const RESUME_OFF: i32 = 32;
pub(crate) const STACK_CHECK_OFF: i32 = 40;
pub(crate) const FP_CONTROL_OFF: i32 = 48;

/// This thread's word at an offset from the one of the current goroutine.
///
/// # Safety
/// 1. The offset is one of the table's.
/// 2. The reference is not used after this thread has ended.
unsafe fn word_at(offset: i32) -> &'static AtomicUsize {
    // SAFETY: an aligned word of this thread's block (1), which lives as long as the thread (2).
    unsafe { &*word(offset) }
}

/// The address of this thread's stack limit word, which other threads store requests to. It is
/// valid until the thread ends.
pub(crate) fn stack_limit_word() -> *const AtomicUsize {
    word(STACK_LIMIT_OFF)
}

/// Makes these the poll stub and the stack check stub of this thread.
pub(crate) fn set_poll_stubs(poll: usize, stack_check: usize) {
    // SAFETY: words of the table (1), used at once (2).
    unsafe {
        word_at(POLL_OFF).store(poll, Ordering::Relaxed);
        word_at(STACK_CHECK_OFF).store(stack_check, Ordering::Relaxed);
    }
}

/// Makes this the FP control state of the thread.
pub(crate) fn set_fp_control(control: FpControl) {
    // SAFETY: a word of the table (1), used at once (2).
    unsafe { word_at(FP_CONTROL_OFF).store(control.to_word(), Ordering::Relaxed) };
}

/// The FP control state of this thread while it is an M.
pub(crate) fn fp_control() -> FpControl {
    // SAFETY: a word of the table (1), used at once (2).
    FpControl::from_word(unsafe { word_at(FP_CONTROL_OFF).load(Ordering::Relaxed) })
}

/// What the resume word of this thread holds.
pub(crate) fn resume_word() -> usize {
    // SAFETY: a word of the table (1), used at once (2).
    unsafe { word_at(RESUME_OFF).load(Ordering::Relaxed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thread_has_words_of_its_own_at_one_offset() {
        fn set_and_read(value: usize) -> (i32, usize) {
            let before = [g(), m(), stack_limit()];
            assert_eq!(before, [0; 3], "a thread that no runtime instance owns");
            set_g_and_stack_limit(value, value + 1);
            set_m(value + 2);
            set_poll_stubs(value + 3, value + 4);
            set_fp_control(FpControl::from_word(value + 5));
            assert_eq!([g(), stack_limit(), m()], [value, value + 1, value + 2]);
            let others = [POLL_OFF, STACK_CHECK_OFF, FP_CONTROL_OFF].map(|offset| {
                // SAFETY: words of the table, used at once.
                unsafe { word_at(offset).load(Ordering::Relaxed) }
            });
            assert_eq!(others, [value + 3, value + 4, value + 5]);
            assert_eq!(fp_control(), FpControl::from_word(value + 5));
            assert_eq!(resume_word(), 0);
            // SAFETY: used on this thread.
            unsafe { &*stack_limit_word() }.store(7, Ordering::Relaxed);
            assert_eq!(stack_limit(), 7);
            (g_offset(), stack_limit_word() as usize)
        }
        let threads: Vec<_> =
            (1..=4).map(|i| std::thread::spawn(move || set_and_read(i * 100))).collect();
        let seen: Vec<_> =
            threads.into_iter().map(|thread| thread.join().expect("assertions hold")).collect();
        assert!(seen.iter().all(|&(offset, _)| offset == g_offset()));
    }
}
