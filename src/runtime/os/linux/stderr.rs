#![allow(unsafe_code, reason = "write(2) from any context")]
//! Standard error without a lock or a buffer: for signal handlers and for the end of the process.

use std::fmt::{self, Write};

/// Writes with write(2), piece by piece as they are formatted. Each piece may be torn from the next
/// by the output of other threads.
pub(crate) struct RawStderr;

impl Write for RawStderr {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let mut rest = s.as_bytes();
        while !rest.is_empty() {
            // SAFETY: the buffer is valid and has that length.
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
