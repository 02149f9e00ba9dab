//! When sleeping goroutines are due: a heap for each P.
//!
//! The P's own M sets timers and fires them, between goroutines. When it is kept from that by code
//! that does not give way, others may fire them: an M that finds nothing else to do.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::sched::Parker;

/// No timer.
const NEVER: u64 = u64::MAX;

/// Nanoseconds since some moment before the first call.
pub(crate) fn now() -> u64 {
    after(Duration::ZERO)
}

/// What [`now`] will be after so long; for what is beyond its range, the end of that.
pub(crate) fn after(duration: Duration) -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let since_start = START.get_or_init(Instant::now).elapsed().saturating_add(duration);
    u64::try_from(since_start.as_nanos()).unwrap_or(NEVER).min(NEVER - 1)
}

/// A sleeping goroutine, ordered by time and, at one time, by who came first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Timer {
    at: u64,
    number: u64,
    sleeper: usize,
}

struct Heap {
    timers: BinaryHeap<Reverse<Timer>>,
    numbers: u64,
}

pub(crate) struct Timers {
    heap: Mutex<Heap>,
    /// When the first one is due: what is looked at without the lock.
    next: AtomicU64,
    /// Somebody has seen that it was due and is not fired yet.
    overdue: AtomicBool,
}

impl Timers {
    pub(crate) fn new() -> Self {
        Self {
            heap: Mutex::new(Heap { timers: BinaryHeap::new(), numbers: 0 }),
            next: AtomicU64::new(NEVER),
            overdue: AtomicBool::new(false),
        }
    }

    /// Whether there is any. One that is set by another thread may be missed.
    #[inline(always)]
    pub(crate) fn any(&self) -> bool {
        self.next.load(Ordering::Relaxed) != NEVER
    }

    /// When the first one is due.
    pub(crate) fn next(&self) -> Option<u64> {
        let next = self.next.load(Ordering::SeqCst);
        (next != NEVER).then_some(next)
    }

    pub(crate) fn is_due(&self, now: u64) -> bool {
        self.next.load(Ordering::Relaxed) <= now
    }

    #[inline(always)]
    pub(crate) fn is_overdue(&self) -> bool {
        self.overdue.load(Ordering::Relaxed)
    }

    /// Tells the owner, who looks from time to time only, that a timer is due.
    pub(crate) fn set_overdue(&self) {
        self.overdue.store(true, Ordering::Relaxed);
    }

    /// Sets a timer for who parks.
    pub(crate) fn set(&self, at: u64, sleeper: Parker) {
        let mut heap = self.heap.lock().unwrap_or_else(PoisonError::into_inner);
        let number = heap.numbers;
        heap.numbers += 1;
        heap.timers.push(Reverse(Timer { at, number, sleeper: sleeper.into_raw() }));
        self.update_next(&heap);
    }

    /// Takes one whose time has come. Whoever takes it readies it.
    pub(crate) fn take_due(&self, now: u64) -> Option<Parker> {
        let mut heap = self.heap.lock().unwrap_or_else(PoisonError::into_inner);
        self.overdue.store(false, Ordering::Relaxed);
        heap.timers.peek().filter(|Reverse(timer)| timer.at <= now)?;
        let Reverse(timer) = heap.timers.pop()?;
        self.update_next(&heap);
        Some(Parker::from_raw(timer.sleeper))
    }

    fn update_next(&self, heap: &Heap) {
        let next = heap.timers.peek().map_or(NEVER, |Reverse(timer)| timer.at);
        self.next.store(next, Ordering::SeqCst);
    }

    /// Forgets all.
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
    fn what_is_beyond_the_clock_is_its_end() {
        assert!(after(Duration::MAX) < NEVER);
        assert!(now() < after(Duration::from_secs(1)));
    }
}
