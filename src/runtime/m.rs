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

use super::futex;
use super::g::{G, GQueue, Gobuf};
use super::idle::{PARKED, Parking};
use super::mailbox::Mailbox;
use super::pool::Pools;
use super::preempt::Target;
use super::runq::RunQueue;
use super::sched::{Sched, enqueue};
use super::timers::{self, Timers};

/// Slots of a run queue.
pub(crate) const RUNQ: usize = 256;

/// The right to run goroutines, and what comes with it.
pub(crate) struct P {
    pub(crate) runq: RunQueue<G, RUNQ>,
    /// Readied by the goroutine that runs now: it goes first, while its data is in the cache, and
    /// runs on in the same time slice.
    pub(crate) run_next: Cell<*mut G>,
    pub(crate) rounds: Rounds,
    pub(crate) timers: Timers,
    /// Dead goroutines with their stacks.
    pub(crate) pools: Pools,
    /// Goroutine numbers that were taken but not given yet.
    pub(crate) goids: Cell<(u64, u64)>,
    pub(crate) counts: Counts,
}

/// Adds to a counter that only this thread writes to: no read-modify-write.
#[inline(always)]
pub(crate) fn bump(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed) + by, Ordering::Relaxed);
}

/// How often a P chose a goroutine, and whose time slice that one began in. Written by its thread,
/// but for `over`.
pub(crate) struct Rounds {
    /// Time slices that began.
    slices: AtomicU64,
    /// How often a goroutine ran on in the slice of the one that readied it.
    inherited: AtomicU64,
    /// `inherited` when the slice began.
    inherited_before: Cell<u64>,
    /// The slice that somebody has found to be over.
    over: AtomicU64,
}

impl Rounds {
    fn new() -> Self {
        Self {
            slices: AtomicU64::new(0),
            inherited: AtomicU64::new(0),
            inherited_before: Cell::new(0),
            over: AtomicU64::new(u64::MAX),
        }
    }

    /// The number of the current slice.
    #[inline(always)]
    pub(crate) fn slice(&self) -> u64 {
        self.slices.load(Ordering::Relaxed)
    }

    /// Goroutines that were chosen so far.
    #[inline(always)]
    pub(crate) fn all(&self) -> u64 {
        self.slice() + self.inherited()
    }

    /// Those of them that ran on in somebody's slice.
    #[inline(always)]
    pub(crate) fn inherited(&self) -> u64 {
        self.inherited.load(Ordering::Relaxed)
    }

    /// The next goroutine begins a slice of its own.
    #[inline(always)]
    pub(crate) fn begin_slice(&self) {
        bump(&self.slices, 1);
        self.inherited_before.set(self.inherited());
    }

    /// Whether the next goroutine may run in the current slice: it is not over, and that was done
    /// less than `limit` times.
    #[inline(always)]
    pub(crate) fn may_inherit(&self, limit: u64) -> bool {
        self.inherited() - self.inherited_before.get() < limit
            && self.over.load(Ordering::Relaxed) != self.slice()
    }

    /// The next goroutine runs in the current slice, if it may.
    #[inline(always)]
    pub(crate) fn inherit_slice(&self, limit: u64) -> bool {
        let may = self.may_inherit(limit);
        if may {
            bump(&self.inherited, 1);
        }
        may
    }

    /// The current slice is over. Any thread; where another one has begun this may end that one.
    pub(crate) fn end_slice(&self) {
        self.over.store(self.slice(), Ordering::Relaxed);
    }

    fn reset(&self) {
        self.slices.store(0, Ordering::Relaxed);
        self.inherited.store(0, Ordering::Relaxed);
        self.inherited_before.set(0);
        self.over.store(u64::MAX, Ordering::Relaxed);
    }
}

/// What happened on one P, for `stats`. Written by its thread.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) steals: AtomicU64,
    pub(crate) stolen: AtomicU64,
    pub(crate) timers: AtomicU64,
    pub(crate) sleeps: AtomicU64,
}

impl Counts {
    fn reset(&self) {
        let Self { steals, stolen, timers, sleeps } = self;
        let all = [steals, stolen, timers, sleeps];
        all.into_iter().for_each(|counter| counter.store(0, Ordering::Relaxed));
    }
}

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

    pub(crate) preempt: Target,

    // What other threads write to, on a line of its own.
    pub(crate) inbox: Inbox,
}

/// What other threads write to.
#[repr(C, align(128))]
pub(crate) struct Inbox {
    mail: Mailbox<G>,
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
                    rounds: Rounds::new(),
                    timers: Timers::new(),
                    pools: Pools::new(),
                    goids: Cell::new((0, 0)),
                    counts: Counts::default(),
                },
                local: GQueue::new(),
                yielded: GQueue::new(),
                spills: Cell::new((0, 0)),
                preempt: Target::new(),
                inbox: Inbox { mail: Mailbox::new(), parking: Parking::new() },
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
        self.p.rounds.reset();
        self.p.timers.clear();
        self.p.counts.reset();
        self.inbox.mail.clear();
        self.inbox.parking.end();
        self.preempt.reset();
        self.run_id.store(0, Ordering::Release);
        FREE_MS.lock().unwrap_or_else(PoisonError::into_inner).push(self);
    }

    /// Which time slice it is in, as others see it. `None` if it runs no goroutine.
    pub(crate) fn slice(&self) -> Option<u64> {
        let runs_one = !self.curg.load(Ordering::Acquire).is_null();
        runs_one.then(|| self.p.rounds.slice())
    }

    /// Hands a goroutine of this M to it. Called by other threads; the goroutine is runnable.
    pub(crate) fn deliver(&self, g: *mut G) {
        // SAFETY: whoever readied the goroutine has it.
        unsafe { self.inbox.mail.push(g) };
        futex::light_fence();
        self.unpark();
    }

    /// Whether something was delivered.
    #[inline(always)]
    pub(crate) fn has_mail(&self) -> bool {
        !self.inbox.mail.is_empty()
    }

    /// Queues what was delivered, oldest first. Returns whether there is some for others.
    #[cold]
    pub(crate) fn take_mail(&self) -> bool {
        let mut taken = 0;
        self.inbox.mail.take(|g| {
            // SAFETY: immortal.
            let run_id = unsafe { (*g).run_id.load(Ordering::Relaxed) };
            // A goroutine that an earlier run left behind belongs to a thread that is gone.
            if run_id == self.run_id.load(Ordering::Relaxed) {
                enqueue(self, g);
                taken += 1;
            }
        });
        taken > 1 && !self.p.runq.is_empty()
    }

    /// Sleeps until somebody unparks this M or its next timer is due; returns whether the waker
    /// counted it as spinning. `None`: the limit was reached first, and the M is still announced.
    pub(crate) fn park(&self, limit: Option<Duration>) -> Option<bool> {
        let parking = &self.inbox.parking;
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
        let parking = &self.inbox.parking;
        if parking.notify() {
            futex::wake(parking.word());
        }
    }

    /// Whether the thread sleeps or is about to, and nobody has woken it.
    pub(crate) fn is_parked(&self) -> bool {
        self.inbox.parking.is_parked()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Mutex;
    use std::sync::atomic::AtomicBool;

    use super::super::runq::Stolen;
    use super::*;

    const SLOTS: usize = RUNQ;
    type Queue = RunQueue<u8, SLOTS>;

    /// Numbers stand for items: queues never look into them.
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
