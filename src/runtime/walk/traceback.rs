#![allow(unsafe_code, reason = "reads stacks of others")]
//! Tracebacks: which goroutine, what it does, and its frames with names.

use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::jit::StubKind;
use crate::jit::stubs::preempt::POLL;
use crate::runtime::arch::{Registers, registers_here};
use crate::runtime::gmp::current::getg;
use crate::runtime::gmp::name::Label;
use crate::runtime::gmp::status::{Status, WaitReason};
use crate::runtime::os::symbols::with_symbol;
use crate::runtime::os::threads;
use crate::runtime::sched::systemstack::systemstack;
use crate::runtime::walk::exact::{Bounds, JitFrame, Start, WalkEnd, exact_walk};
use crate::runtime::walk::full::{Frame, FullWalker};
use crate::runtime::walk::inspect::{Goroutine, ScanError, goroutines, this_goroutine};

/// One line of a traceback.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TraceFrame {
    /// Code that this crate's registry knows.
    Jit {
        /// The name it was installed with.
        name: String,
        /// Bytes from its start to the pc.
        offset_bytes: usize,
        /// What the code is for: `user code`, `goroutine function`, ...
        kind: &'static str,
    },
    /// A Rust function.
    Rust {
        /// Its path, without the hash.
        name: String,
        /// File and line, where debug information tells.
        location: Option<String>,
    },
    /// Any other function that has a symbol.
    C {
        /// The symbol.
        name: String,
    },
    /// An address that no symbol covers.
    Unknown {
        /// The address.
        pc: usize,
    },
}

impl fmt::Display for TraceFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Jit { name, offset_bytes, kind: "user code" } => {
                write!(f, "jit {name}+{offset_bytes:#x}")
            }
            Self::Jit { name, kind: "preempt", .. } if name == POLL => f.write_str("gave way at"),
            Self::Jit { kind: "preempt", .. } => f.write_str("preempted at"),
            Self::Jit { name, offset_bytes, kind } => {
                write!(f, "jit {name}+{offset_bytes:#x} ({kind})")
            }
            Self::Rust { name, location: Some(at) } => write!(f, "rust {name} at {at}"),
            Self::Rust { name, location: None } => write!(f, "rust {name}"),
            Self::C { name } => write!(f, "c {name}"),
            Self::Unknown { pc } => write!(f, "? {pc:#x}"),
        }
    }
}

/// What a goroutine does and where. Prints like Go's tracebacks.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Traceback {
    /// The number of the goroutine; 0 for a thread that runs none.
    pub id: u64,
    /// The name of the goroutine, if [`Builder::name`](super::Builder::name) gave it one.
    pub name: Option<String>,
    /// What it does.
    pub status: Status,
    /// Why it waits, if it does.
    pub wait_reason: WaitReason,
    /// Its frames, innermost first. Empty where the stack could not be read: the goroutine runs
    /// on another thread, or has not started.
    pub frames: Vec<TraceFrame>,
}

impl fmt::Display for Traceback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, name, status, wait_reason, frames } = self;
        let label = Label { id: *id, name: name.as_deref() };
        match (id, wait_reason) {
            (0, _) => writeln!(f, "thread without goroutine:")?,
            (_, WaitReason::None) => writeln!(f, "{label} [{}]:", status.name())?,
            (_, reason) => writeln!(f, "{label} [{}]:", reason.name())?,
        }
        if frames.is_empty() {
            return match status {
                Status::Runnable => writeln!(f, "    (not started)"),
                _ => writeln!(f, "    (running on another thread; its stack is not read)"),
            };
        }
        frames.iter().try_for_each(|frame| writeln!(f, "    {frame}"))
    }
}

/// Where the calling goroutine (or thread) is, with Rust, JIT and C frames across stacks.
///
/// It allocates and reads debug information: for people to read, not for hot paths. Frames of
/// this function itself are left out.
#[inline(never)]
pub fn traceback() -> Traceback {
    of_caller(registers_here(), &mut Names::new())
}

/// The caller of the function that `here` is in.
fn of_caller(here: Registers, names: &mut Names) -> Traceback {
    // SAFETY: immortal.
    let (id, bounds) = match unsafe { getg().as_ref() } {
        Some(g) => (g.id.load(Ordering::Relaxed), Bounds::of(g)),
        None => (0, Bounds::new(threads::stack_bounds(), (0, 0))),
    };
    Traceback {
        id,
        name: this_goroutine().and_then(Goroutine::name),
        status: Status::Running,
        wait_reason: WaitReason::None,
        frames: {
            let walked = names.walk(here, &bounds);
            names.of(walked.get(1..).unwrap_or_default())
        },
    }
}

/// Where every goroutine is, by number: [`traceback_all_within`] 200 ms.
#[inline(never)]
pub fn traceback_all() -> Vec<Traceback> {
    all_from(Some(registers_here()), Duration::from_millis(200))
}

/// Where every goroutine is, by number: of this run on a thread of a run, and else of all runs.
///
/// Each one is held suspended while its stack is read, one after the other. One that runs on another
/// thread is asked to give way: in JIT code that polls or is preemptible, or in
/// [`checkpoint`](super::checkpoint). Those that do not within `wait` (in sum, for all of them)
/// come without frames.
#[inline(never)]
pub fn traceback_all_within(wait: Duration) -> Vec<Traceback> {
    all_from(Some(registers_here()), wait)
}

/// `here`: registers in the function that the caller asks from.
pub(crate) fn all_from(here: Option<Registers>, mut wait: Duration) -> Vec<Traceback> {
    let own = this_goroutine();
    let mut names = Names::new();
    let mut all = Vec::new();
    for goroutine in goroutines() {
        if own == Some(goroutine)
            && let Some(here) = here
        {
            all.push(of_caller(here, &mut names));
            continue;
        }
        all.extend(of_other(goroutine, &mut wait, &mut names));
    }
    all
}

/// A goroutine that somebody else runs or parked. `None` if it ends meanwhile. What was waited for it is
/// taken from `wait`.
fn of_other(goroutine: Goroutine, wait: &mut Duration, names: &mut Names) -> Option<Traceback> {
    let id = goroutine.id();
    let start = Instant::now();
    let outcome = goroutine.suspend(*wait);
    *wait = wait.saturating_sub(start.elapsed());
    let suspended = match outcome {
        Ok(suspended) => suspended,
        Err(ScanError::Ended) => return None,
        Err(ScanError::Running { .. }) => {
            let (status, wait_reason) = (Status::Running, WaitReason::None);
            let name = goroutine.name();
            return Some(Traceback { id, name, status, wait_reason, frames: Vec::new() });
        }
    };
    let (status, wait_reason) = goroutine.status()?;
    let (name, bounds) = (goroutine.name(), suspended.bounds());
    // It goes on before its frames get names, which takes long.
    let walked = suspended.registers().map(|at| names.walk(at, &bounds));
    drop(suspended);
    let frames = walked.map_or(Vec::new(), |walked| names.of(&walked));
    Some(Traceback { id, name, status, wait_reason, frames })
}

/// Walks stacks and names frames. Debug information is slow to read, and goroutines tend to be
/// parked in the same places, so what was looked up is kept for the next goroutine.
///
/// All of it is done on the system stack: who reads debug information may need more stack than a
/// goroutine has.
struct Names {
    walker: FullWalker,
    native: HashMap<usize, Vec<TraceFrame>>,
}

impl Names {
    fn new() -> Self {
        Self { walker: systemstack(FullWalker::new), native: HashMap::new() }
    }

    /// The frames from `at` on.
    fn walk(&mut self, at: Registers, bounds: &Bounds) -> Vec<Frame> {
        systemstack(|| {
            let mut walked = Vec::new();
            self.walker.walk(at, true, bounds, &mut |frame| walked.push(frame));
            walked
        })
    }

    fn of(&mut self, walked: &[Frame]) -> Vec<TraceFrame> {
        systemstack(|| self.of_here(walked))
    }

    fn of_here(&mut self, walked: &[Frame]) -> Vec<TraceFrame> {
        let mut frames = Vec::new();
        for frame in walked {
            if let Some(stub) = frame.stub {
                if stub.kind() == StubKind::Preempt {
                    // What is further in is how this crate puts a goroutine aside.
                    frames.clear();
                }
                frames.push(TraceFrame::Jit {
                    name: stub.name().into(),
                    offset_bytes: stub.offset_bytes(),
                    kind: stub.kind().name(),
                });
            } else {
                // A return address may be the first byte of the next function or line.
                let pc = frame.pc - usize::from(frame.is_return_address);
                frames
                    .extend_from_slice(self.native.entry(pc).or_insert_with(|| native_frames(pc)));
            }
        }
        frames
    }
}

/// The function at a pc, and those inlined into it, innermost first.
fn native_frames(pc: usize) -> Vec<TraceFrame> {
    let mut frames = Vec::new();
    let mut is_plain = false;
    backtrace::resolve(pc as *mut c_void, |symbol| {
        let Some(raw) = symbol.name() else { return };
        let raw = raw.as_str().unwrap_or("?");
        let at = symbol.filename().zip(symbol.lineno());
        let is_rust_file =
            symbol.filename().is_some_and(|file| file.extension() == Some("rs".as_ref()));
        frames.push(match rustc_demangle::try_demangle(raw) {
            Err(_) if !is_rust_file => TraceFrame::C { name: raw.into() },
            demangled => TraceFrame::Rust {
                name: demangled.map_or_else(|_| raw.into(), |name| format!("{name:#}")),
                location: at.map(|(file, line)| format!("{}:{line}", file.display())),
            },
        });
        is_plain = rustc_demangle::try_demangle(raw).is_err();
    });
    // Debug information that has line tables only has names without paths. The symbol table knows
    // the function that others were inlined into: the last one.
    if is_plain && let Some(TraceFrame::Rust { name, .. }) = frames.last_mut() {
        with_symbol(pc, |symbol, _module| {
            if let Some(Ok(path)) = symbol.map(rustc_demangle::try_demangle) {
                *name = format!("{path:#}");
            }
        });
    }
    if frames.is_empty() {
        frames.push(TraceFrame::Unknown { pc });
    }
    frames
}

/// Visits the JIT frames of the calling goroutine, innermost first, until `visit` breaks.
/// Native code is skipped: this is the exact walk, without locks or allocation.
///
/// On a thread that runs no goroutine there is none.
pub fn jit_frames(mut visit: impl FnMut(JitFrame) -> ControlFlow<()>) -> WalkEnd {
    // SAFETY: immortal.
    let Some(g) = (unsafe { getg().as_ref() }) else {
        return WalkEnd::Complete;
    };
    let (fp, pc) = g.anchor.get();
    let start = Start::Anchor { fp, pc };
    exact_walk(start, &Bounds::of(g), &mut visit)
}

/// As [`jit_frames`], from registers that a signal handler found on this thread. Callable there.
///
/// # Safety
/// The registers are those of this thread where the signal interrupted it.
pub unsafe fn jit_frames_from(
    at: Registers,
    mut visit: impl FnMut(JitFrame) -> ControlFlow<()>,
) -> WalkEnd {
    // SAFETY: immortal.
    let Some(g) = (unsafe { getg().as_ref() }) else {
        return WalkEnd::Complete;
    };
    let anchor = g.anchor.get();
    exact_walk(Start::Registers { at, anchor }, &Bounds::of(g), &mut visit)
}
