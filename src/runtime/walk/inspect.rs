#![allow(unsafe_code, reason = "checks at goroutines that other threads run")]
//! Goroutines as others see them: which there are, and what is on their stacks while they are held
//! suspended (`freeze.rs`).
//!
//! Who wants a goroutine suspended that runs asks it to give way, as sysmon does, and waits until it
//! has: at a poll, or where it parks, or where it may be interrupted. That may never be, so that
//! every wait has an end.
//!
//! One at a time holds a goroutine suspended, in the whole process. Otherwise two that look at each other
//! would wait for each other.

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

/// How often a goroutine that runs on is asked again to give way.
const REQUEST_AGAIN: Duration = Duration::from_millis(1);

/// How often it is looked at, in vain, before the thread sleeps in between.
const EAGER_CHECKS: u32 = 200;

/// How long it sleeps.
const NAP: Duration = Duration::from_micros(50);

/// A goroutine, for those who want to look at it. Holding one keeps nothing alive.
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

// A panic in the midst of a look leaves nothing half-done: the goroutine is let go.
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

/// Why a goroutine could not be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ScanError {
    /// It has ended, or its run has.
    Ended,
    /// It did not come to a place where it gives way within the time; or others looked at theirs all
    /// the time, which one at a time can do.
    Running {
        /// How long was waited for it.
        waited: Duration,
    },
}

impl fmt::Display for ScanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended => f.write_str("the goroutine has ended, or its run has"),
            Self::Running { waited } => write!(
                f,
                "the goroutine ran on for {waited:?}: it did not park, and came to no poll, or others \
                 looked at theirs; Rust code gives way in runtime::checkpoint(), JIT code where it \
                 polls or is preemptible"
            ),
        }
    }
}

impl std::error::Error for ScanError {}

/// The goroutines that have not ended, by number: of this run on a thread of a run, and else of all
/// runs that have not ended. Others start and end meanwhile.
pub fn goroutines() -> Vec<Goroutine> {
    let run_id = this_sched().map(|sched| sched.run_id());
    let mut all: Vec<Goroutine> = g::all()
        .into_iter()
        .filter(|g| {
            // The status first: it is stored last when a structure is used again. (Stand-ins of
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
pub(crate) fn is_abandoned(g: &G) -> bool {
    g.join.load(Ordering::Relaxed) == join_state::ABANDONED
}

/// The calling goroutine; `None` on a thread that runs none.
pub fn this_goroutine() -> Option<Goroutine> {
    // SAFETY: immortal.
    let g: &'static G = unsafe { getg().as_ref()? };
    Some(Goroutine { g, id: g.id.load(Ordering::Relaxed) })
}

impl Goroutine {
    /// Its number, as in tracebacks. No other goroutine of the process ever has it.
    pub fn id(self) -> u64 {
        self.id
    }

    /// Its name, if [`Builder::name`](super::Builder::name) gave it one, until it has ended and its
    /// handle is gone; a name may be returned for some time after that.
    ///
    /// ```
    /// use footbridge::runtime::{self, Builder, this_goroutine};
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

    /// Suspends the goroutine and visits its JIT frames, innermost first, until `visit` breaks, with
    /// the live pointers that their stack maps list. For the calling goroutine that is
    /// [`scan_own_stack`].
    ///
    /// A goroutine that runs is asked to give way; after `wait` it is given up. It goes on when the
    /// visit is over: its thread waits meanwhile if it comes to it. One goroutine at a time is held
    /// suspended in the process; others who look wait, within their `wait`, and give way themselves as in
    /// [`checkpoint`](super::checkpoint) if they are not migratable.
    ///
    /// On a thread of a run the visit has the system stack, and can neither park nor be preempted.
    /// Whatever thread it is on, it must not wait for another goroutine: neither for a lock that one
    /// may hold over a park, nor for somebody who checks at goroutines.
    ///
    /// # Errors
    /// The goroutine has ended, or did not give way in time. Nothing was visited.
    ///
    /// # Panics
    /// With the panic of `visit`; if `visit` checks at another goroutine itself, or parks on a thread of a
    /// run.
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
            let start = Start::Registers { at, anchor: g.anchor.get() };
            Ok(scan(start, &suspended.bounds(), &mut visit))
        })
    }

    /// What it does, and why it waits if it does; at the time of the call, and perhaps not any more.
    /// `None` if it has ended, or its run has.
    pub fn status(self) -> Option<(Status, WaitReason)> {
        let Self { g, id } = self;
        let (status, reason) = (g.status(), g.wait_reason());
        let lives = !matches!(status, Status::Idle | Status::Dead) && !is_abandoned(g);
        (lives && g.id.load(Ordering::Relaxed) == id).then_some((status, reason))
    }

    /// Holds the goroutine, which is not the calling one, suspended as long as the value lives. Until then
    /// the caller does not give way.
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
        let (mut asked, mut checks) = (None, 0);
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
            if asked.is_none_or(|at| waited.saturating_sub(at) >= REQUEST_AGAIN) {
                asked = Some(waited);
                // SAFETY: null, or an M, which is immortal.
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

/// The right to hold a goroutine suspended.
struct SuspendRight;

/// Whose it is: the address of a word of that thread. 0: nobody's.
static SUSPENDER: AtomicUsize = AtomicUsize::new(0);

impl SuspendRight {
    /// Waits for it, until so long after `start`. Whoever has it may want the caller suspended, and gets it
    /// so: the caller gives way meanwhile. (One that is migratable does not: who calls this does not
    /// expect to go on on another thread.)
    fn acquire(start: Instant, wait: Duration) -> Option<Self> {
        // SAFETY: immortal.
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
                "a goroutine is held suspended by this thread: a visit of its stack cannot look at others"
            );
            if start.elapsed() >= wait {
                return None;
            }
            if stays {
                checkpoint();
            }
            // Another thread has it, and may want this processor.
            std::thread::sleep(NAP);
        }
    }
}

impl Drop for SuspendRight {
    fn drop(&mut self) {
        SUSPENDER.store(0, Ordering::Release);
    }
}

/// A goroutine that is held suspended, or was to be.
pub(crate) struct Suspended {
    g: &'static G,
    _right: SuspendRight,
}

impl Suspended {
    /// Where it will go on; `None` if it has not begun, and nothing is on its stack.
    pub(crate) fn registers(&self) -> Option<Registers> {
        let has_begun = !self.g.m.load(Ordering::Relaxed).is_null();
        has_begun.then(|| self.g.sched.registers())
    }

    /// Where its frames are: nobody parks, or is put aside, on a system stack.
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
