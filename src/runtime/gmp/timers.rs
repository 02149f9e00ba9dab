#![allow(unsafe_code, reason = "timers refer to waits in the stacks of goroutines")]
//! Timers of parked goroutines: an ordered map for each P.
//!
//! This file must not ready a goroutine: [`Timers::take_due`] returns it, and `sched/` readies it,
//! outside of the lock.
//!
//! The P's own M sets timers and fires them, between goroutines. When code that does not yield
//! keeps the M from that, an M that finds nothing else to do fires them for it.
//!
//! Two kinds. A timer that ends a sleep always fires. A timer that limits a wait ([`ParkClaim`]) is
//! withdrawn when another event ends the wait, since the wait lies in the stack of its goroutine.
//!
//! **Invariant.** A wait is claimed under the lock of the timers that it is in. So nothing touches
//! a wait after [`Timers::withdraw`] has returned, and its goroutine may leave the frame.
//!
//! Why an ordered map and no binary heap: a limit is withdrawn from the middle as often as a timer
//! fires in front.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::runtime::gmp::parker::Parker;
use crate::runtime::sync::{Claim, TimedOut};

/// No timer.
const NEVER: u64 = u64::MAX;

/// Nanoseconds since a moment at or before the first call.
pub(crate) fn now() -> u64 {
    after(Duration::ZERO)
}

/// What [`now`] will be after `duration`, or the end of its range.
pub(crate) fn after(duration: Duration) -> u64 {
    /// Zero of this clock. Set once, so that times of all threads compare.
    static START: OnceLock<Instant> = OnceLock::new();
    let since_start = START.get_or_init(Instant::now).elapsed().saturating_add(duration);
    u64::try_from(since_start.as_nanos()).unwrap_or(NEVER).min(NEVER - 1)
}

/// A park that its timer or a peer may end. The one that gets the claim readies the goroutine.
pub(crate) struct ParkClaim {
    pub(crate) parker: Parker,
    pub(crate) claim: Claim,
}

/// Names a timer: when it is due and, among timers that are due at the same time, its age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TimerKey {
    at: u64,
    number: u64,
}

/// What a timer ends.
enum Event {
    /// A sleep, which nothing else ends.
    Sleep(Parker),
    /// A wait, unless a peer has claimed it.
    Wait(*const ParkClaim),
}

struct Heap {
    timers: BTreeMap<TimerKey, Event>,
    /// The number of the next timer.
    numbers: u64,
}

// SAFETY: an event is an address of a G, which is never freed, or of a wait, which stays where it
// is while its timer is in the map. Both are made for use by several threads.
unsafe impl Send for Heap {}

/// The timers of one P.
pub(crate) struct Timers {
    heap: Mutex<Heap>,
    /// When the first timer is due. Written under the lock, read without.
    next: AtomicU64,
    /// sysmon has found the first timer to be late.
    overdue: AtomicBool,
}

impl Timers {
    pub(crate) fn new() -> Self {
        Self {
            heap: Mutex::new(Heap { timers: BTreeMap::new(), numbers: 0 }),
            next: AtomicU64::new(NEVER),
            overdue: AtomicBool::new(false),
        }
    }

    /// Whether a timer is set. A timer that another thread sets at the same time may be missed.
    #[inline(always)]
    pub(crate) fn any(&self) -> bool {
        self.next.load(Ordering::Relaxed) != NEVER
    }

    /// When the first timer is due.
    ///
    /// SeqCst: the check for a deadlock relies on it (`sched/idle.rs`).
    pub(crate) fn next(&self) -> Option<u64> {
        let next = self.next.load(Ordering::SeqCst);
        (next != NEVER).then_some(next)
    }

    pub(crate) fn is_due(&self, now: u64) -> bool {
        self.next.load(Ordering::Relaxed) <= now
    }

    /// How many timers are due.
    pub(crate) fn count_due(&self, now: u64) -> usize {
        let heap = self.heap.lock().unwrap_or_else(PoisonError::into_inner);
        heap.timers.keys().take_while(|key| key.at <= now).count()
    }

    #[inline(always)]
    pub(crate) fn is_overdue(&self) -> bool {
        self.overdue.load(Ordering::Relaxed)
    }

    /// Tells the owner, which checks its timers only at some ticks, that one is due.
    pub(crate) fn set_overdue(&self) {
        self.overdue.store(true, Ordering::Relaxed);
    }

    /// Sets the timer of a goroutine that sleeps.
    pub(crate) fn set(&self, at: u64, sleeper: Parker) {
        self.insert(at, Event::Sleep(sleeper));
    }

    /// Sets the timer of a wait.
    ///
    /// # Safety
    /// `wait` stays where it is until the timer has claimed it or [`Self::withdraw`] has returned.
    pub(crate) unsafe fn set_limit(&self, at: u64, wait: &ParkClaim) -> TimerKey {
        self.insert(at, Event::Wait(wait))
    }

    fn insert(&self, at: u64, event: Event) -> TimerKey {
        let mut heap = self.heap.lock().unwrap_or_else(PoisonError::into_inner);
        let key = TimerKey { at, number: heap.numbers };
        heap.numbers += 1;
        heap.timers.insert(key, event);
        self.update_next(&heap);
        key
    }

    /// Withdraws a timer, if it has not fired. Afterwards nothing touches its wait. Any thread may
    /// call this.
    pub(crate) fn withdraw(&self, key: TimerKey) {
        let mut heap = self.heap.lock().unwrap_or_else(PoisonError::into_inner);
        if heap.timers.remove(&key).is_some() {
            self.update_next(&heap);
        }
    }

    /// Takes a timer that is due at `now`, and returns the goroutine that the caller must ready.
    /// Timers of waits that peers have claimed are dropped on the way.
    pub(crate) fn take_due(&self, now: u64) -> Option<Parker> {
        let mut heap = self.heap.lock().unwrap_or_else(PoisonError::into_inner);
        self.overdue.store(false, Ordering::Relaxed);
        let mut due = None;
        while due.is_none()
            && let Some(first) = heap.timers.first_entry()
            && first.key().at <= now
        {
            due = match first.remove() {
                Event::Sleep(parker) => Some(parker),
                Event::Wait(wait) => {
                    // SAFETY: the timer was in the map, so it was not withdrawn, which takes the
                    // lock that is held here. So the wait is where it was, by the contract of
                    // `set_limit`. The parker is read before the claim: a goroutine that finds the
                    // claim taken may leave the frame.
                    unsafe {
                        let parker = (*wait).parker;
                        ((*wait).claim.time_out() == TimedOut::MustReady).then_some(parker)
                    }
                }
            };
        }
        self.update_next(&heap);
        due
    }

    fn update_next(&self, heap: &Heap) {
        let next = heap.timers.first_key_value().map_or(NEVER, |(key, _)| key.at);
        self.next.store(next, Ordering::SeqCst);
    }

    /// Forgets all timers, at the end of a run. Their goroutines never run again.
    pub(crate) fn clear(&self) {
        let mut heap = self.heap.lock().unwrap_or_else(PoisonError::into_inner);
        heap.timers.clear();
        self.update_next(&heap);
        self.overdue.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_come_by_time_and_then_by_age() {
        let timers = Timers::new();
        assert!(!timers.any() && timers.next().is_none() && !timers.is_due(NEVER - 1));
        for (at, sleeper) in [(30, 64), (10, 128), (20, 192), (10, 256)] {
            timers.set(at, Parker::from_raw(sleeper));
        }
        assert!(timers.any() && timers.is_due(10) && !timers.is_due(9));
        let take = |now| timers.take_due(now).map(Parker::into_raw);
        assert_eq!(take(9), None);
        assert_eq!(
            [take(25), take(25), take(25), take(25)],
            [Some(128), Some(256), Some(192), None]
        );
        assert_eq!(timers.next(), Some(30));
        timers.clear();
        assert!(!timers.any() && take(NEVER - 1).is_none());
    }

    #[test]
    fn a_timer_of_a_wait_fires_unless_it_lost_the_claim_or_was_withdrawn() {
        let timers = Timers::new();
        let wait = |raw| ParkClaim { parker: Parker::from_raw(raw), claim: Claim::open() };
        let [first, lost, withdrawn, last] = [64, 128, 192, 256].map(wait);
        let [_, _, key, _] = [&first, &lost, &withdrawn, &last]
            // SAFETY: the waits outlive the timers' last use.
            .map(|wait| unsafe { timers.set_limit(10, wait) });
        assert!(lost.claim.claim(3));
        timers.withdraw(key);
        timers.withdraw(key);
        let take = || timers.take_due(10).map(Parker::into_raw);
        assert_eq!([take(), take(), take()], [Some(64), Some(256), None]);
        assert!(!timers.any());
        assert_eq!([&first, &last].map(|wait| wait.claim.outcome()), [Claim::TIMED_OUT; 2]);
        assert_eq!(lost.claim.outcome(), 3);
        assert!(withdrawn.claim.claim(0), "it was left alone");
    }

    #[test]
    fn a_timer_that_is_due_before_its_goroutine_parks_readies_none() {
        let timers = Timers::new();
        let wait = ParkClaim { parker: Parker::from_raw(64), claim: Claim::arming() };
        // SAFETY: the wait outlives the timers' last use.
        unsafe { timers.set_limit(10, &wait) };
        assert_eq!(timers.take_due(10), None);
        assert!(!timers.any(), "it has fired");
        assert!(!wait.claim.open_armed(), "the goroutine finds out");
        assert!(!wait.claim.claim(0), "no peer can have it");
    }

    #[test]
    fn what_is_beyond_the_clock_is_its_end() {
        assert!(after(Duration::MAX) < NEVER);
        assert!(now() < after(Duration::from_secs(1)));
    }
}
