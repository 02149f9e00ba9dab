#![allow(unsafe_code, reason = "assembly")]
//! A client request on AArch64: `VALGRIND_DO_CLIENT_REQUEST_EXPR` of `valgrind.h`, platform arm64.

use std::arch::asm;

/// Makes a request: its number and five arguments.
#[inline(always)]
pub(super) fn request(words: &[usize; 6]) {
    // SAFETY: four rotations by 128 bits in all, and a move of a register to itself: they change
    // nothing. valgrind reads the words, and returns a result in x3.
    unsafe {
        asm!(
            "ror x12, x12, #3",
            "ror x12, x12, #13",
            "ror x12, x12, #51",
            "ror x12, x12, #61",
            "orr x10, x10, x10",
            in("x4") words.as_ptr(),
            inout("x3") 0usize => _,
            options(nostack, preserves_flags),
        );
    }
}
