//! A P: the right to run goroutines, with a run queue, timers, pools of dead goroutines and
//! counters.
//!
//! This file is data. Each M owns one P for good, so that no P is handed to another thread.
//!
//! Two words for time. A *tick* is one choice of a goroutine to run. A *time slice* is what the
//! fairness of the scheduler counts: a goroutine begins one, and a goroutine that it readies may
//! run on in the same one (it *inherits* the time slice). sysmon ends a time slice that takes too
//! long.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::runtime::gmp::g::G;
use crate::runtime::gmp::pools::Pools;
use crate::runtime::gmp::queues::OwnedPtr;
use crate::runtime::gmp::timers::Timers;
use crate::runtime::sync::runq::RunQueue;

/// Slots of a run queue.
pub(crate) const RUNQ: usize = 256;

/// The right to run goroutines, and what comes with it.
pub(crate) struct P {
    /// Goroutines that any M may run.
    pub(crate) runq: RunQueue<G, RUNQ>,
    /// The goroutine that the running one has readied last. It runs next, while its data is in the
    /// cache, and inherits the time slice. Other Ms do not steal it. Null: none.
    pub(crate) run_next: OwnedPtr<G>,
    pub(crate) ticks: Ticks,
    pub(crate) timers: Timers,
    /// Dead goroutines with their stacks.
    pub(crate) pools: Pools,
    /// The rest of a batch of goroutine numbers: the next one, and the end of the batch.
    pub(crate) ids: Cell<(u64, u64)>,
    pub(crate) counts: Counts,
}

/// Adds to a counter that only this thread writes to. A load and a store: a locked instruction for
/// each switch would cost more than the rest of it.
#[inline(always)]
pub(crate) fn bump(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed) + by, Ordering::Relaxed);
}

/// The ticks and time slices of a P. Its thread writes everything but `over`.
pub(crate) struct Ticks {
    /// Time slices that began.
    time_slices: AtomicU64,
    /// Ticks at which a goroutine inherited the time slice.
    inherited: AtomicU64,
    /// `inherited` when the current time slice began.
    inherited_before: Cell<u64>,
    /// The number of the time slice that another thread has ended. `u64::MAX`: none.
    over: AtomicU64,
}

impl Ticks {
    pub(crate) fn new() -> Self {
        Self {
            time_slices: AtomicU64::new(0),
            inherited: AtomicU64::new(0),
            inherited_before: Cell::new(0),
            over: AtomicU64::new(u64::MAX),
        }
    }

    /// The number of the current time slice.
    #[inline(always)]
    pub(crate) fn time_slice(&self) -> u64 {
        self.time_slices.load(Ordering::Relaxed)
    }

    /// All ticks so far.
    #[inline(always)]
    pub(crate) fn all(&self) -> u64 {
        self.time_slice() + self.inherited()
    }

    /// Ticks so far at which a goroutine inherited the time slice.
    #[inline(always)]
    pub(crate) fn inherited(&self) -> u64 {
        self.inherited.load(Ordering::Relaxed)
    }

    /// The next goroutine begins a time slice.
    #[inline(always)]
    pub(crate) fn begin_time_slice(&self) {
        bump(&self.time_slices, 1);
        self.inherited_before.set(self.inherited());
    }

    /// Whether the next goroutine may inherit the current time slice: it is not over, and fewer
    /// than `limit` goroutines have inherited it.
    #[inline(always)]
    pub(crate) fn may_inherit(&self, limit: u64) -> bool {
        self.inherited() - self.inherited_before.get() < limit
            && self.over.load(Ordering::Relaxed) != self.time_slice()
    }

    /// Lets the next goroutine inherit the current time slice, if it may.
    #[inline(always)]
    pub(crate) fn inherit_time_slice(&self, limit: u64) -> bool {
        let may = self.may_inherit(limit);
        if may {
            bump(&self.inherited, 1);
        }
        may
    }

    /// Ends the current time slice. Any thread may call this. If the next one begins meanwhile,
    /// this may end that one: a goroutine then loses part of one time slice.
    pub(crate) fn end_time_slice(&self) {
        self.over.store(self.time_slice(), Ordering::Relaxed);
    }

    pub(crate) fn reset(&self) {
        self.time_slices.store(0, Ordering::Relaxed);
        self.inherited.store(0, Ordering::Relaxed);
        self.inherited_before.set(0);
        self.over.store(u64::MAX, Ordering::Relaxed);
    }
}

/// What happened on one P, for `stats`. Its thread alone writes.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) steals: AtomicU64,
    pub(crate) stolen: AtomicU64,
    pub(crate) timers: AtomicU64,
    pub(crate) sleeps: AtomicU64,
}

impl Counts {
    pub(crate) fn reset(&self) {
        let Self { steals, stolen, timers, sleeps } = self;
        let all = [steals, stolen, timers, sleeps];
        all.into_iter().for_each(|counter| counter.store(0, Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Mutex;
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::runtime::sync::runq::Stolen;

    const SLOTS: usize = RUNQ;
    type Queue = RunQueue<u8, SLOTS>;

    /// Numbers stand for items: a queue never dereferences them.
    fn fake(n: usize) -> *mut u8 {
        n as *mut u8
    }

    #[test]
    fn it_is_first_in_first_out_and_bounded() {
        let queue = Queue::new();
        for round in 0..3 {
            for n in 1..=SLOTS {
                assert_eq!(queue.push(fake(n)), Ok(()), "round {round}");
            }
            assert_eq!(queue.push(fake(999)), Err(fake(999)));
            for n in 1..=SLOTS {
                assert_eq!(queue.pop(), fake(n));
            }
            assert!(queue.pop().is_null() && queue.is_empty());
        }
    }

    #[test]
    fn of_a_full_one_the_older_half_is_taken() {
        let queue = Queue::new();
        assert!(!queue.take_half(|_| panic!("it is not full")));
        (1..=SLOTS).for_each(|n| queue.push(fake(n)).expect("room"));
        let mut taken = Vec::new();
        assert!(queue.take_half(|item| taken.push(item as usize)));
        assert_eq!(taken, (1..=SLOTS / 2).collect::<Vec<_>>());
        assert_eq!((queue.pop(), queue.room()), (fake(SLOTS / 2 + 1), SLOTS / 2 + 1));
    }

    #[test]
    fn thieves_and_owner_share_everything_exactly_once() {
        const EACH: usize = 200_000;
        let queue: &'static Queue = Box::leak(Box::new(Queue::new()));
        let seen: &'static Mutex<Vec<usize>> = Box::leak(Box::default());
        let done: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(false)));
        let thieves: Vec<_> = (0..2)
            .map(|_| {
                std::thread::spawn(move || {
                    let own = Queue::new();
                    let mut mine = Vec::new();
                    loop {
                        let last_round = done.load(Ordering::Acquire);
                        let stolen = queue.steal_into(&own);
                        let (before, count) = match &stolen {
                            Some(Stolen { first, count }) => {
                                mine.push(*first as usize);
                                (mine.len() - 1, *count as usize)
                            }
                            None => (mine.len(), 0),
                        };
                        loop {
                            match own.pop() {
                                item if item.is_null() => break,
                                item => mine.push(item as usize),
                            }
                        }
                        assert_eq!(mine.len() - before, count);
                        if stolen.is_none() && last_round {
                            break;
                        }
                    }
                    seen.lock().expect("no thief panicked").extend(mine);
                })
            })
            .collect();
        let mut mine = Vec::new();
        let mut pop = || {
            let item = queue.pop();
            if !item.is_null() {
                mine.push(item as usize);
            }
            !item.is_null()
        };
        for n in 1..=EACH {
            while queue.push(fake(n)).is_err() {
                pop();
            }
            if n % 7 == 0 {
                pop();
            }
        }
        done.store(true, Ordering::Release);
        for thief in thieves {
            thief.join().expect("thief");
        }
        while pop() {}
        let mut all = seen.lock().expect("no thief panicked").clone();
        all.extend(mine);
        assert_eq!(all.len(), EACH);
        assert_eq!(all.into_iter().collect::<HashSet<_>>().len(), EACH);
    }
}
