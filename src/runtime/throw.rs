#![allow(unsafe_code, reason = "write(2) from any context")]
//! The end of a process whose runtime state is broken: a message by write(2), then abort.
//!
//! Nothing here allocates, locks or unwinds: it may run on any stack and in any signal handler.

use std::fmt::{self, Write};

/// Standard error without a lock or a buffer.
pub(crate) struct RawStderr;

impl Write for RawStderr {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let mut rest = s.as_bytes();
        while !rest.is_empty() {
            // SAFETY: a valid buffer of that length.
            let written =
                unsafe { libc::write(libc::STDERR_FILENO, rest.as_ptr().cast(), rest.len()) };
            match usize::try_from(written) {
                Ok(n) if n > 0 => rest = &rest[n..],
                _ => return Err(fmt::Error),
            }
        }
        Ok(())
    }
}

/// Writes `footbridge: fatal: ...` and aborts.
#[cold]
#[inline(never)]
pub(crate) fn throw(message: fmt::Arguments<'_>) -> ! {
    // Nothing can be done about a standard error that is closed.
    let _ = writeln!(RawStderr, "footbridge: fatal: {message}");
    std::process::abort()
}
