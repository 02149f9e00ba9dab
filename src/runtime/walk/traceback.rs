#![allow(unsafe_code, reason = "reads the current goroutine")]
//! Tracebacks: which goroutine, what it does, and its frames with names.
//!
//! For people to read. A traceback allocates, takes locks and reads debug information, so nothing
//! here may run in a signal handler, with one exception: [`jit_frames_from`], which is the exact
//! walk.
//!
//! Walks and names are computed on the system stack, since debug information may take more stack to
//! read than a goroutine has. Frames get their names after the goroutine was resumed, since that
//! takes long.

use std::collections::HashMap;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::jit::StubKind;
use crate::runtime::arch::{Registers, registers_here};
use crate::runtime::gmp::current::getg;
use crate::runtime::gmp::name::Label;
use crate::runtime::gmp::status::{Status, WaitReason};
use crate::runtime::os::threads;
use crate::runtime::sched::systemstack::systemstack;
use crate::runtime::walk::exact::{Bounds, JitFrame, Start, WalkEnd, exact_walk};
use crate::runtime::walk::full::{Frame, FullWalker};
use crate::runtime::walk::inspect::{Goroutine, ScanError, goroutines, this_goroutine};
use crate::runtime::walk::names::native_frames;
use crate::runtime::walk::trace_frame::TraceFrame;

/// What a goroutine does and where. Prints like Go's tracebacks.
///
/// It is plain data: `Send`, `Sync`, and valid after the goroutine has ended. [`traceback`] and
/// [`traceback_all`] make it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traceback {
    /// The number of the goroutine; 0 for a thread that runs none.
    pub id: u64,
    /// The name of the goroutine, if [`Builder::name`](crate::runtime::Builder::name) gave it one.
    pub name: Option<String>,
    /// What it does.
    pub status: Status,
    /// Why it waits, if it does.
    pub wait_reason: WaitReason,
    /// Its frames, innermost first. Empty where the stack could not be read: the goroutine runs on
    /// another thread, or has not started.
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
/// It allocates and reads debug information: for people to read, not for hot paths. The frame of
/// this function itself is left out.
///
/// What native frames look like depends on the crate's features. With `backtrace` they have source
/// lines, and inlined functions are frames of their own. With `traceback` alone they have the names
/// of symbol tables. Without it native frames are not decoded: all frames are JIT frames but for
/// the address where the walk begins, in this function, and those at which native code called JIT
/// code ([`TraceFrame::Unknown`]).
///
/// ```
/// use footbridge::runtime::{self, Builder, traceback};
///
/// let trace = runtime::run(|| {
///     Builder::new().name("pump").go(traceback).expect("memory").join().expect("no panic")
/// });
/// assert_eq!(trace.name.as_deref(), Some("pump"));
/// // goroutine 2 "pump" [running]:
/// //     rust ...::main::{{closure}} at src/main.rs:5
/// //     ...
/// //     jit goroutine entry+0x1a (goroutine entry)
/// println!("{trace}");
/// assert!(trace.to_string().contains("\"pump\" [running]:"));
/// assert!(trace.frames.last().expect("frames").to_string().contains("goroutine entry"));
/// ```
#[inline(never)]
pub fn traceback() -> Traceback {
    of_caller(registers_here(), &mut Tracer::new())
}

/// The traceback of the caller of the function that `here` is in.
fn of_caller(here: Registers, tracer: &mut Tracer) -> Traceback {
    // SAFETY: null, or a G, which is never freed.
    let (id, anchor, bounds) = match unsafe { getg().as_ref() } {
        Some(g) => (g.id.load(Ordering::Relaxed), g.anchor.get(), Bounds::of(g)),
        None => (0, (0, 0), Bounds::new(threads::stack_bounds(), (0, 0))),
    };
    Traceback {
        id,
        name: this_goroutine().and_then(Goroutine::name),
        status: Status::Running,
        wait_reason: WaitReason::None,
        frames: {
            let walked = tracer.walk(here, anchor, &bounds);
            tracer.name(walked.get(FullWalker::OWN_FRAMES..).unwrap_or_default())
        },
    }
}

/// Where every goroutine is, by number: [`traceback_all_within`] 200 ms.
///
/// ```
/// use footbridge::runtime::{self, Builder, Chan, WaitReason, gosched, traceback_all};
///
/// runtime::run(|| {
///     let requests = Chan::<u32>::new(0);
///     let idle = requests.clone();
///     let worker = Builder::new().name("worker").go(move || idle.recv()).expect("memory");
///     let is_parked = || {
///         let all = traceback_all();
///         all.iter().any(|trace| {
///             trace.name.as_deref() == Some("worker")
///                 && trace.wait_reason == WaitReason::ChanReceive
///         })
///     };
///     while !is_parked() {
///         gosched();
///     }
///     requests.send(7).expect("open");
///     assert_eq!(worker.join().expect("no panic"), Ok(7));
/// });
/// ```
#[inline(never)]
pub fn traceback_all() -> Vec<Traceback> {
    all_from(registers_here(), Duration::from_millis(200))
}

/// Where every goroutine is, by number: of this run on a thread of a run, and else of all runs.
///
/// Each goroutine is suspended while its stack is read, one after the other. One that runs on
/// another thread is requested to yield: in JIT code that polls or is preemptible, or in
/// [`checkpoint`](crate::runtime::checkpoint). Those that do not yield within `wait` (in sum, for
/// all of them) come without frames. [`traceback`] says which frames there are.
///
/// ```
/// use std::time::Duration;
///
/// use footbridge::runtime::{self, traceback_all_within};
///
/// // No goroutine is waited for: those that run on other threads come without frames.
/// let all = runtime::run(|| traceback_all_within(Duration::ZERO));
/// assert_eq!(all.len(), 1);
/// assert!(!all[0].frames.is_empty(), "the caller's own stack is always read");
/// ```
#[inline(never)]
pub fn traceback_all_within(wait: Duration) -> Vec<Traceback> {
    all_from(registers_here(), wait)
}

/// The tracebacks of all goroutines. `here`: registers in the function that was called for them.
fn all_from(here: Registers, mut wait: Duration) -> Vec<Traceback> {
    let own = this_goroutine();
    let mut tracer = Tracer::new();
    let mut all = Vec::new();
    for goroutine in goroutines() {
        if own == Some(goroutine) {
            all.push(of_caller(here, &mut tracer));
            continue;
        }
        all.extend(of_other(goroutine, &mut wait, &mut tracer));
    }
    all
}

/// Hands over the tracebacks of goroutines one by one, until `visit` breaks. None of them is
/// waited for. Called on a thread that runs none of them.
pub(crate) fn each_of(
    goroutines: &[Goroutine],
    mut visit: impl FnMut(Goroutine, Traceback) -> ControlFlow<()>,
) {
    let mut tracer = Tracer::new();
    for &goroutine in goroutines {
        let mut no_wait = Duration::ZERO;
        let traceback = of_other(goroutine, &mut no_wait, &mut tracer);
        if traceback.is_some_and(|traceback| visit(goroutine, traceback).is_break()) {
            return;
        }
    }
}

/// The traceback of a goroutine that is not the calling one, which is waited for within `wait`.
/// `None` if it ends meanwhile.
pub(crate) fn traceback_within(goroutine: Goroutine, mut wait: Duration) -> Option<Traceback> {
    of_other(goroutine, &mut wait, &mut Tracer::new())
}

/// The traceback of a goroutine that is not the calling one. `None` if it ends meanwhile. The time
/// that it was waited for is taken from `wait`.
fn of_other(goroutine: Goroutine, wait: &mut Duration, tracer: &mut Tracer) -> Option<Traceback> {
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
    let anchor = suspended.anchor();
    let walked = suspended.registers().map(|at| tracer.walk(at, anchor, &bounds));
    // The goroutine resumes before its frames get names.
    drop(suspended);
    let frames = walked.map_or(Vec::new(), |walked| tracer.name(&walked));
    Some(Traceback { id, name, status, wait_reason, frames })
}

/// Walks stacks and names frames, both on the system stack. Debug information is slow to read, and
/// goroutines tend to be parked in the same places, so names are kept for the next goroutine.
struct Tracer {
    walker: FullWalker,
    native: HashMap<usize, Vec<TraceFrame>>,
}

impl Tracer {
    fn new() -> Self {
        Self { walker: systemstack(FullWalker::new), native: HashMap::new() }
    }

    /// The frames from `at` on. `anchor` is the goroutine's.
    fn walk(&mut self, at: Registers, anchor: (usize, usize), bounds: &Bounds) -> Vec<Frame> {
        systemstack(|| {
            let mut walked = Vec::new();
            self.walker.walk(at, anchor, false, bounds, &mut |frame| walked.push(frame));
            walked
        })
    }

    /// Frames as they are shown.
    fn name(&mut self, walked: &[Frame]) -> Vec<TraceFrame> {
        systemstack(|| self.name_here(walked))
    }

    fn name_here(&mut self, walked: &[Frame]) -> Vec<TraceFrame> {
        let mut frames = Vec::new();
        for frame in walked {
            if let Some(stub) = frame.stub {
                if stub.kind() == StubKind::Preempt {
                    // What is further in is how this crate deschedules a goroutine.
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
                let named = self.native.entry(pc).or_insert_with(|| native_frames(pc));
                frames.extend_from_slice(named);
            }
        }
        frames
    }
}

/// Visits the JIT frames of the calling goroutine, innermost first, until `visit` breaks.
/// Native code is skipped: this is the exact walk, which takes no lock and allocates nothing.
///
/// On a thread that runs no goroutine there is none.
///
/// ```
/// use std::ops::ControlFlow;
///
/// use footbridge::abi::Convention;
/// use footbridge::dynasm::{DynasmApi, DynasmLabelApi, dynasm};
/// use footbridge::jit::{FrameClass, Jit, StubKind};
/// use footbridge::runtime::{self, WalkEnd, jit_frames};
///
/// let jit = Jit::new()?;
/// let kinds = jit.named_goroutine_fn("kinds", Convention::SystemV, || {
///     let mut kinds = Vec::new();
///     let end = jit_frames(|frame| {
///         kinds.push(frame.stub.kind());
///         ControlFlow::Continue(())
///     });
///     assert_eq!(end, WalkEnd::Complete);
///     // The stub that left JIT code, the code itself, and the entry to it.
///     assert_eq!(kinds, [StubKind::GoroutineFn, StubKind::User, StubKind::Enter]);
/// })?;
/// let target = kinds.address();
/// // SAFETY: a System V function with a standard frame around a call.
/// let code = unsafe {
///     jit.install("caller", FrameClass::Standard, |ops| {
///         dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; call extern target; pop rbp; ret);
///     })?
/// };
/// // SAFETY: its convention and type.
/// let code = unsafe { code.enter::<fn()>(Convention::SystemV)? };
/// // SAFETY: on a goroutine.
/// runtime::run(|| unsafe { code.call() });
/// # Ok::<(), footbridge::jit::JitError>(())
/// ```
pub fn jit_frames(mut visit: impl FnMut(JitFrame) -> ControlFlow<()>) -> WalkEnd {
    // SAFETY: null, or a G, which is never freed.
    let Some(g) = (unsafe { getg().as_ref() }) else {
        return WalkEnd::Complete;
    };
    let (fp, pc) = g.anchor.get();
    let start = Start::Anchor { fp, pc };
    exact_walk(start, &Bounds::of(g), &mut visit)
}

/// As [`jit_frames`], from registers that a signal handler found on this thread. Callable there:
/// what a profiler does with a sample.
///
/// ```
/// use std::ops::ControlFlow;
///
/// use footbridge::runtime::{Registers, WalkEnd, jit_frames_from};
///
/// /// Called in the handler of SIGPROF with the registers of its context.
/// fn sample(rip: usize, rsp: usize, rbp: usize) -> usize {
///     let (mut n, at) = (0, Registers { pc: rip, sp: rsp, fp: rbp });
///     // SAFETY: the registers of this thread where the signal interrupted it.
///     unsafe {
///         jit_frames_from(at, |_frame| {
///             n += 1;
///             ControlFlow::Continue(())
///         });
///     }
///     n
/// }
/// // This thread runs no goroutine.
/// assert_eq!(sample(0, 0, 0), 0);
/// ```
///
/// # Safety
/// 1. The registers are those of this thread where the signal interrupted it.
pub unsafe fn jit_frames_from(
    at: Registers,
    mut visit: impl FnMut(JitFrame) -> ControlFlow<()>,
) -> WalkEnd {
    // SAFETY: null, or a G, which is never freed.
    let Some(g) = (unsafe { getg().as_ref() }) else {
        return WalkEnd::Complete;
    };
    let anchor = g.anchor.get();
    exact_walk(Start::Registers { at, anchor }, &Bounds::of(g), &mut visit)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use dynasmrt::{DynasmLabelApi, dynasm};

    use super::*;
    use crate::abi::Convention;
    use crate::jit::{FrameClass, Jit};
    use crate::runtime;
    use crate::runtime::walk::full::jit_only::FullWalker;

    /// Kinds of the frames of a walk without native frames, with `None` for native code.
    #[inline(never)]
    fn kinds_here() -> Vec<Option<StubKind>> {
        let at = registers_here();
        // SAFETY: called on a goroutine, and a G is never freed.
        let g = unsafe { &*getg() };
        let mut kinds = Vec::new();
        let visit = &mut |frame: Frame| kinds.push(frame.stub.map(|stub| stub.kind()));
        FullWalker::new().walk(at, g.anchor.get(), false, &Bounds::of(g), visit);
        kinds.split_off(FullWalker::OWN_FRAMES)
    }

    #[test]
    fn without_native_frames_the_known_addresses_are_left() {
        static SEEN: Mutex<Vec<Option<StubKind>>> = Mutex::new(Vec::new());
        let jit = Jit::new().expect("code memory");
        let look = jit.named_goroutine_fn("look", Convention::SystemV, || {
            *SEEN.lock().expect("no panic") = kinds_here();
        });
        let look = look.expect("emitted").address();
        // SAFETY: a System V function with a standard frame around a call.
        let code = unsafe {
            jit.install("caller", FrameClass::Standard, |ops| {
                dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; call extern look; pop rbp; ret);
            })
        };
        // SAFETY: its convention and type.
        let code = unsafe { code.expect("room").enter::<fn()>(Convention::SystemV) };
        let code = code.expect("emitted");
        runtime::run(|| {
            assert_eq!(kinds_here(), [None], "no JIT code on the stack");
            // SAFETY: on a goroutine.
            unsafe { code.call() };
        });
        let (native, jit) = (None, [StubKind::GoroutineFn, StubKind::User, StubKind::Enter]);
        let [a, b, c] = jit.map(Some);
        // Where the walk began, JIT code, and the native code that entered it.
        assert_eq!(*SEEN.lock().expect("no panic"), [native, a, b, c, native]);
    }

    /// What the documentation of these types promises.
    #[test]
    fn what_is_known_of_goroutines_can_be_sent() {
        fn is_plain_data<T: Send + Sync + fmt::Debug>() {}
        is_plain_data::<Goroutine>();
        is_plain_data::<JitFrame>();
        is_plain_data::<Traceback>();
        is_plain_data::<runtime::Config>();
    }
}
