//! The counters of a run, as the program reads them.
//!
//! Each thread counts for itself (`gmp/p.rs`, `gmp/preempt_state.rs`), and this file adds up. A
//! shared counter would move between processors at every switch.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::runtime::gmp::current::this_sched;
use crate::runtime::gmp::preempt_state::{Counters, Refusal};

/// What has happened in a run so far. Threads count for themselves, so that the numbers are of no
/// single moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Ticks: how often a goroutine was chosen to run, for the first time or to resume.
    pub switches: u64,
    /// Of these: goroutines that inherited the time slice of the one that readied them.
    pub inherited: u64,
    /// How often a processor without work has stolen some from another one.
    pub steals: u64,
    /// Goroutines that were stolen.
    pub stolen: u64,
    /// Goroutines that were sent to a processor that slept, before they started.
    pub sent: u64,
    /// Goroutines whose `sleep`, or whose limit of time for a channel, ended.
    pub timers: u64,
    /// How often a thread found nothing to run, and slept.
    pub sleeps: u64,
    /// Requests that a goroutine yields.
    pub requested: u64,
    /// Signals sent for them. None is sent where no goroutine waits for the processor, or where the
    /// thread waits in a system call.
    pub signals: u64,
    /// Of these: signals that were sent again, since the one before was not answered.
    pub resent: u64,
    /// Threads whose preemption signal was changed, since the program had installed a handler of
    /// its own that did not call the crate's. `environment()` says which signal is used.
    pub lost_handlers: u64,
    /// Goroutines that yielded at a poll.
    pub cooperative: u64,
    /// Goroutines that were interrupted in JIT code.
    pub asynchronous: u64,
    /// Signals and polls that preempted no goroutine.
    pub refused: Refused,
}

/// Why goroutines were not preempted where a signal or a poll found them. The request stands
/// meanwhile.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refused {
    /// The goroutine had yielded already.
    pub stale: u64,
    /// In [`without_preemption`](crate::runtime::without_preemption), on the system stack, or about
    /// to park.
    pub disabled: u64,
    /// Too little stack was left, or rsp was not in the goroutine's.
    pub stack: u64,
    /// In Rust or C code.
    pub native_code: u64,
    /// In JIT code that is not registered as preemptible, or in a stub of this crate.
    pub not_preemptible: u64,
    /// In an unsafe-point range of preemptible code.
    pub unsafe_point: u64,
}

impl Stats {
    /// Adds the counters of one M.
    fn add(&mut self, counters: &Counters) {
        let Counters {
            requested,
            signals,
            resent,
            lost_handlers,
            cooperative,
            asynchronous,
            refused,
        } = counters;
        let add = |sum: &mut u64, counter: &AtomicU64| *sum += counter.load(Ordering::Relaxed);
        add(&mut self.requested, requested);
        add(&mut self.signals, signals);
        add(&mut self.resent, resent);
        add(&mut self.lost_handlers, lost_handlers);
        add(&mut self.cooperative, cooperative);
        add(&mut self.asynchronous, asynchronous);
        let sums = &mut self.refused;
        add(&mut sums.stale, &refused[Refusal::Stale as usize]);
        add(&mut sums.disabled, &refused[Refusal::Disabled as usize]);
        add(&mut sums.stack, &refused[Refusal::Stack as usize]);
        add(&mut sums.native_code, &refused[Refusal::NativeCode as usize]);
        add(&mut sums.not_preemptible, &refused[Refusal::NotPreemptible as usize]);
        add(&mut sums.unsafe_point, &refused[Refusal::UnsafePoint as usize]);
    }
}

/// The counters of the run that the calling thread belongs to.
///
/// ```
/// use footbridge::runtime::{self, gosched, stats};
///
/// runtime::run(|| {
///     let before = stats().switches;
///     gosched();
///     assert!(stats().switches > before);
/// });
/// ```
///
/// # Panics
/// On a thread that no run owns.
pub fn stats() -> Stats {
    let sched = this_sched().expect("stats must be called on a thread of a run, and this is none");
    let mut stats = Stats::default();
    for m in sched.ms() {
        let (ticks, counts) = (&m.p.ticks, &m.p.counts);
        let add = |sum: &mut u64, counter: &AtomicU64| *sum += counter.load(Ordering::Relaxed);
        stats.switches += ticks.all();
        stats.inherited += ticks.inherited();
        add(&mut stats.steals, &counts.steals);
        add(&mut stats.stolen, &counts.stolen);
        add(&mut stats.sent, &counts.sent);
        add(&mut stats.timers, &counts.timers);
        add(&mut stats.sleeps, &counts.sleeps);
        stats.add(&m.preempt.counters);
    }
    stats
}
