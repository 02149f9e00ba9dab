//! A model G, M and runtime instance: data, and the small traits by which the functions of `sync/`
//! lead them. The steps of the protocols are those functions; none is repeated here.
//!
//! Left out is what has no part in the protocols: timers, the global queue, the run-next slot,
//! clocks.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool as StdAtomicBool, Ordering as Std};

use loom::cell::UnsafeCell;
use loom::thread::{self, Thread};

use super::idle::{self, Idle, Instance, Parking, Searcher};
use super::inbox::{Inbox, Linked};
use super::park;
use super::primitive::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use super::runq::{RunQueue, Stolen};
use super::status::{HasStatus, RUNNABLE, RUNNING, transition};
use super::suspend::{self, SuspendState, Suspendable};

/// What a thread sleeps on, as futex(2) has it.
pub(crate) struct Sleeper(Mutex<Option<Thread>>);

impl Sleeper {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(None))
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Option<Thread>> {
        self.0.lock().expect("no thread panics with the lock")
    }

    /// Sleeps while the word has that value. The kernel compares the newest value, and no wake-up
    /// comes between that and the sleep.
    pub(crate) fn wait(&self, word: &AtomicU32, expected: u32) {
        let newest = word.compare_exchange(u32::MAX, 0, Ordering::Relaxed, Ordering::Relaxed);
        if newest == Err(expected) {
            *self.waiting() = Some(thread::current());
            thread::park();
        }
    }

    /// Wakes the thread, if it sleeps.
    pub(crate) fn wake(&self) {
        if let Some(thread) = self.waiting().take() {
            thread.unpark();
        }
    }
}

/// A saved pc.
const PC: usize = 0x1000;

/// A goroutine. Its stack is one value that its thread writes to.
pub(crate) struct G {
    status: AtomicU32,
    pub(crate) saved_pc: AtomicUsize,
    pub(crate) suspend: SuspendState,
    resumed: Sleeper,
    stack: UnsafeCell<u32>,
    /// What the M that runs it may write, and the M that queues it reads: whether it is migratable.
    is_for_all: UnsafeCell<bool>,
    link: UnsafeCell<*mut G>,
}

// SAFETY: loom checks the accesses of the cells.
unsafe impl Send for G {}
// SAFETY: loom checks the accesses of the cells.
unsafe impl Sync for G {}

impl HasStatus for G {
    fn status_word(&self) -> &AtomicU32 {
        &self.status
    }

    fn refuse(&self, now: u32, from: u32, _to: u32) -> ! {
        panic!("a transition from {from} of a goroutine in status {now}")
    }
}

impl Suspendable for G {
    fn suspend_state(&self) -> &SuspendState {
        &self.suspend
    }

    fn saved_pc(&self) -> &AtomicUsize {
        &self.saved_pc
    }
}

impl Linked for G {
    unsafe fn set_link(this: *mut Self, next: *mut Self) {
        // SAFETY: a G of this model, and the caller's, which loom checks.
        unsafe { (*this).link.with_mut(|link| *link = next) };
    }

    unsafe fn link(this: *mut Self) -> *mut Self {
        // SAFETY: a G of this model, and the caller's, which loom checks.
        unsafe { (*this).link.with(|link| *link) }
    }
}

impl G {
    /// A goroutine that runs, or that was parked with its context saved.
    pub(crate) fn new(status: u32) -> Self {
        Self {
            status: AtomicU32::new(status),
            saved_pc: AtomicUsize::new(if status == RUNNING { 0 } else { PC }),
            suspend: SuspendState::new(),
            resumed: Sleeper::new(),
            stack: UnsafeCell::new(0),
            is_for_all: UnsafeCell::new(true),
            link: UnsafeCell::new(ptr::null_mut()),
        }
    }

    pub(crate) fn as_ptr(&self) -> *mut Self {
        ptr::from_ref(self).cast_mut()
    }

    /// The M comes to run it. To be descheduled is to go through the scheduler, which finds nothing
    /// else to run.
    pub(crate) fn begin_running(&self) {
        let sleep = |word: &_, value| self.resumed.wait(word, value);
        let deschedule = || {
            self.save_context();
            transition(self, RUNNING, RUNNABLE);
            self.begin_running();
            self.resume_context();
        };
        if suspend::begin_running(self) {
            suspend::yield_to_suspender(self, sleep, deschedule);
        }
    }

    /// The thread that has suspended it resumes it.
    pub(crate) fn resume(&self) {
        self.suspend.resume(|_| self.resumed.wake());
    }

    /// The goroutine runs.
    pub(crate) fn write_stack(&self) {
        // SAFETY: loom checks that nothing else has access.
        self.stack.with_mut(|stack| unsafe { *stack += 1 });
    }

    /// Another thread reads what the goroutine writes.
    pub(crate) fn read_stack(&self) -> u32 {
        // SAFETY: loom checks that nothing writes.
        self.stack.with(|stack| unsafe { *stack })
    }

    /// Whether any M may run it.
    pub(crate) fn is_for_all(&self) -> bool {
        // SAFETY: loom checks that nothing writes.
        self.is_for_all.with(|is_for_all| unsafe { *is_for_all })
    }

    /// The stub that resumes a context. On x86-64 a store is never seen before an earlier one of
    /// its thread: here by Release of the next one.
    pub(crate) fn resume_context(&self) {
        assert!(self.saved_pc.load(Ordering::Relaxed) == PC, "there is no context to resume");
        self.saved_pc.store(0, Ordering::Relaxed);
        self.write_stack();
        // SAFETY: loom checks that nothing else has access.
        self.is_for_all.with_mut(|is_for_all| unsafe { *is_for_all = true });
    }

    /// The stub that saves a context.
    pub(crate) fn save_context(&self) {
        self.write_stack();
        self.saved_pc.store(PC, Ordering::Release);
    }
}

/// An M with its P.
pub(crate) struct M {
    pub(crate) runq: RunQueue<G, 4>,
    pub(crate) inbox: Inbox<G>,
    pub(crate) local: RefCell<VecDeque<*mut G>>,
    pub(crate) parking: Parking,
    sleeper: Sleeper,
    /// Another thread has woken it to search, and it searches.
    is_woken_to_search: StdAtomicBool,
}

impl M {
    /// Hands a goroutine to the M that it belongs to.
    pub(crate) fn push_remote(&self, g: &G) {
        // SAFETY: the caller has readied the goroutine, which this model keeps; it leaves the inbox
        // by `drain`.
        unsafe {
            park::push_remote(&self.inbox, &self.parking, g.as_ptr(), |_| self.sleeper.wake());
        }
    }
}

/// Where an M is on its way through the search.
#[derive(Clone, Copy)]
pub(crate) enum State {
    Awake,
    /// It is counted as spinning.
    Spinning,
    /// It has announced its sleep, and has found nothing.
    Sleeping,
}

/// A runtime instance.
pub(crate) struct Run {
    pub(crate) ms: Vec<M>,
    pub(crate) idle: Idle,
    pub(crate) stopping: AtomicBool,
    pub(crate) gs: Vec<G>,
    /// Sleeps reach a limit once before they are real ones: the last M checks for a deadlock then.
    pub(crate) sleeps_time_out: bool,
}

// SAFETY: the thread of an M alone touches what of it is not Sync.
unsafe impl Sync for Run {}
// SAFETY: the pointers are to goroutines of the same run.
unsafe impl Send for Run {}

impl Run {
    pub(crate) fn new(ms: usize, gs: Vec<G>) -> Self {
        let m = || M {
            runq: RunQueue::new(),
            inbox: Inbox::new(),
            local: RefCell::default(),
            parking: Parking::new(),
            sleeper: Sleeper::new(),
            is_woken_to_search: StdAtomicBool::new(false),
        };
        Self {
            ms: (0..ms).map(|_| m()).collect(),
            idle: Idle::new(),
            stopping: AtomicBool::new(false),
            gs,
            sleeps_time_out: false,
        }
    }

    fn m_of(&self, parking: &Parking) -> &M {
        self.ms.iter().find(|m| ptr::eq(&m.parking, parking)).expect("an M of this run")
    }

    /// Publishes a goroutine that any M may run.
    pub(crate) fn publish(&self, m: &M, g: &G) {
        park::publish(|| g.is_for_all(), || self.enqueue(m, g), || idle::wake_one(self));
    }

    pub(crate) fn enqueue(&self, m: &M, g: &G) {
        m.runq.push(g.as_ptr()).expect("there is room");
    }

    pub(crate) fn pick_next(&self, m: &M) -> *mut G {
        if self.stopping.load(Ordering::Relaxed) {
            return ptr::null_mut();
        }
        if !m.inbox.is_empty() {
            m.inbox.drain(|g| m.local.borrow_mut().push_back(g));
        }
        match m.runq.pop() {
            g if g.is_null() => m.local.borrow_mut().pop_front().unwrap_or(ptr::null_mut()),
            g => g,
        }
    }

    /// Finds a goroutine for an M that is in this state, and sleeps until there is one.
    pub(crate) fn find_runnable(&self, m: &M, state: State) -> Option<*mut G> {
        let m = Search { run: self, m };
        let is_spinning = match state {
            State::Awake => false,
            State::Spinning => true,
            State::Sleeping => idle::sleep(&m, 1),
        };
        idle::search(&m, is_spinning)
    }

    /// The run ends.
    pub(crate) fn stop(&self) {
        idle::stop(self, |parking, _| self.m_of(parking).sleeper.wake());
    }
}

impl Instance for Run {
    fn idle(&self) -> &Idle {
        &self.idle
    }

    fn stopping(&self) -> &AtomicBool {
        &self.stopping
    }

    fn parkings(&self) -> impl Iterator<Item = &Parking> + Clone {
        self.ms.iter().map(|m| &m.parking)
    }

    fn work_exists(&self) -> bool {
        self.ms.iter().any(|m| !m.runq.is_empty())
    }

    fn wake(&self, chosen: &Parking, _word: &AtomicU32) {
        // In one step with the exchange that has chosen it: loom comes in between only where its
        // own primitives are used.
        let searches = self.ms.iter().any(|m| m.is_woken_to_search.load(Std::Relaxed));
        assert!(!searches, "two are woken to search");
        let m = self.m_of(chosen);
        m.is_woken_to_search.store(true, Std::Relaxed);
        m.sleeper.wake();
    }
}

/// An M that searches for something to run.
struct Search<'a> {
    run: &'a Run,
    m: &'a M,
}

impl Searcher for Search<'_> {
    type Instance = Run;
    type Found = *mut G;

    fn instance(&self) -> &Run {
        self.run
    }

    fn parking(&self) -> &Parking {
        &self.m.parking
    }

    fn find(&self) -> Option<*mut G> {
        let Self { run, m } = self;
        let g = run.pick_next(m);
        if !g.is_null() {
            return Some(g);
        }
        if run.stopping.load(Ordering::Relaxed) {
            return None;
        }
        let mut others = run.ms.iter().filter(|other| !ptr::eq(*other, *m));
        let stolen = others.find_map(|victim| victim.runq.steal_into(&m.runq));
        stolen.map(|Stolen { first, .. }| first)
    }

    /// Once, for all the times that the crate does it. (An M that is patient checks fewer queues,
    /// and so finds no more.)
    fn spin(&self, is_spinning: bool) -> Option<*mut G> {
        if is_spinning { self.find() } else { None }
    }

    fn has_own_work(&self) -> bool {
        !self.m.inbox.is_empty()
    }

    fn sleep(&self, _sleeping: usize) -> bool {
        let M { parking, sleeper, .. } = self.m;
        let timed_out = match self.run.sleeps_time_out {
            true => parking.park(|_, _| {}, true),
            false => None,
        };
        let sleep = |word: &_, value| sleeper.wait(word, value);
        let mut asleep = || parking.park(sleep, false).expect("this sleep has no limit");
        timed_out.unwrap_or_else(&mut asleep)
    }

    fn has_woken(&self) {}

    fn stop_spinning(&self) -> bool {
        let was_last = self.run.idle.stop_spinning();
        self.m.is_woken_to_search.store(false, Std::Relaxed);
        was_last
    }
}
