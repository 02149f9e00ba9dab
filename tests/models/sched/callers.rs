//! The steps of those who use the parts that the models are about, in the order in which `g.rs`,
//! `m.rs`, `sched.rs` and `run.rs` make them, without what has no part in it: timers, the global
//! queue, statistics.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool as StdAtomicBool, Ordering as Std};

use loom::cell::UnsafeCell;
use loom::thread::{self, Thread};

use super::idle::{Idle, PARKED, Parking};
use super::inbox::{Inbox, Linked};
use super::primitive::{AtomicBool, AtomicU32, AtomicUsize, Ordering, heavy_fence, light_fence};
use super::runq::{RunQueue, Stolen};
use super::suspend::{self, SuspendState};

/// A thread that sleeps on a word, by futex(2).
pub(crate) struct Sleeper(Mutex<Option<Thread>>);

impl Sleeper {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(None))
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Option<Thread>> {
        self.0.lock().expect("nobody panics with the lock")
    }

    /// The kernel looks at the newest value, and nobody wakes anybody between that and the sleep.
    pub(crate) fn wait(&self, word: &AtomicU32, expected: u32) {
        let newest = word.compare_exchange(u32::MAX, 0, Ordering::Relaxed, Ordering::Relaxed);
        if newest == Err(expected) {
            *self.waiting() = Some(thread::current());
            thread::park();
        }
    }

    /// Wakes nobody if nobody sleeps.
    pub(crate) fn wake(&self) {
        if let Some(thread) = self.waiting().take() {
            thread.unpark();
        }
    }
}

/// A saved pc.
const PC: usize = 0x1000;

/// A goroutine. Its stack is something that its thread writes to.
pub(crate) struct Goroutine {
    pub(crate) status: AtomicU32,
    pub(crate) saved_pc: AtomicUsize,
    pub(crate) suspend: SuspendState,
    let_go: Sleeper,
    stack: UnsafeCell<u32>,
    link: UnsafeCell<*mut Goroutine>,
}

// SAFETY: loom checks the accesses of the cells.
unsafe impl Send for Goroutine {}
// SAFETY: as above.
unsafe impl Sync for Goroutine {}

impl Goroutine {
    /// One that was parked with its context saved, or that runs.
    pub(crate) fn new(status: u32) -> Self {
        Self {
            status: AtomicU32::new(status),
            saved_pc: AtomicUsize::new(if status == suspend::RUNNING { 0 } else { PC }),
            suspend: SuspendState::new(),
            let_go: Sleeper::new(),
            stack: UnsafeCell::new(0),
            link: UnsafeCell::new(ptr::null_mut()),
        }
    }

    pub(crate) fn as_ptr(&self) -> *mut Self {
        ptr::from_ref(self).cast_mut()
    }

    /// `G::transition`.
    pub(crate) fn transition(&self, from: u32, to: u32) {
        let now = self.status.load(Ordering::Relaxed);
        assert!(now == from, "a transition from {from} of one in state {now}");
        self.status.store(to, Ordering::Release);
    }

    /// What `make_current` does first, and `yield_to_suspender`.
    pub(crate) fn begin_to_run(&self) {
        self.transition(suspend::RUNNABLE, suspend::RUNNING);
        while self.suspend.is_requested() {
            if !self.wait_while_suspended() {
                // It is on its stack, gives way (`preempt0`), and nobody else is there to run.
                self.save_context();
                self.transition(suspend::RUNNING, suspend::RUNNABLE);
                self.begin_to_run();
                self.continue_context();
            }
        }
    }

    /// `G::wait_while_suspended`.
    fn wait_while_suspended(&self) -> bool {
        let held = self.suspend.await_resume(&self.status, &self.saved_pc);
        if held {
            self.let_go.wait(self.suspend.word(), suspend::AWAITED);
            self.status.store(suspend::RUNNING, Ordering::Release);
        }
        held
    }

    /// What `Still` does when it is dropped.
    pub(crate) fn let_go(&self) {
        if self.suspend.resume() {
            self.let_go.wake();
        }
    }

    /// The goroutine runs.
    pub(crate) fn write_stack(&self) {
        // SAFETY: loom checks that nobody else has access.
        self.stack.with_mut(|stack| unsafe { *stack += 1 });
    }

    /// Somebody walks the stack.
    pub(crate) fn read_stack(&self) -> u32 {
        // SAFETY: loom checks that nobody writes.
        self.stack.with(|stack| unsafe { *stack })
    }

    /// The stub that continues a context. On x86-64 a store is never seen before an earlier one of
    /// its thread: here by Release.
    pub(crate) fn continue_context(&self) {
        assert!(self.saved_pc.load(Ordering::Relaxed) == PC, "there is no context to continue");
        self.saved_pc.store(0, Ordering::Relaxed);
        self.write_stack();
    }

    /// The stub that saves a context.
    pub(crate) fn save_context(&self) {
        self.write_stack();
        self.saved_pc.store(PC, Ordering::Release);
    }
}

impl Linked for Goroutine {
    unsafe fn set_link(this: *mut Self, next: *mut Self) {
        // SAFETY: the caller's, which loom checks.
        unsafe { (*this).link.with_mut(|link| *link = next) };
    }

    unsafe fn link(this: *mut Self) -> *mut Self {
        // SAFETY: as above.
        unsafe { (*this).link.with(|link| *link) }
    }
}

/// One M with its P.
pub(crate) struct M {
    pub(crate) runq: RunQueue<Goroutine, 4>,
    pub(crate) mail: Inbox<Goroutine>,
    pub(crate) local: RefCell<VecDeque<*mut Goroutine>>,
    pub(crate) parking: Parking,
    sleeper: Sleeper,
    /// Somebody has woken it as one that looks for work, and it looks.
    is_woken_to_look: StdAtomicBool,
}

/// Where an M is on its way through `find_runnable_slow`.
#[derive(Clone, Copy)]
pub(crate) enum State {
    Awake,
    /// Counted as one that looks for work.
    Looks,
    /// It has announced that it sleeps, and found nothing.
    Sleeps,
}

/// One run.
pub(crate) struct Run {
    pub(crate) ms: Vec<M>,
    pub(crate) idle: Idle,
    pub(crate) stopping: AtomicBool,
    pub(crate) gs: Vec<Goroutine>,
    /// An M that does not sleep because there is work does not count as one that looks for it.
    pub(crate) forgets_who_looks: bool,
}

// SAFETY: what is not Sync is touched by the thread of its M only.
unsafe impl Sync for Run {}
// SAFETY: the pointers are to goroutines of the same run.
unsafe impl Send for Run {}

/// How often an M looks before it sleeps, without the first time. (Looks at queues of others are left out
/// while it is patient: who looks at less finds no more.)
const SPINS: usize = 1;

impl Run {
    pub(crate) fn new(ms: usize, gs: Vec<Goroutine>) -> Self {
        let m = || M {
            runq: RunQueue::new(),
            mail: Inbox::new(),
            local: RefCell::default(),
            parking: Parking::new(),
            sleeper: Sleeper::new(),
            is_woken_to_look: StdAtomicBool::new(false),
        };
        Self {
            ms: (0..ms).map(|_| m()).collect(),
            idle: Idle::new(),
            stopping: AtomicBool::new(false),
            gs,
            forgets_who_looks: false,
        }
    }

    /// `Sched::wake_one`.
    pub(crate) fn wake_one(&self) {
        if self.idle.someone_sleeps() {
            let parkings = self.ms.iter().map(|m| &m.parking);
            if let Some(parking) = self.idle.choose(parkings, || self.work_exists()) {
                // In one step with the exchange that has woken it: loom comes in between only where
                // its own primitives are used.
                let looks = self.ms.iter().any(|m| m.is_woken_to_look.load(Std::Relaxed));
                assert!(!looks, "two are woken to look");
                let chosen = self.ms.iter().find(|m| ptr::eq(&m.parking, parking));
                let chosen = chosen.expect("one of them");
                chosen.is_woken_to_look.store(true, Std::Relaxed);
                chosen.sleeper.wake();
            }
        }
    }

    fn work_exists(&self) -> bool {
        self.ms.iter().any(|m| !m.runq.is_empty())
    }

    /// Publishes a goroutine that any M may run: `enqueue` and `wake_one`.
    pub(crate) fn publish(&self, m: &M, g: &Goroutine) {
        m.runq.push(g.as_ptr()).expect("there is room");
        self.wake_one();
    }

    pub(crate) fn pick_next(&self, m: &M) -> *mut Goroutine {
        if self.stopping.load(Ordering::Relaxed) {
            return ptr::null_mut();
        }
        if !m.mail.is_empty() {
            m.mail.drain(|g| m.local.borrow_mut().push_back(g));
        }
        match m.runq.pop() {
            g if g.is_null() => m.local.borrow_mut().pop_front().unwrap_or(ptr::null_mut()),
            g => g,
        }
    }

    fn find_without_sleep(&self, m: &M) -> Option<*mut Goroutine> {
        let g = self.pick_next(m);
        if !g.is_null() {
            return Some(g);
        }
        if self.stopping.load(Ordering::Relaxed) {
            return None;
        }
        let mut others = self.ms.iter().filter(|other| !ptr::eq(*other, m));
        let stolen = others.find_map(|victim| victim.runq.steal_into(&m.runq));
        stolen.map(|Stolen { first, .. }| first)
    }

    /// `find_runnable_slow`.
    pub(crate) fn find_runnable(&self, m: &M, state: State) -> Option<*mut Goroutine> {
        let mut spinning = match state {
            State::Awake => false,
            State::Looks => true,
            State::Sleeps => self.sleep(m),
        };
        loop {
            let mut found = self.find_without_sleep(m);
            if found.is_none() && !self.stopping.load(Ordering::Acquire) {
                spinning = spinning || self.idle.start_spinning(self.ms.len());
                for _ in 0..if spinning { SPINS } else { 0 } {
                    found = self.find_without_sleep(m);
                    if found.is_some() {
                        break;
                    }
                }
            }
            if std::mem::take(&mut spinning) {
                let was_last = self.idle.stop_spinning();
                m.is_woken_to_look.store(false, Std::Relaxed);
                if was_last && found.is_some() && self.work_exists() {
                    self.wake_one();
                }
            }
            if self.stopping.load(Ordering::Acquire) {
                return None;
            }
            if found.is_some() {
                return found;
            }
            spinning = self.sleep_until_work(m);
        }
    }

    fn sleep_until_work(&self, m: &M) -> bool {
        self.idle.prepare_sleep(&m.parking);
        let stay = !m.mail.is_empty() || self.work_exists() || self.stopping.load(Ordering::SeqCst);
        if !stay {
            return self.sleep(m);
        }
        let spinning = if self.forgets_who_looks {
            m.parking.end()
        } else {
            self.idle.stay_awake(&m.parking);
            true
        };
        self.idle.leave_sleep();
        spinning
    }

    /// `M::park`, and what follows.
    fn sleep(&self, m: &M) -> bool {
        if m.parking.is_parked() {
            m.sleeper.wait(m.parking.word(), PARKED);
        }
        let woken_spinning = m.parking.end();
        self.idle.leave_sleep();
        woken_spinning
    }

    /// `run::stop`.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        heavy_fence();
        self.ms.iter().for_each(M::unpark);
    }
}

impl M {
    /// `M::deliver`.
    pub(crate) fn push_remote(&self, g: &Goroutine) {
        // SAFETY: whoever readied the goroutine has it.
        unsafe { self.mail.push(g.as_ptr()) };
        light_fence();
        self.unpark();
    }

    fn unpark(&self) {
        if self.parking.notify() {
            self.sleeper.wake();
        }
    }
}
