#![allow(unsafe_code, reason = "inspects goroutines that other threads run")]
//! Goroutines as other threads see them: which ones there are, and what is on their stacks.
//!
//! A stack can be read only while its goroutine is suspended (the protocol: `sync/suspend.rs`). In
//! time order:
//!
//! 1. The inspecting thread takes the process-wide right to suspend ([`SuspendRight`]).
//! 2. It requests the suspension (`SuspendState::request`). A goroutine that is parked or queued
//!    is suspended with that: an M that wants to make it current sleeps until it is resumed.
//! 3. A goroutine that runs is requested to yield, as sysmon does (`preempt::request_of`), and once
//!    more every [`REQUEST_AGAIN`]. It yields at a poll, where it parks, or where it may be
//!    preempted. It may never do so, hence each wait has a limit of time.
//! 4. The inspecting thread reads the stack.
//! 5. [`Suspended`] is dropped: the goroutine is resumed, and an M that sleeps for it is woken.
//!
//! The right is one in the whole process. With one right for each goroutine, two goroutines that
//! inspect each other would wait for each other.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::ControlFlow;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::runtime::arch::{Registers, tls};
use crate::runtime::gmp::current::{getg, this_sched};
use crate::runtime::gmp::g::G;
use crate::runtime::gmp::status::{Status, WaitReason};
use crate::runtime::gmp::{g, join_state};
use crate::runtime::os::futex;
use crate::runtime::sched::preempt;
use crate::runtime::sched::preempt::checkpoint;
use crate::runtime::sched::systemstack::systemstack;
use crate::runtime::sync::suspend::{self, Found};
use crate::runtime::walk::exact::{Bounds, Start, WalkEnd};
use crate::runtime::walk::scan::{ScanFrame, scan, scan_own_stack};

/// How often a goroutine that keeps running is requested to yield.
const REQUEST_AGAIN: Duration = Duration::from_millis(1);

/// How many checks are made in a loop before the thread sleeps between them.
const EAGER_CHECKS: u32 = 200;

/// How long the thread sleeps between two checks.
const NAP: Duration = Duration::from_micros(50);

/// A goroutine, to be inspected. It is a number and an address, `Copy`, `Send` and `Sync`, and
/// keeps nothing alive: after the goroutine has ended every question about it has the answer that
/// it has ended.
///
/// [`goroutines`] lists them, [`this_goroutine`] is the calling one.
#[derive(Clone, Copy)]
pub struct Goroutine {
    g: &'static G,
    id: u64,
}

impl PartialEq for Goroutine {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Goroutine {}

// A panic in a visit leaves nothing half-done: the goroutine is resumed.
impl UnwindSafe for Goroutine {}

impl RefUnwindSafe for Goroutine {}

impl Hash for Goroutine {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.id.hash(state);
    }
}

impl fmt::Debug for Goroutine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Goroutine({})", self.id)
    }
}

/// Why a goroutine could not be suspended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ScanError {
    /// It has ended, or its run has.
    Ended,
    /// It did not yield in time; or other threads, of which one at a time can suspend a goroutine,
    /// inspected theirs all the time.
    Running {
        /// How long it was waited for.
        waited: Duration,
    },
}

impl fmt::Display for ScanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended => f.write_str("the goroutine has ended, or its run has"),
            Self::Running { waited } => write!(
                f,
                "the goroutine ran on for {waited:?}: it did not park, and came to no poll, or other \
                 threads inspected theirs; Rust code yields in runtime::checkpoint(), JIT code where \
                 it polls or is preemptible"
            ),
        }
    }
}

impl std::error::Error for ScanError {}

/// The goroutines that have not ended, by number: of this run on a thread of a run, and else of all
/// runs that have not ended. Others start and end meanwhile.
///
/// ```
/// use footbridge::runtime::{self, Builder, Chan, goroutines};
///
/// runtime::run(|| {
///     let done = Chan::<()>::new(0);
///     let wait = done.clone();
///     let worker = Builder::new().name("worker").go(move || wait.recv()).expect("memory");
///     let names: Vec<_> = goroutines().into_iter().map(|goroutine| goroutine.name()).collect();
///     assert_eq!(names, [None, Some("worker".into())]);
///     done.close();
///     assert!(worker.join().expect("no panic").is_err());
///     assert_eq!(goroutines().len(), 1);
/// });
/// ```
pub fn goroutines() -> Vec<Goroutine> {
    let run_id = this_sched().map(|sched| sched.run_id());
    let mut all: Vec<Goroutine> = g::all()
        .into_iter()
        .filter(|g| {
            // The status first: it is stored last when a structure is used again. (The waiters of
            // threads are idle.)
            let lives = !matches!(g.status(), Status::Idle | Status::Dead) && !is_abandoned(g);
            lives && run_id.is_none_or(|id| g.run_id.load(Ordering::Relaxed) == id)
        })
        .map(|g| Goroutine { g, id: g.id.load(Ordering::Relaxed) })
        .collect();
    all.sort_by_key(|goroutine| goroutine.id);
    all
}

/// Whether its run has ended before it did.
fn is_abandoned(g: &G) -> bool {
    g.join.load(Ordering::Relaxed) == join_state::ABANDONED
}

/// The calling goroutine; `None` on a thread that runs none.
///
/// ```
/// use footbridge::runtime::{self, go, this_goroutine};
///
/// assert_eq!(this_goroutine(), None);
/// runtime::run(|| {
///     let main = this_goroutine().expect("on a goroutine");
///     let other = go(this_goroutine).join().expect("no panic").expect("on a goroutine");
///     assert!(main.id() < other.id());
/// });
/// ```
pub fn this_goroutine() -> Option<Goroutine> {
    // SAFETY: null, or a G, which is never freed.
    let g: &'static G = unsafe { getg().as_ref()? };
    Some(Goroutine { g, id: g.id.load(Ordering::Relaxed) })
}

impl Goroutine {
    /// The goroutine that is in `g` now.
    pub(crate) fn of(g: &'static G) -> Self {
        Self { g, id: g.id.load(Ordering::Relaxed) }
    }

    /// Its structure, in which another goroutine may be by now.
    pub(crate) fn g(self) -> &'static G {
        self.g
    }

    /// Whether the M that it ran on last runs it now.
    pub(crate) fn is_current(self) -> bool {
        // SAFETY: null, or an M, which is never freed.
        let m = unsafe { self.g.m.load(Ordering::Relaxed).as_ref() };
        let current = m.and_then(|m| m.current());
        current.is_some_and(|g| ptr::eq(g, self.g) && g.id.load(Ordering::Relaxed) == self.id)
    }

    /// Its number, as in tracebacks. No other goroutine of the process ever has it.
    ///
    /// ```
    /// use footbridge::runtime::{self, go, this_goroutine};
    ///
    /// runtime::run(|| {
    ///     let id = || this_goroutine().expect("on a goroutine").id();
    ///     let other = go(id);
    ///     let expected = other.id();
    ///     assert_eq!(other.join().expect("no panic"), expected);
    ///     assert_ne!(id(), expected);
    /// });
    /// ```
    pub fn id(self) -> u64 {
        self.id
    }

    /// Its name, if [`Builder::name`](crate::runtime::Builder::name) gave it one, until it has
    /// ended and its handle is gone; a name may be returned for some time after that.
    ///
    /// ```
    /// use footbridge::runtime::{self, Builder, this_goroutine};
    ///
    /// runtime::run(|| {
    ///     let name = || this_goroutine().expect("on a goroutine").name();
    ///     let named = Builder::new().name("pump").go(name).expect("memory");
    ///     assert_eq!(named.join().expect("no panic").as_deref(), Some("pump"));
    ///     assert_eq!(name(), None);
    /// });
    /// ```
    pub fn name(self) -> Option<String> {
        let Self { g, id } = self;
        g.name.copy(|| g.id.load(Ordering::Relaxed) == id)
    }

    /// Suspends the goroutine and visits its JIT frames, innermost first, until `visit` breaks,
    /// with the live pointers that their stack maps list. For the calling goroutine this is
    /// [`scan_own_stack`].
    ///
    /// ```
    /// use std::ops::ControlFlow;
    /// use std::time::Duration;
    ///
    /// use footbridge::runtime::{self, Chan, ScanError, WalkEnd, go, goroutines, gosched};
    ///
    /// runtime::run(|| {
    ///     let done = Chan::<()>::new(0);
    ///     let wait = done.clone();
    ///     let worker = go(move || wait.recv());
    ///     gosched();
    ///     let parked = goroutines()[1];
    ///     let mut frames = 0;
    ///     let end = parked.scan_stack(Duration::from_secs(1), |_frame| {
    ///         frames += 1;
    ///         ControlFlow::Continue(())
    ///     });
    ///     // It parked in Rust code that no JIT code has called.
    ///     assert_eq!((end, frames), (Ok(WalkEnd::Complete), 0));
    ///     done.close();
    ///     assert!(worker.join().expect("no panic").is_err());
    ///     let end = parked.scan_stack(Duration::ZERO, |_frame| ControlFlow::Continue(()));
    ///     assert_eq!(end, Err(ScanError::Ended));
    /// });
    /// ```
    ///
    /// A goroutine that runs is requested to yield; after `wait` this call fails. The goroutine is
    /// resumed after the visit: a thread that would run it sleeps meanwhile. One goroutine at a
    /// time is suspended in the process. Other callers wait, within their `wait`, and those that
    /// are not migratable yield meanwhile as in [`checkpoint`](crate::runtime::checkpoint). The
    /// reports of the crate are such callers: the watchdog suspends a goroutine for up to 50 ms. So
    /// with a shorter `wait` this call may fail for a goroutine that is parked.
    ///
    /// On a thread of a run the visit runs on the system stack, and can neither park nor be
    /// preempted. On any thread it must not wait for another goroutine: neither for a lock that one
    /// may hold over a park, nor for one that inspects a goroutine.
    ///
    /// # Errors
    /// The goroutine has ended, or did not yield in time. Nothing was visited.
    ///
    /// # Panics
    /// With the panic of `visit`; if `visit` itself inspects another goroutine, or parks on a
    /// thread of a run.
    pub fn scan_stack(
        self,
        wait: Duration,
        mut visit: impl FnMut(&ScanFrame) -> ControlFlow<()>,
    ) -> Result<WalkEnd, ScanError> {
        let Self { g, .. } = self;
        if ptr::eq(getg(), g) {
            return Ok(scan_own_stack(visit));
        }
        let suspended = self.suspend(wait)?;
        systemstack(|| {
            let Some(at) = suspended.registers() else {
                return Ok(WalkEnd::Complete);
            };
            let start = Start::Registers { at, anchor: suspended.anchor() };
            Ok(scan(start, &suspended.bounds(), &mut visit))
        })
    }

    /// What it does, and why it waits if it does; at the time of the call, and perhaps no longer.
    /// `None` if it has ended, or its run has.
    ///
    /// ```
    /// use footbridge::runtime::{self, Status, WaitReason, this_goroutine};
    ///
    /// runtime::run(|| {
    ///     let status = this_goroutine().expect("on a goroutine").status();
    ///     assert_eq!(status, Some((Status::Running, WaitReason::None)));
    /// });
    /// ```
    pub fn status(self) -> Option<(Status, WaitReason)> {
        let Self { g, id } = self;
        let (status, reason) = (g.status(), g.wait_reason());
        let lives = !matches!(status, Status::Idle | Status::Dead) && !is_abandoned(g);
        (lives && g.id.load(Ordering::Relaxed) == id).then_some((status, reason))
    }

    /// Where it resumes, its anchor and its stack, if it is parked; without suspending it. The
    /// caller knows that no thread can run it meanwhile. Takes no lock.
    pub(crate) fn parked_at(self) -> Option<(Registers, (usize, usize), Bounds)> {
        let Self { g, id } = self;
        let is_parked = suspend::found(g) == Found::Suspended && g.id.load(Ordering::Relaxed) == id;
        let stack = g.stack.get();
        let has_started = !g.m.load(Ordering::Relaxed).is_null();
        (is_parked && has_started).then(|| {
            (g.sched.registers(), g.anchor.get(), Bounds::new((stack.lo, stack.hi), (0, 0)))
        })
    }

    /// Suspends the goroutine, which is not the calling one, as long as the value lives. Until the
    /// value is dropped the caller does not yield.
    #[inline(never)]
    pub(crate) fn suspend(self, wait: Duration) -> Result<Suspended, ScanError> {
        let Self { g, id } = self;
        debug_assert!(!ptr::eq(getg(), g));
        let start = Instant::now();
        let Some(right) = SuspendRight::acquire(start, wait) else {
            return Err(ScanError::Running { waited: start.elapsed() });
        };
        g.suspend.request();
        let suspended = Suspended { g, _right: right };
        let (mut requested_at, mut checks) = (None, 0);
        loop {
            let found = suspend::found(g);
            // Another goroutine may have the structure by now.
            let is_other = g.id.load(Ordering::Relaxed) != id;
            if found == Found::Dead || is_other || is_abandoned(g) {
                return Err(ScanError::Ended);
            }
            if found == Found::Suspended {
                return Ok(suspended);
            }
            let waited = start.elapsed();
            if waited >= wait && checks > 0 {
                return Err(ScanError::Running { waited });
            }
            if requested_at.is_none_or(|at| waited.saturating_sub(at) >= REQUEST_AGAIN) {
                requested_at = Some(waited);
                // SAFETY: null, or an M, which is never freed.
                if let Some(m) = unsafe { g.m.load(Ordering::Relaxed).as_ref() } {
                    preempt::request_of(m, g);
                }
            }
            checks += 1;
            if checks > EAGER_CHECKS {
                std::thread::sleep(NAP.min(wait));
            } else {
                std::hint::spin_loop();
            }
        }
    }
}

/// The right to suspend a goroutine. One thread of the process has it at a time.
struct SuspendRight;

/// The thread that has the [`SuspendRight`], by the address of its stack limit word; 0 if none has.
///
/// Invariant: the word of a thread is stored by that thread, in `acquire`, and zeroed by it when
/// its `SuspendRight` is dropped. A thread that finds its own word holds the right already.
static SUSPENDER: AtomicUsize = AtomicUsize::new(0);

impl SuspendRight {
    /// Waits for the right until `wait` after `start`.
    ///
    /// The thread that has it may be suspending the caller, so the caller yields meanwhile. A
    /// migratable goroutine does not: it would resume on another thread, which callers of this
    /// function do not expect.
    fn acquire(start: Instant, wait: Duration) -> Option<Self> {
        // SAFETY: null, or a G, which is never freed.
        let stays = unsafe { getg().as_ref() }.is_none_or(|g| !g.migratable.get());
        let this_thread = tls::stack_limit_word() as usize;
        loop {
            let taken =
                SUSPENDER.compare_exchange(0, this_thread, Ordering::Acquire, Ordering::Relaxed);
            if taken.is_ok() {
                return Some(Self);
            }
            assert!(
                taken != Err(this_thread),
                "a goroutine is suspended by this thread: a visit of its stack cannot inspect others"
            );
            if start.elapsed() >= wait {
                return None;
            }
            if stays {
                checkpoint();
            }
            // The thread that has it may need this processor.
            std::thread::sleep(NAP);
        }
    }
}

impl Drop for SuspendRight {
    fn drop(&mut self) {
        SUSPENDER.store(0, Ordering::Release);
    }
}

/// A goroutine whose suspension was requested. [`Goroutine::suspend`] returns one that is
/// suspended.
pub(crate) struct Suspended {
    g: &'static G,
    _right: SuspendRight,
}

impl Suspended {
    /// Where it will resume; `None` if it has not started, and nothing is on its stack.
    pub(crate) fn registers(&self) -> Option<Registers> {
        let has_started = !self.g.m.load(Ordering::Relaxed).is_null();
        has_started.then(|| self.g.sched.registers())
    }

    /// Where it left JIT code.
    pub(crate) fn anchor(&self) -> (usize, usize) {
        self.g.anchor.get()
    }

    /// Where its frames are: no goroutine parks, or is preempted, on a system stack.
    pub(crate) fn bounds(&self) -> Bounds {
        let stack = self.g.stack.get();
        Bounds::new((stack.lo, stack.hi), (0, 0))
    }
}

impl Drop for Suspended {
    fn drop(&mut self) {
        self.g.suspend.resume(futex::wake);
    }
}
