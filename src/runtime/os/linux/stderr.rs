#![allow(unsafe_code, reason = "write(2) from any context")]
//! Standard error without a lock or an allocation: for signal handlers, for the end of the process,
//! and for reports about goroutines that may hold the lock of `std::io::stderr`.

use std::fmt::{self, Write};
use std::io;

/// Bytes that are kept before they are written. Small: a fatal error may be met on any stack.
const LINE_BYTES: usize = 256;

/// How long a write waits for a standard error that does not block and is full, in milliseconds.
const FULL_MS: libc::c_int = 1000;

/// Writes whole lines with write(2), so that lines of two threads do not mix. A line that is longer
/// than [`LINE_BYTES`] is written in several pieces. Dropping it writes what is left.
pub(crate) struct RawStderr {
    line: [u8; LINE_BYTES],
    len: usize,
}

impl RawStderr {
    pub(crate) fn new() -> Self {
        Self { line: [0; LINE_BYTES], len: 0 }
    }

    /// Writes what is kept.
    fn flush(&mut self) -> fmt::Result {
        let len = std::mem::take(&mut self.len);
        write_all(&self.line[..len])
    }
}

impl Write for RawStderr {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for &byte in s.as_bytes() {
            self.line[self.len] = byte;
            self.len += 1;
            if byte == b'\n' || self.len == LINE_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }
}

impl Drop for RawStderr {
    fn drop(&mut self) {
        // A closed standard error leaves nothing to do.
        let _ = self.flush();
    }
}

fn write_all(mut rest: &[u8]) -> fmt::Result {
    while !rest.is_empty() {
        // SAFETY: the buffer is valid and has that length.
        let written = unsafe { libc::write(libc::STDERR_FILENO, rest.as_ptr().cast(), rest.len()) };
        match usize::try_from(written) {
            Ok(n) if n > 0 => rest = &rest[n..],
            _ => match io::Error::last_os_error().raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EAGAIN) if has_room_soon() => {}
                _ => return Err(fmt::Error),
            },
        }
    }
    Ok(())
}

/// Waits until standard error takes more.
fn has_room_soon() -> bool {
    let mut wait = libc::pollfd { fd: libc::STDERR_FILENO, events: libc::POLLOUT, revents: 0 };
    // SAFETY: the address of a local.
    unsafe { libc::poll(&raw mut wait, 1, FULL_MS) == 1 }
}
