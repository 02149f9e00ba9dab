#![allow(unsafe_code, reason = "assembly")]
//! A client request on x86-64: `VALGRIND_DO_CLIENT_REQUEST_EXPR` of `valgrind.h`, platform amd64.

use std::arch::asm;

/// Makes a request: its number and five arguments.
#[inline(always)]
pub(super) fn request(words: &[usize; 6]) {
    // SAFETY: four rotations by 128 bits in all, and an exchange of a register with itself: they
    // change nothing but flags. valgrind reads the words, and returns a result in rdx.
    unsafe {
        asm!(
            "rol rdi, 3",
            "rol rdi, 13",
            "rol rdi, 61",
            "rol rdi, 51",
            "xchg rbx, rbx",
            in("rax") words.as_ptr(),
            inout("rdx") 0usize => _,
            options(nostack),
        );
    }
}
