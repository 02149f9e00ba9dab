#![allow(unsafe_code, reason = "threads share raw structures")]
//! An M: a thread that runs goroutines, with the queues of those that belong to it.
//!
//! This file is data. It must not choose a goroutine: that is `sched/find.rs`.
//!
//! **Invariants.** An M is never freed. It serves one run at a time, on one thread at a time, and
//! is used again by later runs; `run_id` tells their goroutines apart. Each M owns one P for good:
//! nothing blocks a thread under a goroutine yet, so that there is no reason to pass a P on.
//!
//! Where a runnable goroutine waits:
//!
//! * `local`: goroutines that belong to this thread. Only this thread touches it.
//! * `yielded`: goroutines of this thread that yielded, or whose time slice ended, while the run
//!   queue or the global queue had a backlog. Each joins `local` when its backlog has left those
//!   queues.
//! * `remote.inbox`: goroutines of this thread that other threads have readied, and goroutines that
//!   another M has sent here before they started. Many push, and this thread drains all at once.
//! * `P::run_next`: one goroutine that the running one has readied.
//! * `P::runq`: goroutines that any thread may run: not started yet, or migratable. Other Ms steal.
//! * `Sched::global`: the overflow of the run queues.

use std::cell::Cell;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::runtime::arch::Gobuf;
use crate::runtime::gmp::g::G;
use crate::runtime::gmp::p::{Burst, Counts, P, Round, Ticks};
use crate::runtime::gmp::panic_words::{NO_WORDS, PanicState, PanicWords};
use crate::runtime::gmp::pools::Pools;
use crate::runtime::gmp::preempt_state::PreemptState;
use crate::runtime::gmp::queues::{GQueue, OwnedPtr};
use crate::runtime::gmp::sched::Sched;
use crate::runtime::gmp::slab_set::SlabSet;
use crate::runtime::gmp::timers::{self, Timers};
use crate::runtime::os::futex;
use crate::runtime::stack::AtomicStack;
use crate::runtime::sync::idle::Parking;
use crate::runtime::sync::inbox::Inbox;
use crate::runtime::sync::park;
use crate::runtime::sync::runq::RunQueue;

/// A thread that runs goroutines.
#[repr(C, align(128))]
pub(crate) struct M {
    /// The M's place in its run.
    pub(crate) id: Cell<usize>,
    /// The number of the M's thread.
    pub(crate) tid: AtomicI32,
    /// The runtime instance that the M serves. Null: none.
    pub(crate) sched: AtomicPtr<Sched>,
    /// The run that the M serves. It must not run a goroutine of another run, which may still be in
    /// its inbox or be readied on its thread. 0: none.
    pub(crate) run_id: AtomicU64,
    /// The goroutine that the M runs, for preempters and tracebacks. Stored last when a goroutine
    /// becomes current: `sync/preempt_request.rs` says why.
    pub(crate) curg: AtomicPtr<G>,
    /// The context of the caller of `mstart`.
    pub(crate) g0: Gobuf,
    /// Where calls to the system stack begin.
    pub(crate) system_sp: Cell<usize>,
    /// Bounds of the system stack, for walks.
    pub(crate) system_stack: AtomicStack,
    /// The running goroutine has called to the system stack, where it must neither park nor be
    /// preempted: the next goroutine would overwrite its frames there.
    pub(crate) on_system_stack: Cell<bool>,
    /// std's panic state of the thread, or [`NO_WORDS`].
    pub(crate) panic_words: Cell<*const PanicWords>,
    /// The panic state that the thread came with.
    pub(crate) thread_panic_state: Cell<PanicState>,
    pub(crate) p: P,
    pub(crate) local: GQueue,
    pub(crate) yielded: GQueue,
    /// How often half of the run queue was spilled to the global queue, and how many goroutines had
    /// entered that one after the last spill.
    pub(crate) spills: Cell<(u16, u32)>,

    pub(crate) preempt: PreemptState,

    pub(crate) remote: Remote,
}

/// What other threads write to, on cache lines of its own. Two lines: processors prefetch in pairs.
#[repr(C, align(128))]
pub(crate) struct Remote {
    pub(crate) inbox: Inbox<G>,
    pub(crate) parking: Parking,
}

// SAFETY: the thread that is this M alone touches the cells; the rest is atomic or locked.
unsafe impl Sync for M {}

// SAFETY: nothing in an M belongs to the thread that made it.
unsafe impl Send for M {}

/// Ms that serve no run. An M in this list has empty queues and no thread. It is in here at most
/// once: [`M::release`] pushes it, and [`M::allocate`] takes it out.
static FREE_MS: Mutex<Vec<&'static M>> = Mutex::new(Vec::new());

/// Every M of the process, free or not. The list only grows.
static ALL_MS: Mutex<Vec<&'static M>> = Mutex::new(Vec::new());

impl M {
    /// An M without a thread.
    pub(crate) fn allocate() -> &'static Self {
        let free = FREE_MS.lock().unwrap_or_else(PoisonError::into_inner).pop();
        free.unwrap_or_else(|| {
            let m: &'static Self = Box::leak(Box::new(Self {
                id: Cell::new(0),
                tid: AtomicI32::new(0),
                sched: AtomicPtr::new(ptr::null_mut()),
                run_id: AtomicU64::new(0),
                curg: AtomicPtr::new(ptr::null_mut()),
                g0: Gobuf::new(),
                system_sp: Cell::new(0),
                system_stack: AtomicStack::new(),
                on_system_stack: Cell::new(false),
                panic_words: Cell::new(&raw const NO_WORDS),
                thread_panic_state: Cell::new(PanicState::CALM),
                p: P {
                    runq: RunQueue::new(),
                    run_next: OwnedPtr::null(),
                    ticks: Ticks::new(),
                    round: Round::new(),
                    burst: Burst::new(),
                    timers: Timers::new(),
                    pools: Pools::new(),
                    slabs: SlabSet::new(),
                    ids: Cell::new((0, 0)),
                    counts: Counts::default(),
                },
                local: GQueue::new(),
                yielded: GQueue::new(),
                spills: Cell::new((0, 0)),
                preempt: PreemptState::new(),
                remote: Remote { inbox: Inbox::new(), parking: Parking::new() },
            }));
            ALL_MS.lock().unwrap_or_else(PoisonError::into_inner).push(m);
            m
        })
    }

    /// Every M of this process, of any run or of none.
    pub(crate) fn all() -> Vec<&'static Self> {
        ALL_MS.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the M's service. Its thread has left the run; what is in its queues is abandoned.
    pub(crate) fn release(&'static self) {
        while !self.local.pop().is_null() {}
        while !self.yielded.pop().is_null() {}
        while !self.p.runq.pop().is_null() {}
        self.p.run_next.set(ptr::null_mut());
        // Ticks begin at zero, so that each run checks queues and timers at the same ticks.
        self.p.ticks.reset();
        self.p.round.reset();
        self.p.burst.reset();
        self.p.timers.clear();
        self.p.slabs.clear();
        self.p.counts.reset();
        self.remote.inbox.clear();
        self.remote.parking.end();
        self.preempt.reset();
        self.run_id.store(0, Ordering::Release);
        FREE_MS.lock().unwrap_or_else(PoisonError::into_inner).push(self);
    }

    /// The goroutine that the M runs, as another thread sees it.
    pub(crate) fn current(&self) -> Option<&'static G> {
        // SAFETY: null, or a G, which is never freed.
        unsafe { self.curg.load(Ordering::Acquire).as_ref() }
    }

    /// The number of the current time slice, as another thread sees it. `None` if the M sleeps.
    ///
    /// An M that is between two goroutines is in the time slice of the first one: goroutines that
    /// ready each other by way of the system stack share one, and most moments are between them.
    pub(crate) fn time_slice(&self) -> Option<u64> {
        (!self.is_parked()).then(|| self.p.ticks.time_slice())
    }

    /// Hands a runnable goroutine to the M that it belongs to. Called by other threads.
    /// Returns whether the M has yet to leave its sleep: then it drains its inbox before it runs
    /// anything.
    pub(crate) fn push_remote(&self, g: *mut G) -> bool {
        let Remote { inbox, parking } = &self.remote;
        // SAFETY: the caller has readied the goroutine, and owns it until it is queued; a G is
        // never freed. Goroutines leave an inbox by `drain` only.
        unsafe { park::push_remote(inbox, parking, g, futex::wake) }
    }

    /// Whether the M runs no goroutine and has none that could start, as another thread sees it.
    pub(crate) fn is_without_work(&self) -> bool {
        self.curg.load(Ordering::Relaxed).is_null() && !self.has_remote() && self.p.runq.is_empty()
    }

    /// Whether other threads have pushed goroutines.
    #[inline(always)]
    pub(crate) fn has_remote(&self) -> bool {
        !self.remote.inbox.is_empty()
    }

    /// Sleeps until another thread unparks this M or its next timer is due. Returns whether the
    /// waker has counted the M as spinning. `None`: `limit` was reached first, and the M is still
    /// announced as a sleeper.
    pub(crate) fn park(&self, limit: Option<Duration>) -> Option<bool> {
        let parking = &self.remote.parking;
        let timer = self.p.timers.next().map(|at| at.saturating_sub(timers::now()));
        let timer = timer.map(Duration::from_nanos);
        let timeout = match (timer, limit) {
            (Some(timer), Some(limit)) => Some(timer.min(limit)),
            (timer, limit) => timer.or(limit),
        };
        let sleep = |word: &_, value| {
            if timeout != Some(Duration::ZERO) {
                futex::wait(word, value, timeout);
            }
        };
        let limit_is_first = limit.is_some_and(|limit| timer.is_none_or(|timer| limit < timer));
        parking.park(sleep, limit_is_first)
    }

    /// Whether the thread sleeps or has announced that it will, and no other thread has woken it.
    pub(crate) fn is_parked(&self) -> bool {
        self.remote.parking.is_parked()
    }
}
