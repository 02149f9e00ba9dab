#![allow(unsafe_code, reason = "_exit(2)")]
//! The end of a process whose runtime state is broken: a message by write(2), then abort.
//!
//! `throw` may run on any stack and in any signal handler. So it must not allocate, lock or unwind,
//! and the values that a message formats must not either.

use std::fmt::{self, Write};

use crate::runtime::os::stderr::RawStderr;

/// Writes `footbridge: fatal: ...` and aborts. For state that no code can repair: an error that a
/// user can cause is returned or panics.
#[cold]
#[inline(never)]
pub(crate) fn throw(message: fmt::Arguments<'_>) -> ! {
    // A closed standard error leaves nothing to do.
    let _ = writeln!(RawStderr::new(), "footbridge: fatal: {message}");
    std::process::abort()
}

/// Ends the process without running anything: neither what atexit(3) has registered nor a flush.
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: the call takes a number, and does not return.
    unsafe { libc::_exit(status) }
}
