#![allow(unsafe_code, reason = "a word of the C library")]
//! errno of the calling thread.
//!
//! Neither function is inlined, nor keeps the address of the word: a goroutine may call the second
//! one on another thread.

/// The value of errno.
#[inline(never)]
pub(crate) fn get() -> i32 {
    // SAFETY: the address of a word of this thread, which is used at once.
    unsafe { *libc::__errno_location() }
}

/// Sets errno.
#[inline(never)]
pub(crate) fn set(errno: i32) {
    // SAFETY: the address of a word of this thread, which is used at once.
    unsafe { *libc::__errno_location() = errno };
}
