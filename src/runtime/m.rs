#![allow(unsafe_code, reason = "threads share raw structures")]
//! An M (a thread that runs goroutines) and its P (the right to run, with a queue of work).
//!
//! Each M owns one P for its life: nothing here blocks a thread under a goroutine yet, so that
//! there is no reason to pass a P on. M structures are immortal and used again.
//!
//! Where a runnable goroutine waits:
//!
//! * `local`: goroutines that belong to this thread. Only this thread touches it.
//! * `inbox`: the same, readied by other threads. Many push, this thread takes all.
//! * `P::runq`: goroutines that any thread may run: not started yet, or migratable. Others steal.
//! * `Sched::global`: the overflow of those, and what foreign threads make.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::futex;
use super::g::{G, GQueue, Gobuf};
use super::pool::Pools;
use super::preempt::Target;
use super::sched::Sched;

/// Slots of a run queue.
pub(crate) const RUNQ: usize = 256;

/// A queue that its owner fills and empties and others steal from: a ring with a head that all
/// compete for and a tail that only the owner moves.
pub(crate) struct RunQueue {
    head: AtomicU32,
    tail: AtomicU32,
    ring: [AtomicPtr<G>; RUNQ],
}

impl RunQueue {
    const fn new() -> Self {
        Self {
            head: AtomicU32::new(0),
            tail: AtomicU32::new(0),
            ring: [const { AtomicPtr::new(ptr::null_mut()) }; RUNQ],
        }
    }

    fn slot(&self, index: u32) -> &AtomicPtr<G> {
        &self.ring[index as usize % RUNQ]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.head.load(Ordering::Acquire) == self.tail.load(Ordering::Acquire)
    }

    /// Owner only. Gives the goroutine back when the ring is full.
    pub(crate) fn push(&self, g: *mut G) -> Result<(), *mut G> {
        // Acquire pairs with the Release of whoever took slots: they are done reading them.
        let head = self.head.load(Ordering::Acquire);
        let tail = self.tail.load(Ordering::Relaxed);
        if tail.wrapping_sub(head) as usize == RUNQ {
            return Err(g);
        }
        self.slot(tail).store(g, Ordering::Relaxed);
        self.tail.store(tail.wrapping_add(1), Ordering::Release);
        Ok(())
    }

    /// Owner only.
    pub(crate) fn pop(&self) -> *mut G {
        let tail = self.tail.load(Ordering::Relaxed);
        let mut head = self.head.load(Ordering::Acquire);
        while head != tail {
            let g = self.slot(head).load(Ordering::Relaxed);
            let next = head.wrapping_add(1);
            match self.head.compare_exchange_weak(head, next, Ordering::Release, Ordering::Acquire)
            {
                Ok(_) => return g,
                Err(now) => head = now,
            }
        }
        ptr::null_mut()
    }

    /// Owner only, when the ring is full: takes the older half of it, linked to a queue.
    pub(crate) fn take_half(&self) -> Option<GQueue> {
        let head = self.head.load(Ordering::Acquire);
        let taken = GQueue::new();
        if self.tail.load(Ordering::Relaxed).wrapping_sub(head) as usize != RUNQ {
            return None; // thieves made room
        }
        let half: [*mut G; RUNQ / 2] =
            std::array::from_fn(|i| self.slot(head.wrapping_add(i as u32)).load(Ordering::Relaxed));
        let next = head.wrapping_add(RUNQ as u32 / 2);
        self.head.compare_exchange(head, next, Ordering::Release, Ordering::Relaxed).ok()?;
        half.into_iter().for_each(|g| taken.push(g));
        Some(taken)
    }

    /// Free slots, as seen by the owner.
    pub(crate) fn room(&self) -> usize {
        let head = self.head.load(Ordering::Acquire);
        RUNQ - self.tail.load(Ordering::Relaxed).wrapping_sub(head) as usize
    }

    /// Moves half of this queue to `to`, which is the thief's own and empty. Returns one of them
    /// to run at once.
    pub(crate) fn steal_into(&self, to: &Self) -> *mut G {
        loop {
            let head = self.head.load(Ordering::Acquire);
            let tail = self.tail.load(Ordering::Acquire);
            let available = tail.wrapping_sub(head);
            let take = available - available / 2;
            if take == 0 {
                return ptr::null_mut();
            }
            if take as usize > RUNQ / 2 {
                continue; // head and tail were read at different times
            }
            let to_tail = to.tail.load(Ordering::Relaxed);
            for i in 0..take {
                let g = self.slot(head.wrapping_add(i)).load(Ordering::Relaxed);
                to.slot(to_tail.wrapping_add(i)).store(g, Ordering::Relaxed);
            }
            let next = head.wrapping_add(take);
            if self.head.compare_exchange(head, next, Ordering::Release, Ordering::Relaxed).is_ok()
            {
                let last = to_tail.wrapping_add(take - 1);
                let g = to.slot(last).load(Ordering::Relaxed);
                to.tail.store(last, Ordering::Release);
                return g;
            }
        }
    }
}

/// The right to run goroutines, and what comes with it.
pub(crate) struct P {
    pub(crate) runq: RunQueue,
    /// Readied by the goroutine that runs now: it goes first, while its data is in the cache.
    pub(crate) run_next: Cell<*mut G>,
    /// How many times in a row `run_next` went first.
    pub(crate) run_next_streak: Cell<u32>,
    /// Scheduling rounds.
    pub(crate) tick: Cell<u32>,
    /// Dead goroutines with their stacks.
    pub(crate) pools: Pools,
    /// Goroutine numbers that were taken but not given yet.
    pub(crate) goids: Cell<(u64, u64)>,
}

/// M::park states.
const AWAKE: u32 = 0;
const PARKED: u32 = 1;
const NOTIFIED: u32 = 2;
/// As NOTIFIED, and the waker has counted this M among those that look for work.
const NOTIFIED_SPINNING: u32 = 3;

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
    timers: RefCell<BinaryHeap<Reverse<(Instant, u64, usize)>>>,
    timer_seq: Cell<u64>,
    /// For others: whether a timer is set.
    pub(crate) has_timers: AtomicBool,

    pub(crate) preempt: Target,

    // What other threads write to, on a line of its own.
    pub(crate) inbox: Inbox,
}

/// What other threads push to.
#[repr(C, align(128))]
pub(crate) struct Inbox {
    stack: AtomicPtr<G>,
    park: AtomicU32,
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
                    run_next_streak: Cell::new(0),
                    tick: Cell::new(0),
                    pools: Pools::new(),
                    goids: Cell::new((0, 0)),
                },
                local: GQueue::new(),
                timers: RefCell::default(),
                timer_seq: Cell::new(0),
                has_timers: AtomicBool::new(false),
                preempt: Target::new(),
                inbox: Inbox {
                    stack: AtomicPtr::new(ptr::null_mut()),
                    park: AtomicU32::new(AWAKE),
                },
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
        while !self.p.runq.pop().is_null() {}
        self.p.run_next.set(ptr::null_mut());
        // What is looked at once in so many rounds is so in the next run as in a first one.
        self.p.tick.set(0);
        self.p.run_next_streak.set(0);
        self.timers.borrow_mut().clear();
        self.has_timers.store(false, Ordering::Relaxed);
        self.inbox.stack.store(ptr::null_mut(), Ordering::Relaxed);
        self.inbox.park.store(AWAKE, Ordering::Relaxed);
        self.preempt.reset();
        self.run_id.store(0, Ordering::Release);
        FREE_MS.lock().unwrap_or_else(PoisonError::into_inner).push(self);
    }

    /// Which goroutine it runs, and in which of its turns, as others see it. `None` if it runs none.
    pub(crate) fn turn(&self) -> Option<(usize, u64)> {
        let g = self.curg.load(Ordering::Acquire);
        // SAFETY: null, or immortal.
        let turns = unsafe { g.as_ref() }?.switches.load(Ordering::Relaxed);
        Some((g as usize, turns))
    }

    /// Hands a goroutine of this M to it. Called by other threads; the goroutine is runnable.
    pub(crate) fn deliver(&self, g: *mut G) {
        let mut head = self.inbox.stack.load(Ordering::Relaxed);
        loop {
            // SAFETY: immortal, and ours until the exchange succeeds.
            unsafe { (*g).link.set(head) };
            match self.inbox.stack.compare_exchange_weak(
                head,
                g,
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => break,
                Err(now) => head = now,
            }
        }
        futex::light_fence();
        self.unpark();
    }

    /// Whether something was delivered.
    #[inline(always)]
    pub(crate) fn has_mail(&self) -> bool {
        !self.inbox.stack.load(Ordering::Relaxed).is_null()
    }

    /// Moves what was delivered to the local queue, oldest first.
    #[cold]
    pub(crate) fn take_mail(&self) {
        let mut newest = self.inbox.stack.swap(ptr::null_mut(), Ordering::Acquire);
        let mut oldest: *mut G = ptr::null_mut();
        while !newest.is_null() {
            // SAFETY: the swap made the chain ours.
            let next = unsafe { (*newest).link.replace(oldest) };
            oldest = newest;
            newest = next;
        }
        while !oldest.is_null() {
            // SAFETY: as above; `push` overwrites the link, so read it before.
            let (next, run_id) =
                unsafe { ((*oldest).link.get(), (*oldest).run_id.load(Ordering::Relaxed)) };
            // A goroutine that an earlier run left behind belongs to a thread that is gone.
            if run_id == self.run_id.load(Ordering::Relaxed) {
                self.local.push(oldest);
            }
            oldest = next;
        }
    }

    /// Announces that this thread is about to sleep. Then it must look for work once more.
    pub(crate) fn prepare_park(&self) {
        self.inbox.park.store(PARKED, Ordering::SeqCst);
        futex::heavy_fence();
    }

    /// Takes the announcement back. Returns what [`Self::park`] would have.
    pub(crate) fn cancel_park(&self) -> bool {
        self.inbox.park.swap(AWAKE, Ordering::SeqCst) == NOTIFIED_SPINNING
    }

    /// Sleeps until somebody unparks this M or its next timer is due; returns whether the waker
    /// counted it as spinning. `None`: the limit was reached first, and the M is still announced.
    pub(crate) fn park(&self, limit: Option<Duration>) -> Option<bool> {
        let timer = self.next_timer().map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = match (timer, limit) {
            (Some(timer), Some(limit)) => Some(timer.min(limit)),
            (timer, limit) => timer.or(limit),
        };
        let park = &self.inbox.park;
        if park.load(Ordering::Acquire) == PARKED && timeout != Some(Duration::ZERO) {
            futex::wait(park, PARKED, timeout);
        }
        let limit_is_first = limit.is_some_and(|limit| timer.is_none_or(|timer| limit < timer));
        if limit_is_first && park.load(Ordering::SeqCst) == PARKED {
            return None;
        }
        Some(park.swap(AWAKE, Ordering::SeqCst) == NOTIFIED_SPINNING)
    }

    /// Wakes the thread if it sleeps or is about to. Returns whether this call did it.
    pub(crate) fn unpark(&self) -> bool {
        self.notify(NOTIFIED)
    }

    /// As [`Self::unpark`], for an M that the caller has counted among those that look for work.
    pub(crate) fn unpark_spinning(&self) -> bool {
        self.notify(NOTIFIED_SPINNING)
    }

    fn notify(&self, state: u32) -> bool {
        let park = &self.inbox.park;
        let parked = park.load(Ordering::SeqCst) == PARKED
            && park.compare_exchange(PARKED, state, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        if parked {
            futex::wake(park);
        }
        parked
    }

    /// Whether the thread sleeps or is about to, and nobody has woken it.
    pub(crate) fn is_parked(&self) -> bool {
        self.inbox.park.load(Ordering::SeqCst) == PARKED
    }

    /// Sets a timer that makes the (parked) goroutine runnable on this M.
    pub(crate) fn set_timer(&self, at: Instant, g: *mut G) {
        let seq = self.timer_seq.get();
        self.timer_seq.set(seq + 1);
        self.timers.borrow_mut().push(Reverse((at, seq, g as usize)));
        self.has_timers.store(true, Ordering::Relaxed);
    }

    fn next_timer(&self) -> Option<Instant> {
        self.timers.borrow().peek().map(|Reverse((at, _, _))| *at)
    }

    /// Takes a goroutine whose time has come.
    pub(crate) fn due_timer(&self, now: Instant) -> Option<*mut G> {
        if self.next_timer()? > now {
            return None;
        }
        let mut timers = self.timers.borrow_mut();
        let Reverse((_, _, g)) = timers.pop()?;
        self.has_timers.store(!timers.is_empty(), Ordering::Relaxed);
        Some(g as *mut G)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Mutex;

    use super::*;

    /// Numbers stand for goroutines: queues never look into them.
    fn fake(n: usize) -> *mut G {
        (n * 64) as *mut G
    }

    #[test]
    fn run_queue_is_first_in_first_out_and_bounded() {
        let queue = RunQueue::new();
        for round in 0..3 {
            for n in 1..=RUNQ {
                assert_eq!(queue.push(fake(n)), Ok(()), "round {round}");
            }
            assert_eq!(queue.push(fake(999)), Err(fake(999)));
            for n in 1..=RUNQ {
                assert_eq!(queue.pop(), fake(n));
            }
            assert!(queue.pop().is_null() && queue.is_empty());
        }
    }

    #[test]
    fn thieves_and_owner_share_everything_exactly_once() {
        const EACH: usize = 200_000;
        let queue: &'static RunQueue = Box::leak(Box::new(RunQueue::new()));
        let seen: &'static Mutex<Vec<usize>> = Box::leak(Box::default());
        let done: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(false)));
        let thieves: Vec<_> = (0..2)
            .map(|_| {
                std::thread::spawn(move || {
                    let own = RunQueue::new();
                    let mut mine = Vec::new();
                    loop {
                        let last_round = done.load(Ordering::Acquire);
                        let g = queue.steal_into(&own);
                        if !g.is_null() {
                            mine.push(g as usize);
                        }
                        loop {
                            match own.pop() {
                                g if g.is_null() => break,
                                g => mine.push(g as usize),
                            }
                        }
                        if g.is_null() && last_round {
                            break;
                        }
                    }
                    seen.lock().expect("no thief panicked").extend(mine);
                })
            })
            .collect();
        let mut mine = Vec::new();
        for n in 1..=EACH {
            while queue.push(fake(n)).is_err() {
                let g = queue.pop();
                if !g.is_null() {
                    mine.push(g as usize);
                }
            }
            if n % 7 == 0 {
                let g = queue.pop();
                if !g.is_null() {
                    mine.push(g as usize);
                }
            }
        }
        done.store(true, Ordering::Release);
        for thief in thieves {
            thief.join().expect("thief");
        }
        loop {
            match queue.pop() {
                g if g.is_null() => break,
                g => mine.push(g as usize),
            }
        }
        let mut all = seen.lock().expect("no thief panicked").clone();
        all.extend(mine);
        assert_eq!(all.len(), EACH);
        assert_eq!(all.into_iter().collect::<HashSet<_>>().len(), EACH);
    }
}
