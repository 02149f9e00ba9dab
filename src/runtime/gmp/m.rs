#![allow(unsafe_code, reason = "threads share raw structures")]
//! An M (a thread that runs goroutines) and its P (the right to run, with a queue of work).
//!
//! Each M owns one P for its life: nothing here blocks a thread under a goroutine yet, so that
//! there is no reason to pass a P on. M structures are immortal and used again.
//!
//! Where a runnable goroutine waits:
//!
//! * `local`: goroutines that belong to this thread. Only this thread touches it.
//! * `yielded`: goroutines of this thread that called `gosched` while there was a backlog in the last
//!   two. Each joins `local` when that has had its turn.
//! * `inbox`: the same, readied by other threads. Many push, this thread takes all.
//! * `P::runq`: goroutines that any thread may run: not started yet, or migratable. Others steal.
//! * `Sched::global`: the overflow of those, and what foreign threads make.

use std::cell::Cell;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::runtime::arch::Gobuf;
use crate::runtime::gmp::g::G;
use crate::runtime::gmp::p::{Counts, P, Ticks};
use crate::runtime::gmp::pools::Pools;
use crate::runtime::gmp::preempt_state::PreemptState;
use crate::runtime::gmp::queues::GQueue;
use crate::runtime::gmp::sched::Sched;
use crate::runtime::gmp::timers;
use crate::runtime::gmp::timers::Timers;
use crate::runtime::os::futex;
use crate::runtime::sync::idle::{PARKED, Parking};
use crate::runtime::sync::inbox::Inbox;
use crate::runtime::sync::runq::RunQueue;

/// A thread that runs goroutines.
#[repr(C, align(128))]
pub(crate) struct M {
    pub(crate) id: Cell<usize>,
    pub(crate) sched: AtomicPtr<Sched>,
    /// The run it serves now; goroutines of another run are not its business.
    pub(crate) run_id: AtomicU64,
    /// The goroutine it runs, for tracebacks.
    pub(crate) curg: AtomicPtr<G>,
    /// The context of whoever called `mstart`.
    pub(crate) g0: Gobuf,
    /// Where calls to the system stack begin.
    pub(crate) system_sp: Cell<usize>,
    /// Bounds of the system stack, for walks.
    pub(crate) system_stack: Cell<(usize, usize)>,
    pub(crate) on_system_stack: Cell<bool>,
    pub(crate) p: P,
    pub(crate) local: GQueue,
    pub(crate) yielded: GQueue,
    /// How often half of the run queue went to the global queue, and what had gone through that one
    /// the last time.
    pub(crate) spills: Cell<(u16, u32)>,

    pub(crate) preempt: PreemptState,

    // What other threads write to, on a line of its own.
    pub(crate) remote: Remote,
}

/// What other threads write to.
#[repr(C, align(128))]
pub(crate) struct Remote {
    pub(crate) inbox: Inbox<G>,
    pub(crate) parking: Parking,
}

// SAFETY: cells are touched by the thread that is this M only; the rest is atomic.
unsafe impl Sync for M {}

// SAFETY: as above.
unsafe impl Send for M {}

static FREE_MS: Mutex<Vec<&'static M>> = Mutex::new(Vec::new());

/// Every structure there is, free or not.
static ALL_MS: Mutex<Vec<&'static M>> = Mutex::new(Vec::new());

impl M {
    /// An M that no thread is yet.
    pub(crate) fn allocate() -> &'static Self {
        let free = FREE_MS.lock().unwrap_or_else(PoisonError::into_inner).pop();
        free.unwrap_or_else(|| {
            let m: &'static Self = Box::leak(Box::new(Self {
                id: Cell::new(0),
                sched: AtomicPtr::new(ptr::null_mut()),
                run_id: AtomicU64::new(0),
                curg: AtomicPtr::new(ptr::null_mut()),
                g0: Gobuf::new(),
                system_sp: Cell::new(0),
                system_stack: Cell::new((0, 0)),
                on_system_stack: Cell::new(false),
                p: P {
                    runq: RunQueue::new(),
                    run_next: Cell::new(ptr::null_mut()),
                    ticks: Ticks::new(),
                    timers: Timers::new(),
                    pools: Pools::new(),
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

    /// Every M of this process, of whatever run or of none.
    pub(crate) fn all() -> Vec<&'static Self> {
        ALL_MS.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives the structure back. Its thread has ended and its queues are forgotten.
    pub(crate) fn release(&'static self) {
        while !self.local.pop().is_null() {}
        while !self.yielded.pop().is_null() {}
        while !self.p.runq.pop().is_null() {}
        self.p.run_next.set(ptr::null_mut());
        // What is looked at once in so many rounds is so in the next run as in a first one.
        self.p.ticks.reset();
        self.p.timers.clear();
        self.p.counts.reset();
        self.remote.inbox.clear();
        self.remote.parking.end();
        self.preempt.reset();
        self.run_id.store(0, Ordering::Release);
        FREE_MS.lock().unwrap_or_else(PoisonError::into_inner).push(self);
    }

    /// Which time slice it is in, as others see it. `None` if it runs no goroutine.
    pub(crate) fn time_slice(&self) -> Option<u64> {
        let runs_one = !self.curg.load(Ordering::Acquire).is_null();
        runs_one.then(|| self.p.ticks.time_slice())
    }

    /// Hands a goroutine of this M to it. Called by other threads; the goroutine is runnable.
    pub(crate) fn push_remote(&self, g: *mut G) {
        // SAFETY: whoever readied the goroutine has it.
        unsafe { self.remote.inbox.push(g) };
        futex::light_fence();
        self.unpark();
    }

    /// Whether something was delivered.
    #[inline(always)]
    pub(crate) fn has_remote(&self) -> bool {
        !self.remote.inbox.is_empty()
    }

    /// Sleeps until somebody unparks this M or its next timer is due; returns whether the waker
    /// counted it as spinning. `None`: the limit was reached first, and the M is still announced.
    pub(crate) fn park(&self, limit: Option<Duration>) -> Option<bool> {
        let parking = &self.remote.parking;
        let timer = self.p.timers.next().map(|at| at.saturating_sub(timers::now()));
        let timer = timer.map(Duration::from_nanos);
        let timeout = match (timer, limit) {
            (Some(timer), Some(limit)) => Some(timer.min(limit)),
            (timer, limit) => timer.or(limit),
        };
        if parking.is_parked() && timeout != Some(Duration::ZERO) {
            futex::wait(parking.word(), PARKED, timeout);
        }
        let limit_is_first = limit.is_some_and(|limit| timer.is_none_or(|timer| limit < timer));
        if limit_is_first && parking.is_parked() {
            return None;
        }
        Some(parking.end())
    }

    /// Wakes the thread if it sleeps or is about to.
    pub(crate) fn unpark(&self) {
        let parking = &self.remote.parking;
        if parking.notify() {
            futex::wake(parking.word());
        }
    }

    /// Whether the thread sleeps or is about to, and nobody has woken it.
    pub(crate) fn is_parked(&self) -> bool {
        self.remote.parking.is_parked()
    }
}
