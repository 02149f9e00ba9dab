#![allow(unsafe_code, reason = "write(2) from any context")]
//! Standard error without a lock or a buffer.

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
