//! The runtime instance: the Ms of one run, and what they share.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use crate::runtime::gmp::m::M;
use crate::runtime::gmp::queues::GlobalQueue;
use crate::runtime::os::futex;
use crate::runtime::stack::SizeClass;
use crate::runtime::sync::idle::{AWAKE, Idle};
use crate::runtime::sync::latch::CountLatch;
use crate::runtime::sync::sysmon_sleep;

/// One run of the runtime: its Ms and what they share.
pub(crate) struct Sched {
    pub(crate) run_id: u64,
    pub(crate) ms: Vec<&'static M>,
    pub(crate) class: SizeClass,
    pub(crate) global: Mutex<GlobalQueue>,
    pub(crate) global_len: AtomicUsize,
    /// How many goroutines went through the global queue, in and out. They wrap around.
    pub(crate) global_pushed: AtomicU32,
    pub(crate) global_popped: AtomicU32,
    pub(crate) idle: Idle,
    pub(crate) stopping: AtomicBool,
    /// Ms that may still run goroutines: no thread of the run ends before all have left.
    pub(crate) ms_running: CountLatch,
    /// Whether a sysmon watches, and how it is woken.
    pub(crate) has_sysmon: AtomicBool,
    pub(crate) sysmon: Sysmon,
    /// Called where every goroutine is parked and nothing can ready one.
    pub(crate) on_deadlock: fn() -> !,
}

impl Sched {
    pub(crate) fn run_id(&self) -> u64 {
        self.run_id
    }

    pub(crate) fn ms(&self) -> impl Iterator<Item = &'static M> {
        self.ms.iter().copied()
    }

    pub(crate) fn sysmon(&self) -> &Sysmon {
        &self.sysmon
    }

    /// Whether every M sleeps or is about to.
    pub(crate) fn all_idle(&self) -> bool {
        self.idle.sleeping() == self.ms.len()
    }
}

/// What sysmon shares with the Ms: whether it sleeps, and whether it is to end.
pub(crate) struct Sysmon(pub(crate) AtomicU32);

impl Sysmon {
    pub(crate) const fn new() -> Self {
        Self(AtomicU32::new(AWAKE))
    }

    /// Called by an M that was idle, after it is counted as idle no more.
    #[inline]
    pub(crate) fn wake(&self) {
        if sysmon_sleep::must_wake(&self.0) {
            futex::wake(&self.0);
        }
    }

    /// Lets the thread end.
    pub(crate) fn end(&self) {
        self.0.store(sysmon_sleep::ENDED, Ordering::SeqCst);
        futex::wake(&self.0);
    }
}
