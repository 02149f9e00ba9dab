#![allow(unsafe_code, reason = "an address of another thread")]
//! What an M and its preempters share: the thread, the signal that is on its way, the stub that the
//! handler resumes in, and the counters.
//!
//! This file is data. The protocol is in `sync/preempt_request.rs`, and the story in
//! `sched/preempt.rs`. A signal handler uses everything but `thread`, which it must not lock.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::runtime::gmp::g::G;
use crate::runtime::os::signals::Number;
use crate::runtime::os::threads::Tid;

/// The thread of an M, for its preempters.
pub(crate) struct Thread {
    pub(crate) tid: Tid,
    /// The signal that preempts. `None`: the thread takes no preemption signals.
    pub(crate) signal: Option<Number>,
    /// The thread's stack limit word. Valid while this value is in [`PreemptState::thread`].
    pub(crate) stack_limit: *const AtomicUsize,
}

// SAFETY: the address of an atomic, which is read under the lock of `PreemptState::thread` only.
unsafe impl Send for Thread {}

/// The part of an M that preemption is about.
pub(crate) struct PreemptState {
    /// `None`: the M has no thread. The thread removes itself under the lock before it ends, so
    /// that a preempter that holds the lock can use its address.
    pub(crate) thread: Mutex<Option<Thread>>,
    /// A signal is on its way to the thread.
    pub(crate) pending: AtomicBool,
    /// How many signals in a row have found the thread in code that is not preempted. Its handler
    /// counts, and sysmon resets it.
    pub(crate) in_vain: AtomicU32,
    /// The address of the async-preempt stub, in which the handler resumes the thread.
    pub(crate) async_stub: AtomicUsize,
    /// How far above the end of a goroutine's stack its stack limit lies.
    pub(crate) headroom_bytes: AtomicUsize,
    pub(crate) counters: Counters,
}

/// What happened on one M. Its thread and the handler on it write `cooperative`, `asynchronous` and
/// `refused`, and preempters the rest.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) requested: AtomicU64,
    pub(crate) signals: AtomicU64,
    pub(crate) resent: AtomicU64,
    pub(crate) lost_handlers: AtomicU64,
    pub(crate) cooperative: AtomicU64,
    pub(crate) asynchronous: AtomicU64,
    pub(crate) refused: [AtomicU64; Refusal::COUNT],
}

/// Why a request did not preempt a goroutine where a poll or a signal found it. The public counters
/// (`sched/stats.rs`) say what each means.
#[derive(Clone, Copy)]
pub(crate) enum Refusal {
    Stale,
    Disabled,
    Stack,
    NativeCode,
    NotPreemptible,
    UnsafePoint,
}

impl Refusal {
    pub(crate) const COUNT: usize = 6;
}

/// Adds one to a counter. A single instruction, since a handler may interrupt the thread between a
/// load and a store.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl PreemptState {
    pub(crate) const fn new() -> Self {
        Self {
            thread: Mutex::new(None),
            pending: AtomicBool::new(false),
            in_vain: AtomicU32::new(0),
            async_stub: AtomicUsize::new(0),
            headroom_bytes: AtomicUsize::new(0),
            counters: Counters {
                requested: AtomicU64::new(0),
                signals: AtomicU64::new(0),
                resent: AtomicU64::new(0),
                lost_handlers: AtomicU64::new(0),
                cooperative: AtomicU64::new(0),
                asynchronous: AtomicU64::new(0),
                refused: [const { AtomicU64::new(0) }; Refusal::COUNT],
            },
        }
    }

    /// Resets what an earlier run has left.
    pub(crate) fn reset(&self) {
        let Counters {
            requested,
            signals,
            resent,
            lost_handlers,
            cooperative,
            asynchronous,
            refused,
        } = &self.counters;
        let single = [requested, signals, resent, lost_handlers, cooperative, asynchronous];
        single.into_iter().chain(refused).for_each(|counter| counter.store(0, Ordering::Relaxed));
        self.pending.store(false, Ordering::Relaxed);
        self.in_vain.store(0, Ordering::Relaxed);
    }

    /// A signal has found the thread in preemptible code, or in code that is not preempted.
    pub(crate) fn found_by_signal(&self, in_preemptible_code: bool) {
        let in_vain = self.in_vain.load(Ordering::Relaxed);
        let in_vain = if in_preemptible_code { 0 } else { in_vain.saturating_add(1) };
        self.in_vain.store(in_vain, Ordering::Relaxed);
    }

    pub(crate) fn refuse(&self, why: Refusal) {
        count(&self.counters.refused[why as usize]);
    }

    /// The stack limit of a goroutine on this M without a preemption request.
    #[inline(always)]
    pub(crate) fn limit_of(&self, g: &G) -> usize {
        g.stack.get().lo + self.headroom_bytes.load(Ordering::Relaxed)
    }
}
