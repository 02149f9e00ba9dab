//! The runtime instance: the Ms of one run, and what they share.
//!
//! This file is data. `start/run.rs` makes an instance and frees it when all Ms have left.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use crate::runtime::gmp::g::G;
use crate::runtime::gmp::m::M;
use crate::runtime::gmp::queues::GlobalQueue;
use crate::runtime::os::futex;
use crate::runtime::stack::SizeClass;
use crate::runtime::sync::idle::Idle;
use crate::runtime::sync::latch::CountLatch;
use crate::runtime::sync::sysmon_sleep::{self, AWAKE};

/// One runtime instance.
pub(crate) struct Sched {
    /// No two runs of a process have the same.
    pub(crate) run_id: u64,
    pub(crate) ms: Vec<&'static M>,
    /// The size class of stacks, where a builder names none.
    pub(crate) class: SizeClass,
    /// The overflow of the run queues.
    pub(crate) global: Mutex<GlobalQueue>,
    /// How many goroutines are in the global queue. Written under its lock, read without.
    pub(crate) global_len: AtomicUsize,
    /// How many goroutines have entered the global queue. Wraps around.
    pub(crate) global_pushed: AtomicU32,
    /// How many goroutines have left the global queue. Wraps around.
    pub(crate) global_popped: AtomicU32,
    pub(crate) idle: Idle,
    /// The run is over: an M that comes to the scheduler leaves. Once set, it stays.
    pub(crate) stopping: AtomicBool,
    /// Ms that may still run goroutines. No thread of the run ends before all have left.
    pub(crate) ms_running: CountLatch,
    /// Whether the run has time slices, so that goroutines are preempted.
    pub(crate) has_time_slices: bool,
    /// Whether the run has a sysmon, or a thread for the watchdog alone.
    pub(crate) has_sysmon: AtomicBool,
    pub(crate) sysmon: Sysmon,
    /// Whether faults on threads of the run are reported.
    pub(crate) fault_reports: bool,
    /// Called when every goroutine is parked and nothing can ready one. A function pointer: the
    /// report walks stacks, which the scheduler knows nothing of.
    pub(crate) on_deadlock: fn() -> !,
    /// How long a goroutine may keep its thread from others before that is reported. `None`: it is
    /// not.
    pub(crate) watchdog: Option<Duration>,
    /// Called by the watchdog for such goroutines. Returns whether a report is written; it does not
    /// wait for that.
    pub(crate) on_stall: fn(Vec<Stall>) -> bool,
}

/// A goroutine that keeps its thread.
pub(crate) struct Stall {
    /// Its structure, in which another goroutine may be by now.
    pub(crate) g: &'static G,
    pub(crate) id: u64,
    pub(crate) elapsed: Duration,
    pub(crate) kind: StallKind,
}

/// What a goroutine that keeps its thread keeps from happening.
pub(crate) enum StallKind {
    /// Goroutines wait to run on the thread.
    Waiting { goroutines: usize },
    /// The run ends.
    Ending,
}

impl Sched {
    pub(crate) fn run_id(&self) -> u64 {
        self.run_id
    }

    pub(crate) fn ms(&self) -> impl Iterator<Item = &'static M> {
        self.ms.iter().copied()
    }

    /// How many threads the run has: its Ms, and sysmon's.
    pub(crate) fn own_threads(&self) -> usize {
        self.ms.len() + usize::from(self.has_sysmon.load(Ordering::Relaxed))
    }

    pub(crate) fn sysmon(&self) -> &Sysmon {
        &self.sysmon
    }

    /// Whether every M sleeps or has announced that it will.
    pub(crate) fn all_idle(&self) -> bool {
        self.idle.sleeping() == self.ms.len()
    }
}

/// The word that sysmon sleeps on: `sync/sysmon_sleep.rs`.
pub(crate) struct Sysmon(pub(crate) AtomicU32);

impl Sysmon {
    pub(crate) const fn new() -> Self {
        Self(AtomicU32::new(AWAKE))
    }

    /// Wakes sysmon if it sleeps. Called by an M that was idle, after it has left the count of idle
    /// Ms.
    #[inline]
    pub(crate) fn wake(&self) {
        sysmon_sleep::wake(&self.0, futex::wake);
    }

    /// Ends sysmon: its thread returns as soon as it wakes.
    pub(crate) fn end(&self) {
        sysmon_sleep::end(&self.0, futex::wake);
    }
}
