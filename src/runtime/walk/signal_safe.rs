#![allow(unsafe_code, reason = "a walker that is made before it is needed")]
//! Tracebacks that take no lock and allocate nothing: for handlers of faults, and for reports about
//! goroutines that may hold any lock.
//!
//! The full walk needs a walker, and to make one allocates and takes locks. So a walker is made
//! when a run starts ([`prepare`]), and anew for reports on threads that may wait for a lock
//! ([`prepare_within`]). A module that is loaded later is not in it: native frames end there, and
//! the JIT frames that are further out are found by the exact walk. Names come from symbol tables,
//! so that there are neither lines nor inlined functions.

use std::fmt::{self, Write};
use std::ops::ControlFlow;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::jit::stubs::preempt::POLL;
use crate::jit::{FrameClass, StubInfo, StubKind};
use crate::runtime::arch::Registers;
use crate::runtime::walk::exact::{Bounds, Start, WalkEnd, exact_walk};
use crate::runtime::walk::full::{Frame, FullWalker, caller_by_search};
use crate::runtime::walk::names::write_native;

/// How many frames are shown. Of the others the number is.
const SHOWN_FRAMES: usize = 64;

/// The walker that reports use. Null: none was made, or a report is using it.
///
/// Invariant: the address is that of a leaked box, and the thread that swaps it out owns it.
static WALKER: AtomicPtr<FullWalker> = AtomicPtr::new(ptr::null_mut());

/// Makes the walker for the modules that are loaded now, unless there is one. Called outside of
/// signal handlers: it takes locks.
pub(crate) fn prepare() {
    // The lock of the dynamic linker may be held for ever. The walker is in its place meanwhile,
    // for reports that take no lock.
    let counters = FullWalker::load_counters();
    let known = WALKER.swap(ptr::null_mut(), Ordering::AcqRel);
    // SAFETY: by the invariant of `WALKER` this thread owns it.
    let known = (!known.is_null()).then(|| unsafe { Box::from_raw(known) });
    let walker = known.filter(|walker| walker.is_of(counters));
    put_back(Box::into_raw(walker.unwrap_or_else(|| Box::new(FullWalker::new()))));
}

/// [`prepare`], for a thread that must not wait for a lock for longer than `limit`: the goroutine
/// that is reported may hold the one of the dynamic linker. If that is so the walker stays what it
/// was.
pub(crate) fn prepare_within(limit: Duration) {
    /// Whether a helper prepares, or waits for a lock.
    static IS_PREPARING: AtomicBool = AtomicBool::new(false);
    if IS_PREPARING.swap(true, Ordering::Acquire) {
        return;
    }
    let (done, wait) = mpsc::channel();
    let helper = thread::Builder::new().name("footbridge-report".into()).spawn(move || {
        prepare();
        IS_PREPARING.store(false, Ordering::Release);
        let _ = done.send(());
    });
    match helper {
        Ok(_) => {
            let _ = wait.recv_timeout(limit);
        }
        Err(_) => IS_PREPARING.store(false, Ordering::Release),
    }
}

/// Puts a walker back that this thread owns. If another thread has made one meanwhile this one is
/// leaked: it must not be freed in a signal handler.
fn put_back(walker: *mut FullWalker) {
    let empty = ptr::null_mut();
    let _ = WALKER.compare_exchange(empty, walker, Ordering::AcqRel, Ordering::Relaxed);
}

/// Where a traceback begins.
#[derive(Clone, Copy)]
pub(crate) struct TraceStart {
    pub(crate) at: Registers,
    /// The pc is one that a call returns to. Otherwise the code was interrupted there.
    pub(crate) is_return_address: bool,
    /// The goroutine's anchor.
    pub(crate) anchor: (usize, usize),
}

/// Writes the frames of a stack, innermost first, a line each.
pub(crate) fn write_frames(out: &mut dyn Write, start: TraceStart, bounds: &Bounds) -> fmt::Result {
    let mut shown = Shown { out, frames: 0, result: Ok(()) };
    let mut walked = Walked { jit_frames: 0, is_complete: false, stopped_at: None };
    walk(start, bounds, &mut shown, &mut walked);
    // The frame pointer of a blocked thread is not known, and the last frame may need it.
    if start.at.fp == 0
        && !walked.is_complete
        && let Some(at) = walked.stopped_at.and_then(|callee| caller_by_search(callee, bounds))
    {
        let rest = TraceStart { at, is_return_address: true, anchor: start.anchor };
        walk(rest, bounds, &mut shown, &mut walked);
    }
    if !walked.is_complete {
        shown.rest_by_exact_walk(start, bounds, walked.jit_frames);
    }
    shown.end()
}

/// What the full walk has met.
struct Walked {
    jit_frames: usize,
    /// The last frame was the outermost one of a goroutine.
    is_complete: bool,
    /// A native frame whose caller could not be told.
    stopped_at: Option<Registers>,
}

/// Shows the frames of the full walk. Without a walker there are none.
fn walk(start: TraceStart, bounds: &Bounds, shown: &mut Shown, walked: &mut Walked) {
    let TraceStart { at, is_return_address, anchor } = start;
    let walker = WALKER.swap(ptr::null_mut(), Ordering::AcqRel);
    // SAFETY: null, or by the invariant of `WALKER` this thread's.
    if let Some(walker) = unsafe { walker.as_mut() } {
        let visit = &mut |frame: Frame| {
            walked.jit_frames += usize::from(frame.stub.is_some());
            walked.is_complete =
                frame.stub.is_some_and(|stub| stub.frame_class() == FrameClass::Root);
            shown.frame(&frame);
        };
        walked.stopped_at = walker.walk(at, anchor, is_return_address, bounds, visit);
        put_back(walker);
    }
}

/// Writes the JIT frames of a goroutine that may be running on another thread: those from its
/// anchor on, which change while it does. Then what is written is of no use, but harmless.
pub(crate) fn write_jit_frames(
    out: &mut dyn Write,
    anchor: (usize, usize),
    bounds: &Bounds,
) -> fmt::Result {
    let mut shown = Shown { out, frames: 0, result: Ok(()) };
    let (fp, pc) = anchor;
    let at = Registers { pc, sp: 0, fp };
    let start = TraceStart { at, is_return_address: true, anchor };
    shown.rest_by_exact_walk(start, bounds, 0);
    shown.end()
}

/// The frames that were written so far.
struct Shown<'a> {
    out: &'a mut dyn Write,
    frames: usize,
    result: fmt::Result,
}

impl Shown<'_> {
    fn frame(&mut self, frame: &Frame) {
        self.frames += 1;
        if self.frames <= SHOWN_FRAMES && self.result.is_ok() {
            self.result = write_frame(self.out, frame);
        }
    }

    /// Shows the JIT frames that the full walk has not come to, which met `known` of them.
    fn rest_by_exact_walk(&mut self, start: TraceStart, bounds: &Bounds, known: usize) {
        let TraceStart { at, is_return_address, anchor } = start;
        let from = match is_return_address {
            true => Start::Anchor { fp: anchor.0, pc: anchor.1 },
            false => Start::Registers { at, anchor },
        };
        let mut jit_frames = 0;
        let end = exact_walk(from, bounds, &mut |frame| {
            if jit_frames == known && self.frames > 0 {
                self.note("(native frames that cannot be told; JIT frames follow)");
            }
            jit_frames += 1;
            if jit_frames > known {
                let (pc, stub) = (frame.pc, Some(frame.stub));
                self.frame(&Frame { pc, is_return_address: true, stub });
            }
            ControlFlow::Continue(())
        });
        match end {
            WalkEnd::Broken { .. } => self.note("(a frame is broken: the walk ends here)"),
            WalkEnd::Switching => self.note("(between two stacks: the walk ends here)"),
            _ => {}
        }
    }

    fn note(&mut self, text: &str) {
        if self.result.is_ok() {
            self.result = writeln!(self.out, "    {text}");
        }
    }

    fn end(self) -> fmt::Result {
        self.result?;
        match self.frames.checked_sub(SHOWN_FRAMES) {
            Some(more @ 1..) => writeln!(self.out, "    (and {more} more)"),
            _ if self.frames == 0 => writeln!(self.out, "    (none)"),
            _ => Ok(()),
        }
    }
}

fn write_frame(out: &mut dyn Write, frame: &Frame) -> fmt::Result {
    out.write_str("    ")?;
    match frame.stub {
        Some(stub) => writeln!(out, "{}", JitLine(stub)),
        // A return address may be the first byte of the next function.
        None => write_native(out, frame.pc - usize::from(frame.is_return_address), true),
    }
}

/// A JIT frame as `TraceFrame` prints it.
struct JitLine(StubInfo);

impl fmt::Display for JitLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stub = self.0;
        match stub.kind() {
            StubKind::User => write!(f, "{stub}"),
            StubKind::Preempt if stub.name() == POLL => f.write_str("yielded at"),
            StubKind::Preempt => f.write_str("preempted at"),
            kind => write!(f, "{stub} ({})", kind.name()),
        }
    }
}
