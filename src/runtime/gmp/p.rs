//! A P: the right to run goroutines, with a run queue, timers, pools of dead goroutines and
//! counters.
//!
//! This file is data. Each M owns one P for good, so that no P is handed to another thread.
//!
//! Three words for time. A *tick* is one choice of a goroutine to run. A *time slice* is what the
//! fairness of the scheduler counts: a goroutine begins one, and a goroutine that it readies may
//! run on in the same one (it *inherits* the time slice). sysmon ends a time slice that takes too
//! long. A *round* serves each queue once, at least once in the time that a slice may take.

use std::cell::Cell;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::runtime::gmp::g::G;
use crate::runtime::gmp::pools::Pools;
use crate::runtime::gmp::queues::OwnedPtr;
use crate::runtime::gmp::slab_set::SlabSet;
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
    pub(crate) round: Round,
    pub(crate) burst: Burst,
    pub(crate) timers: Timers,
    /// Dead goroutines with their stacks.
    pub(crate) pools: Pools,
    /// The slabs of the goroutines that were started here in this run.
    pub(crate) slabs: SlabSet,
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
    /// How many goroutines may inherit one time slice. Set before the run begins.
    pub(crate) max_inherited: Cell<u64>,
}

impl Ticks {
    pub(crate) fn new() -> Self {
        Self {
            time_slices: AtomicU64::new(0),
            inherited: AtomicU64::new(0),
            inherited_before: Cell::new(0),
            over: AtomicU64::new(u64::MAX),
            max_inherited: Cell::new(0),
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
    /// than `max_inherited` goroutines have inherited it.
    #[inline(always)]
    pub(crate) fn may_inherit(&self) -> bool {
        self.inherited() - self.inherited_before.get() < self.max_inherited.get()
            && self.over.load(Ordering::Relaxed) != self.time_slice()
    }

    /// Lets the next goroutine inherit the current time slice, if it may.
    #[inline(always)]
    pub(crate) fn inherit_time_slice(&self) -> bool {
        let may = self.may_inherit();
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

/// One goroutine of each queue, one after the other, before the usual order of the queues goes on.
pub(crate) struct Round(AtomicU8);

/// The queues in the order in which a round serves them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Global,
    RunQueue,
    Local,
}

impl Round {
    const NONE: u8 = 0;
    const TURNS: [Turn; 3] = [Turn::Global, Turn::RunQueue, Turn::Local];

    pub(crate) const fn new() -> Self {
        Self(AtomicU8::new(Self::NONE))
    }

    /// Begins a round, unless one is under way. Any thread may call this. A round that the owner
    /// ends at the same time may not be followed by the new one, or may begin anew.
    pub(crate) fn begin(&self) {
        if !self.is_due() {
            self.0.store(1, Ordering::Relaxed);
        }
    }

    /// Whether a queue has its turn next.
    #[inline(always)]
    pub(crate) fn is_due(&self) -> bool {
        self.0.load(Ordering::Relaxed) != Self::NONE
    }

    /// The queue whose turn it is. The turn passes to the next one. Called by the owner only.
    pub(crate) fn take_turn(&self) -> Option<Turn> {
        let number = usize::from(self.0.load(Ordering::Relaxed));
        let turn = *Self::TURNS.get(number.checked_sub(1)?)?;
        let next = if number < Self::TURNS.len() { number as u8 + 1 } else { Self::NONE };
        self.0.store(next, Ordering::Relaxed);
        Some(turn)
    }

    pub(crate) fn reset(&self) {
        self.0.store(Self::NONE, Ordering::Relaxed);
    }
}

/// The goroutines that this P starts one after the other, while more wait to be started.
pub(crate) struct Burst {
    /// The goroutine that was started last.
    last: Cell<Option<&'static G>>,
    /// How many in a row were still there when the next one was started.
    settled: Cell<u32>,
}

impl Burst {
    pub(crate) const fn new() -> Self {
        Self { last: Cell::new(None), settled: Cell::new(0) }
    }

    /// The next goroutine is started. Returns how many of those before it, in a row, have suspended
    /// themselves since they were started.
    #[inline(always)]
    pub(crate) fn start_next(&self, g: &'static G) -> u32 {
        // The last G may be another goroutine's by now. Then the count is wrong by one.
        let is_suspended = self.last.replace(Some(g)).is_some_and(G::is_suspended);
        let settled = if is_suspended { self.settled.get() + 1 } else { 0 };
        self.settled.set(settled);
        settled
    }

    pub(crate) fn reset(&self) {
        self.last.set(None);
        self.settled.set(0);
    }
}

/// What happened on one P, for `stats`. Its thread alone writes.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) steals: AtomicU64,
    pub(crate) stolen: AtomicU64,
    pub(crate) sent: AtomicU64,
    pub(crate) timers: AtomicU64,
    pub(crate) sleeps: AtomicU64,
}

impl Counts {
    pub(crate) fn reset(&self) {
        let Self { steals, stolen, sent, timers, sleeps } = self;
        let all = [steals, stolen, sent, timers, sleeps];
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
