#![allow(unsafe_code, reason = "reads the running goroutine in a signal handler")]
//! A signal whose handler the kernel could not enter on a goroutine's stack.
//!
//! A handler without SA_ONSTACK runs on the stack that it interrupts. Where that has no room for
//! the frame that the kernel writes (with AVX-512 about 3 KiB), the signal is lost, and the thread
//! gets a SIGSEGV that is about no access to memory. Handled as a fault it would be reported as an
//! access to address 0, or reset the handler of SIGSEGV: Rust's own does, since an instruction that
//! has faulted faults again. Here none has, and no overflow would be reported from then on.
//!
//! The kernel does not say which signal was lost. Only handlers without SA_ONSTACK can be meant.

use std::fmt::{self, Write};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::runtime::arch::Registers;
use crate::runtime::gmp::current::getg;
use crate::runtime::gmp::g::G;
use crate::runtime::gmp::name::Label;
use crate::runtime::os::signals;
use crate::runtime::os::stderr::RawStderr;

/// The reports of a process: a profiler's signal may be lost a thousand times a second.
const MAX_REPORTS: u32 = 8;

/// Reports a signal that was lost for want of room on the stack of this thread's goroutine. Returns
/// whether that is what the SIGSEGV is about, which was sent at `at` for a failed delivery. The
/// thread resumes then.
///
/// Called in the handler of a fault.
pub(super) fn report(at: Registers) -> bool {
    // SAFETY: null, or a G, which is never freed. This thread runs it.
    let Some(g) = (unsafe { getg().as_ref() }) else {
        return false;
    };
    let stack = g.stack.get();
    let frame_bytes = signals::max_frame_bytes();
    let is_on_stack = (stack.lo..=stack.hi).contains(&at.sp);
    if !is_on_stack || at.sp - stack.lo >= frame_bytes {
        return false;
    }
    if signals::without_alternate_stack().next().is_none() {
        return false;
    }
    static REPORTS: AtomicU32 = AtomicU32::new(0);
    let reports = REPORTS.fetch_add(1, Ordering::Relaxed);
    if reports < MAX_REPORTS {
        // A closed standard error leaves nothing to do.
        let _ = write_report(g, at.sp - stack.lo, frame_bytes);
        if reports + 1 == MAX_REPORTS {
            let _ = writeln!(RawStderr::new(), "footbridge: further lost signals are not reported");
        }
    }
    // The number of reports never comes near to wrapping around.
    if reports >= MAX_REPORTS {
        REPORTS.store(MAX_REPORTS, Ordering::Relaxed);
    }
    true
}

fn write_report(g: &G, left: usize, frame_bytes: usize) -> fmt::Result {
    let mut out = RawStderr::new();
    // SAFETY: the goroutine runs here, so it has not ended.
    let label = Label { id: g.id.load(Ordering::Relaxed), name: unsafe { g.name.get() } };
    let is_single = signals::without_alternate_stack().nth(1).is_none();
    write!(out, "footbridge: {}", if is_single { "signal" } else { "one of the signals" })?;
    for (n, signal) in signals::without_alternate_stack().enumerate() {
        write!(out, "{} {signal}", if n == 0 { "" } else { "," })?;
    }
    writeln!(
        out,
        " could not be delivered on the stack of {label}, and is lost: {left} bytes are left, and \
         the frame of a handler takes up to {frame_bytes}; install its handler with SA_ONSTACK, or \
         use larger stacks (runtime::Builder::stack_bytes, Config::stack_bytes)"
    )
}
