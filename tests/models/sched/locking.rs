//! Mutexes and reader-writer locks: what their holders do to the data, and how they are passed on.
//!
//! The queue of a lock, and the spin lock that guards it, are loom's here.

use std::collections::VecDeque;
use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::sync::{Mutex, MutexGuard};

use super::explore::{Body, Model, Mutant, RACE, SLEEPS, explore, see_broken, see_wrong, together};
use super::gmp::Sleeper;
use super::primitive::How::{Relaxed, Torn};
use super::primitive::{AtomicU32, AtomicUsize, How, Ordering, Weak};
use super::{mutex_word, park, rwlock_word};

const THREADS: usize = 3;

/// What a waiter tells the queue.
#[derive(Clone, Copy, PartialEq, Debug)]
enum What {
    New,
    Lost,
    Reads,
    Writes,
}

/// A thread that waits.
struct Waiter {
    wake: AtomicU32,
    sleeper: Sleeper,
    /// What it is readied with.
    passed: UnsafeCell<bool>,
}

struct Lock {
    word: AtomicU32,
    queue: Mutex<VecDeque<(usize, What)>>,
    /// One more, for the user that comes after a thread is abandoned.
    waiters: [Waiter; THREADS + 1],
    data: UnsafeCell<usize>,
    /// The thread that was readied last to compete.
    woken: AtomicUsize,
    /// By thread: its run has ended.
    abandoned: [AtomicU32; THREADS + 1],
    steps: Steps,
}

// SAFETY: loom checks the accesses of the cells.
unsafe impl Send for Lock {}
// SAFETY: loom checks the accesses of the cells.
unsafe impl Sync for Lock {}

#[derive(Clone, Copy, PartialEq)]
enum Steps {
    Right,
    /// A waiter that was readied does not say so when it competes.
    WokenStays,
    /// The queue is unlocked before the waiter is in it.
    QueuedLate,
    /// The waiter is readied before the mutex is released.
    ReadiedFirst,
    /// The flag for the waiters that are left is forgotten.
    MoreForgotten,
    /// The holder does not see that the waiter that was readied is abandoned.
    AbandonedUnseenByHolder,
    /// One that queues does not see it.
    AbandonedUnseenByWaiter,
}

type Queue<'a> = MutexGuard<'a, VecDeque<(usize, What)>>;

impl Lock {
    fn new(steps: Steps) -> Arc<Self> {
        let waiter = || Waiter {
            wake: AtomicU32::new(0),
            sleeper: Sleeper::new(),
            passed: UnsafeCell::new(false),
        };
        Arc::new(Self {
            word: AtomicU32::new(0),
            queue: Mutex::new(VecDeque::new()),
            waiters: std::array::from_fn(|_| waiter()),
            data: UnsafeCell::new(0),
            woken: AtomicUsize::new(0),
            abandoned: std::array::from_fn(|_| AtomicU32::new(0)),
            steps,
        })
    }

    fn lock_queue(&self) -> Queue<'_> {
        self.queue.lock().expect("no thread panics with the queue")
    }

    /// Parks in the queue, and unlocks it. Returns what the thread was readied with.
    fn park(&self, thread: usize, what: What, queue: Queue<'_>) -> bool {
        let waiter = &self.waiters[thread];
        let push = |mut queue: Queue<'_>| match what {
            What::Lost => queue.push_front((thread, what)),
            _ => queue.push_back((thread, what)),
        };
        let unlock = || {
            if self.steps == Steps::QueuedLate {
                drop(queue);
                push(self.lock_queue());
            } else {
                push(queue);
            }
        };
        let sleep = |word: &_, value| waiter.sleeper.wait(word, value);
        park::park_thread(&waiter.wake, unlock, sleep);
        // SAFETY: loom checks that nothing writes.
        waiter.passed.with(|passed| unsafe { *passed })
    }

    fn ready(&self, thread: usize, passed: bool) {
        let waiter = &self.waiters[thread];
        // SAFETY: loom checks that nothing else has access.
        waiter.passed.with_mut(|place| unsafe { *place = passed });
        park::ready_thread(&waiter.wake, |_| waiter.sleeper.wake());
    }

    fn write(&self) {
        // SAFETY: loom checks that nothing else has access.
        self.data.with_mut(|data| unsafe { *data += 1 });
    }

    fn read(&self) -> usize {
        // SAFETY: loom checks that nothing writes.
        self.data.with(|data| unsafe { *data })
    }

    /// `RawMutex::lock`.
    fn lock(&self, thread: usize) {
        let is_locked = self.lock_unless(thread, || false);
        assert!(is_locked);
    }

    /// [`Self::lock`], unless the thread is abandoned after it was readied to compete. Returns
    /// whether the mutex was locked.
    fn lock_unless(&self, thread: usize, is_abandoned: impl Fn() -> bool) -> bool {
        if mutex_word::try_lock(&self.word) {
            return true;
        }
        let mut what = What::New;
        loop {
            let queue = self.lock_queue();
            let was_woken = what == What::Lost && self.steps != Steps::WokenStays;
            let sees = self.steps != Steps::AbandonedUnseenByWaiter;
            let clears_woken = was_woken || sees && self.is_woken_abandoned();
            if mutex_word::lock_or_queue(&self.word, clears_woken) {
                return true;
            }
            if self.park(thread, what, queue) {
                return true;
            }
            if is_abandoned() {
                return false;
            }
            what = What::Lost;
        }
    }

    /// `RawMutex::is_woken_abandoned`.
    fn is_woken_abandoned(&self) -> bool {
        let woken = self.woken.load(Ordering::Relaxed);
        self.abandoned[woken].load(Ordering::Relaxed) == 1
    }

    /// `RawMutex::unlock`.
    fn unlock(&self) {
        let sees = self.steps != Steps::AbandonedUnseenByHolder;
        if mutex_word::unlock(&self.word, || sees && self.is_woken_abandoned()) {
            return;
        }
        let mut queue = self.lock_queue();
        let first = queue.pop_front();
        let next = match first {
            None => mutex_word::Next::None,
            Some((_, What::Lost)) => mutex_word::Next::Owns,
            Some((thread, _)) => {
                self.woken.store(thread, Ordering::Relaxed);
                mutex_word::Next::Competes
            }
        };
        let ready = || {
            if let Some((thread, _)) = first {
                self.ready(thread, next == mutex_word::Next::Owns);
            }
        };
        let more = !queue.is_empty() && self.steps != Steps::MoreForgotten;
        if self.steps == Steps::ReadiedFirst {
            ready();
            drop(queue);
            mutex_word::pass_on(&self.word, next, more);
            return;
        }
        mutex_word::pass_on(&self.word, next, more);
        drop(queue);
        ready();
    }

    /// `RawRwLock::wait`.
    fn wait(&self, thread: usize, what: What, lock_or_queue: fn(&AtomicU32) -> bool) {
        let queue = self.lock_queue();
        if !lock_or_queue(&self.word) {
            self.park(thread, what, queue);
        }
    }

    /// `RawRwLock::hand_over`.
    fn hand_over(&self) {
        let mut queue = self.lock_queue();
        let mut taken: Vec<_> = queue.pop_front().into_iter().collect();
        let next = match taken.first() {
            None => rwlock_word::Next::None,
            Some((_, What::Writes)) => rwlock_word::Next::Writer,
            Some(_) => {
                while queue.front().is_some_and(|waiter| waiter.1 == What::Reads) {
                    taken.extend(queue.pop_front());
                }
                rwlock_word::Next::Readers(taken.len() as u32)
            }
        };
        let more = !queue.is_empty() && self.steps != Steps::MoreForgotten;
        rwlock_word::hand_over(&self.word, next, more);
        drop(queue);
        taken.into_iter().for_each(|(thread, _)| self.ready(thread, true));
    }

    fn lock_and_write(&self, thread: usize) {
        if !rwlock_word::try_write(&self.word) {
            self.wait(thread, What::Writes, rwlock_word::write_or_queue);
        }
        self.write();
        if !rwlock_word::unlock_write(&self.word) {
            self.hand_over();
        }
    }

    fn lock_and_read(&self, thread: usize) {
        if !rwlock_word::try_read(&self.word) {
            self.wait(thread, What::Reads, rwlock_word::read_or_queue);
        }
        self.read();
        if !rwlock_word::unlock_read(&self.word) {
            self.hand_over();
        }
    }
}

fn all(lock: &Arc<Lock>, body: impl Fn(&Lock, usize) + Copy + 'static) {
    let thread = |thread: usize| -> Body {
        let lock = Arc::clone(lock);
        Box::new(move || body(&lock, thread))
    };
    together((0..THREADS).map(thread).collect());
}

/// Each thread locks the mutex once, and the first one twice: its second lock competes with
/// waiters.
fn mutex_in(steps: Steps) {
    let lock = Lock::new(steps);
    all(&lock, |lock, thread| {
        for _ in 0..if thread == 0 { 2 } else { 1 } {
            lock.lock(thread);
            lock.write();
            lock.unlock();
        }
    });
    assert_eq!(lock.read(), THREADS + 1);
}

/// The run of the last thread ends after that thread was readied to compete. Another user comes
/// then, which is run by the same thread.
fn abandoned_in(steps: Steps) {
    const LAST: usize = THREADS - 1;
    let lock = Lock::new(steps);
    all(&lock, |lock, thread| {
        if thread < LAST {
            lock.lock(thread);
        } else if !lock.lock_unless(thread, || true) {
            lock.abandoned[thread].store(1, Ordering::Relaxed);
            // The waiter of the abandoned thread stays as it is.
            lock.lock(thread + 1);
        }
        lock.write();
        lock.unlock();
    });
    assert_eq!(lock.read(), THREADS);
}

/// The first `writers` threads write, the others read.
fn rwlock_in(writers: usize, steps: Steps) {
    let lock = Lock::new(steps);
    all(&lock, move |lock, thread| match thread < writers {
        true => lock.lock_and_write(thread),
        false => lock.lock_and_read(thread),
    });
    assert_eq!(lock.read(), writers);
}

fn mutex() {
    mutex_in(Steps::Right);
}

fn abandoned() {
    abandoned_in(Steps::Right);
}

fn one_writer() {
    rwlock_in(1, Steps::Right);
}

fn two_writers() {
    rwlock_in(2, Steps::Right);
}

const MUTEX: Model = Model {
    name: "threads lock a mutex",
    body: mutex,
    preemptions: Some(2),
    least: 1000,
    without: &[],
};

const ABANDONED: Model = Model {
    name: "a waiter of a mutex is abandoned",
    body: abandoned,
    preemptions: Some(3),
    least: 1000,
    without: &[],
};

const ONE_WRITER: Model = Model {
    name: "a writer and readers",
    body: one_writer,
    preemptions: Some(3),
    least: 1000,
    without: &[],
};

const TWO_WRITERS: Model = Model {
    name: "writers and a reader",
    body: two_writers,
    preemptions: Some(3),
    least: 1000,
    without: &[],
};

#[test]
fn a_mutex_has_one_holder_and_no_waiter_sleeps_for_ever() {
    explore(MUTEX);
    explore(ABANDONED);
}

#[test]
fn a_lock_has_readers_or_a_writer_and_no_waiter_sleeps_for_ever() {
    explore(ONE_WRITER);
    explore(TWO_WRITERS);
}

#[test]
fn wrong_steps_of_a_mutex_are_seen() {
    let model = |body| Model { body, ..MUTEX };
    see_wrong(model(|| mutex_in(Steps::WokenStays)), SLEEPS);
    see_wrong(model(|| mutex_in(Steps::QueuedLate)), SLEEPS);
    see_wrong(model(|| mutex_in(Steps::ReadiedFirst)), SLEEPS);
    see_wrong(model(|| mutex_in(Steps::MoreForgotten)), SLEEPS);
    let model = |body| Model { body, ..ABANDONED };
    see_wrong(model(|| abandoned_in(Steps::AbandonedUnseenByHolder)), SLEEPS);
    see_wrong(model(|| abandoned_in(Steps::AbandonedUnseenByWaiter)), SLEEPS);
}

#[test]
fn wrong_steps_of_a_reader_writer_lock_are_seen() {
    let model = |body| Model { body, ..TWO_WRITERS };
    see_wrong(model(|| rwlock_in(2, Steps::QueuedLate)), SLEEPS);
    see_wrong(model(|| rwlock_in(2, Steps::MoreForgotten)), SLEEPS);
}

const fn of_mutex(function: &'static str, operation: &'static str, how: How) -> Weak {
    Weak { file: "mutex_word.rs", function, operation, how }
}

const fn of_rwlock(function: &'static str, operation: &'static str, how: How) -> Weak {
    Weak { file: "rwlock_word.rs", function, operation, how }
}

const EXCHANGE: &str = "word.compare_exchange";

pub(crate) const MUTANTS: &[Mutant] = &[
    Mutant { weak: of_mutex("try_lock", EXCHANGE, Relaxed), model: MUTEX, says: RACE },
    Mutant { weak: of_mutex("try_lock", EXCHANGE, Torn), model: MUTEX, says: RACE },
    Mutant { weak: of_mutex("lock_or_queue", EXCHANGE, Relaxed), model: MUTEX, says: RACE },
    Mutant { weak: of_mutex("lock_or_queue", EXCHANGE, Torn), model: MUTEX, says: SLEEPS },
    Mutant { weak: of_mutex("unlock", EXCHANGE, Relaxed), model: MUTEX, says: RACE },
    Mutant { weak: of_mutex("unlock", EXCHANGE, Torn), model: MUTEX, says: SLEEPS },
    Mutant { weak: of_mutex("pass_on", "word.store", Relaxed), model: MUTEX, says: RACE },
    Mutant { weak: of_rwlock("try_read", EXCHANGE, Relaxed), model: ONE_WRITER, says: RACE },
    Mutant { weak: of_rwlock("try_read", EXCHANGE, Torn), model: ONE_WRITER, says: RACE },
    Mutant { weak: of_rwlock("try_write", EXCHANGE, Relaxed), model: TWO_WRITERS, says: RACE },
    Mutant { weak: of_rwlock("try_write", EXCHANGE, Torn), model: TWO_WRITERS, says: RACE },
    Mutant { weak: of_rwlock("read_or_queue", EXCHANGE, Relaxed), model: ONE_WRITER, says: RACE },
    Mutant { weak: of_rwlock("read_or_queue", EXCHANGE, Torn), model: ONE_WRITER, says: SLEEPS },
    Mutant { weak: of_rwlock("write_or_queue", EXCHANGE, Relaxed), model: TWO_WRITERS, says: RACE },
    Mutant { weak: of_rwlock("write_or_queue", EXCHANGE, Torn), model: TWO_WRITERS, says: SLEEPS },
    Mutant {
        weak: of_rwlock("unlock_read", "word.fetch_sub", Relaxed),
        model: ONE_WRITER,
        says: RACE,
    },
    Mutant {
        weak: of_rwlock("unlock_read", "word.fetch_sub", Torn),
        model: ONE_WRITER,
        // Without checks for overflow the word wraps, and threads wait for ever.
        says: if cfg!(debug_assertions) { "overflow" } else { "deadlock" },
    },
    Mutant { weak: of_rwlock("unlock_write", EXCHANGE, Relaxed), model: ONE_WRITER, says: RACE },
    Mutant { weak: of_rwlock("unlock_write", EXCHANGE, Torn), model: ONE_WRITER, says: SLEEPS },
    Mutant { weak: of_rwlock("hand_over", "word.store", Relaxed), model: ONE_WRITER, says: RACE },
];

#[test]
fn locks_that_are_weakened_break() {
    see_broken(MUTANTS);
}
