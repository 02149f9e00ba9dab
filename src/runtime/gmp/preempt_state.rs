#![allow(unsafe_code, reason = "an address of another thread")]
//! What an M and its preempters share: the thread, the request that is on its way, the stubs, the
//! counters. The protocol is in `sync/preempt_request.rs`, the story in `sched/preempt.rs`.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering};

use crate::runtime::gmp::g::G;
use crate::runtime::os::threads::Tid;

/// The process that sends the preemption signals of this crate. A forked child that starts a run sets
/// it anew.
pub(crate) static PID: AtomicI32 = AtomicI32::new(0);

/// The thread of an M, for those who request.
pub(crate) struct Thread {
    /// 0 where it takes no signals.
    pub(crate) tid: Tid,
    /// Its stack limit word: valid until the thread takes this back.
    pub(crate) stack_limit: *const AtomicUsize,
}

// SAFETY: the address of an atomic.
unsafe impl Send for Thread {}

/// The part of an M that preemption is about.
pub(crate) struct PreemptState {
    pub(crate) thread: Mutex<Option<Thread>>,
    /// A signal is on its way.
    pub(crate) pending: AtomicBool,
    /// Where the handler leads to.
    pub(crate) async_stub: AtomicUsize,
    pub(crate) headroom_bytes: AtomicUsize,
    pub(crate) counters: Counters,
}

/// What happened on one M. Written by its thread and its handler, but for `requested`.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) requested: AtomicU64,
    pub(crate) signals: AtomicU64,
    pub(crate) cooperative: AtomicU64,
    pub(crate) asynchronous: AtomicU64,
    pub(crate) refused: [AtomicU64; Refusal::COUNT],
}

/// Why a request did not stop a goroutine where it was.
#[derive(Clone, Copy)]
pub(crate) enum Refusal {
    Stale,
    Disabled,
    Stack,
    NativeCode,
    NotPreemptible,
    UnsafeRange,
}

impl Refusal {
    pub(crate) const COUNT: usize = 6;
}

/// Counts one up. In a handler, too: a single instruction on this thread's counter.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl PreemptState {
    pub(crate) const fn new() -> Self {
        Self {
            thread: Mutex::new(None),
            pending: AtomicBool::new(false),
            async_stub: AtomicUsize::new(0),
            headroom_bytes: AtomicUsize::new(0),
            counters: Counters {
                requested: AtomicU64::new(0),
                signals: AtomicU64::new(0),
                cooperative: AtomicU64::new(0),
                asynchronous: AtomicU64::new(0),
                refused: [const { AtomicU64::new(0) }; Refusal::COUNT],
            },
        }
    }

    /// Forgets what an earlier run counted.
    pub(crate) fn reset(&self) {
        let Counters { requested, signals, cooperative, asynchronous, refused } = &self.counters;
        let single = [requested, signals, cooperative, asynchronous];
        single.into_iter().chain(refused).for_each(|counter| counter.store(0, Ordering::Relaxed));
        self.pending.store(false, Ordering::Relaxed);
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
