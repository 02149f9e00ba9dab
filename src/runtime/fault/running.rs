#![allow(unsafe_code, reason = "reads the M that a goroutine runs on")]
//! The traceback of a goroutine that keeps its thread, on another thread.
//!
//! It cannot be suspended where it comes to no poll. What can be known without disturbing it:
//!
//! | the thread | what is shown |
//! | --- | --- |
//! | is blocked in a system call | all frames: the kernel tells where the thread is |
//! | computes, and yields when it is requested to | all frames |
//! | computes otherwise | the JIT frames |
//!
//! Rejected: a signal whose handler walks the stack. It would make system calls of the program end
//! with EINTR, in a program that may only be slow.

use std::fmt::{self, Write};
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::runtime::arch::Registers;
use crate::runtime::gmp::m::M;
use crate::runtime::gmp::name::Label;
use crate::runtime::os::threads::{self, Blocked};
use crate::runtime::walk::{
    Bounds, Goroutine, TraceStart, traceback_within, write_frames, write_jit_frames,
};

/// How long a goroutine that computes is waited for.
const WAIT: Duration = Duration::from_millis(50);

/// How often the stack of a blocked thread is read, if the thread resumes meanwhile.
const TRIES: usize = 3;

/// Writes the goroutine's traceback. It takes no lock that is held over a park.
pub(super) fn write_running(out: &mut dyn Write, goroutine: Goroutine) -> fmt::Result {
    let name = goroutine.name();
    let label = Label { id: goroutine.id(), name: name.as_deref() };
    let g = goroutine.g();
    let bounds = Bounds::of_other(g);
    for _ in 0..TRIES {
        let Some(blocked_at @ Blocked { sp, pc, .. }) = blocked(goroutine) else { break };
        // The frame pointer is not known. Native frames mostly do not need it, and the JIT frames
        // that do are found from the anchor.
        let at = Registers { pc, sp, fp: 0 };
        let start = TraceStart { at, is_return_address: false, anchor: g.anchor.get() };
        let mut frames = String::new();
        write_frames(&mut frames, start, &bounds)?;
        // Frames of a thread that has resumed meanwhile are of no use.
        if blocked(goroutine) == Some(blocked_at) && goroutine.is_current() {
            return write!(out, "{label} [blocked in native code]:\n{frames}");
        }
    }
    let traceback = traceback_within(goroutine, WAIT);
    if let Some(traceback) = traceback.filter(|traceback| !traceback.frames.is_empty()) {
        return write!(out, "{traceback}");
    }
    writeln!(out, "{label} [running]:")?;
    out.write_str("    (computes; its native frames cannot be read)\n")?;
    write_jit_frames(out, g.anchor.get(), &bounds)
}

/// Where the goroutine's thread is blocked, if it is.
pub(super) fn blocked(goroutine: Goroutine) -> Option<Blocked> {
    // SAFETY: null, or an M, which is never freed.
    let m: &M = unsafe { goroutine.g().m.load(Ordering::Relaxed).as_ref() }?;
    threads::blocked(m.tid.load(Ordering::Relaxed))
}
