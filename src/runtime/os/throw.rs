//! The end of a process whose runtime state is broken: a message by write(2), then abort.
//!
//! Nothing here allocates, locks or unwinds: it may run on any stack and in any signal handler.

use std::fmt::{self, Write};

use crate::runtime::os::stderr::RawStderr;

/// Writes `footbridge: fatal: ...` and aborts.
#[cold]
#[inline(never)]
pub(crate) fn throw(message: fmt::Arguments<'_>) -> ! {
    // Nothing can be done about a standard error that is closed.
    let _ = writeln!(RawStderr, "footbridge: fatal: {message}");
    std::process::abort()
}
