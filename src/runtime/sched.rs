#![allow(unsafe_code, reason = "the scheduler moves between stacks")]
//! The scheduler: who runs next, on which thread, and what a thread does when there is nothing.
//!
//! The story of a goroutine, in time order:
//!
//! 1. `go` takes a dead G with its stack (or makes one), puts the closure at the top of the stack
//!    and the G into the run queue of this P. An M that idles is woken to steal it.
//! 2. An M picks it. From its first instruction on it belongs to that M, unless it is migratable.
//! 3. `gopark` makes it waiting. The goroutine itself picks the next one and switches to it
//!    directly; only if there is none does it call the scheduler on the system stack (`mcall`).
//! 4. `goready` makes it runnable: on its own thread by the run-next slot, from another thread by
//!    the inbox of its M.
//! 5. When its closure returns or panics, `goexit0` runs on the system stack, since the stack may
//!    be used again at once, publishes the end to whoever joins, and schedules.
//!
//! Why a park cannot lose a wake-up: a goroutine that belongs to a thread is resumed by that
//! thread only, and that thread is busy parking it. One that is migratable might be resumed
//! elsewhere before its context is saved, so it always parks through `mcall`, and what makes it
//! visible to its waker is done there, on the system stack.
//!
//! Why an M does not sleep over work: it announces that it will sleep, crosses a heavy fence, and
//! looks at every queue once more; whoever adds work crosses a light fence and then looks for
//! announcements. One of the two sees the other.

use std::any::Any;
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::config::Config;
use super::futex;
use super::g::{self, G, GQueue, Gobuf, Status, TaskType, WaitReason, join_state};
use super::m::{M, RUNQ};
use super::pool;
use super::signal::AltStack;
use super::stack::{self, SizeClass, StackError};
use super::switch::{gogo, goroutine_entry, goswitch, mcall};
use super::throw::throw;
use super::tls::{getg, getm, setg, setm};
use super::{RunError, traceback};

/// The global queue is looked at once in so many rounds, so that it cannot starve.
const GLOBAL_EVERY: u32 = 61;
/// Timers of a busy M are looked at once in so many rounds.
const TIMERS_EVERY: u32 = 16;
/// The local queue goes before the run queue once in so many rounds.
const LOCAL_EVERY: u32 = 8;
/// How often in a row the run-next slot goes before the queues.
const RUN_NEXT_STREAK: u32 = 128;
/// How long an M has slept when it gives memory back and, as the last one, looks for a deadlock.
const IDLE_AFTER: Duration = Duration::from_millis(10);
/// How often a deadlock is looked for then.
const DEADLOCK_EVERY: Duration = Duration::from_secs(1);
/// How often an M without work tries to steal before it sleeps.
const SPINS: u32 = 30;

/// One run of the runtime: its Ms and what they share.
pub(crate) struct Sched {
    run_id: u64,
    ms: Vec<&'static M>,
    class: SizeClass,
    global: Mutex<GlobalQueue>,
    global_len: AtomicUsize,
    /// Ms that looked for work in vain and look on.
    spinning: AtomicUsize,
    /// Ms that sleep or are about to.
    idle: AtomicUsize,
    /// How often an M left the state that `idle` counts.
    wakes: AtomicUsize,
    stopping: AtomicBool,
}

struct GlobalQueue(GQueue);
// SAFETY: behind a lock.
unsafe impl Send for GlobalQueue {}

static RUN_IDS: AtomicU64 = AtomicU64::new(1);
static GOIDS: AtomicU64 = AtomicU64::new(1);

impl Sched {
    pub(crate) fn run_id(&self) -> u64 {
        self.run_id
    }

    pub(crate) fn ms(&self) -> impl Iterator<Item = &'static M> {
        self.ms.iter().copied()
    }

    /// Puts `count` goroutines at the end of the global queue.
    fn push_global(&self, gs: &GQueue, count: usize) {
        let global = self.global.lock().unwrap_or_else(PoisonError::into_inner);
        global.0.append(gs);
        self.global_len.fetch_add(count, Ordering::Release);
    }

    /// Takes one goroutine from the global queue, and with it, for the M's own queue, a fair share
    /// of the others: one lock for many.
    fn pop_global(&self, m: &M) -> *mut G {
        let len = self.global_len.load(Ordering::Acquire);
        if len == 0 {
            return ptr::null_mut();
        }
        let share = (len / self.ms.len()).min(RUNQ / 2).min(m.p.runq.room());
        let global = self.global.lock().unwrap_or_else(PoisonError::into_inner);
        let g = global.0.pop();
        if g.is_null() {
            return g;
        }
        let mut taken = 1;
        while taken < share {
            let more = global.0.pop();
            if more.is_null() {
                break;
            }
            m.p.runq.push(more).expect("there was room, and thieves only make more");
            taken += 1;
        }
        self.global_len.fetch_sub(taken, Ordering::Release);
        g
    }

    /// Wakes one idle M, unless one looks for work already. Called after work was published.
    #[inline(always)]
    fn wake_one(&self) {
        futex::light_fence();
        if self.idle.load(Ordering::Relaxed) != 0 {
            self.wake_one_idle();
        }
    }

    #[inline(never)]
    fn wake_one_idle(&self) {
        // Against one who stops looking, which crosses no heavy fence.
        fence(Ordering::SeqCst);
        // The woken M is counted before it runs, so that a burst of work wakes one M, which wakes
        // the next one when it has found something.
        while self.spinning.load(Ordering::Relaxed) == 0
            && self.spinning.compare_exchange(0, 1, Ordering::SeqCst, Ordering::Relaxed).is_ok()
        {
            if self.ms.iter().any(|m| m.unpark_spinning()) {
                return;
            }
            self.spinning.fetch_sub(1, Ordering::SeqCst);
            // Others may have relied on our looking meanwhile.
            if !work_exists(self) || !self.ms.iter().any(|m| m.is_parked()) {
                return;
            }
        }
    }
}

/// The M of this thread.
///
/// # Safety
/// The thread is an M; the reference is not kept over a suspension of a migratable goroutine.
#[inline(always)]
unsafe fn this_m() -> &'static M {
    // SAFETY: the thread is an M by the contract, and those are immortal.
    unsafe { &*getm() }
}

/// # Safety
/// As for [`this_m`].
#[inline(always)]
unsafe fn sched_of(m: &M) -> &'static Sched {
    // SAFETY: set before the thread became an M, and alive until all its Ms have left.
    unsafe { &*m.sched.load(Ordering::Relaxed) }
}

/// Makes `g` the goroutine that `m` runs. A switch to it follows.
#[inline(always)]
fn make_current(m: &M, g: *mut G) {
    // SAFETY: immortal, and taken from a queue of ours: nobody else may run it.
    let gr = unsafe { &*g };
    gr.transition(Status::Runnable, Status::Running);
    gr.m.store(ptr::from_ref(m).cast_mut(), Ordering::Relaxed);
    let sp = gr.sched.sp();
    if sp < gr.lowest_sp.get() {
        gr.lowest_sp.set(sp);
    }
    gr.switches.store(gr.switches.load(Ordering::Relaxed) + 1, Ordering::Release);
    m.curg.store(g, Ordering::Relaxed);
    setg(g);
}

/// Puts a runnable goroutine at the end of a queue of this M.
#[inline(always)]
fn enqueue(m: &M, g: *mut G) {
    // SAFETY: immortal.
    if belongs_to_thread(unsafe { &*g }) {
        m.local.push(g);
    } else if m.p.runq.push(g).is_err() {
        spill(m, g);
    }
}

/// The run queue is full: half of it and the goroutine go to the global queue.
#[cold]
fn spill(m: &M, g: *mut G) {
    let Some(half) = m.p.runq.take_half() else {
        return enqueue(m, g); // there is room now
    };
    half.push(g);
    // SAFETY: `m` is this thread's M.
    unsafe { sched_of(m) }.push_global(&half, RUNQ / 2 + 1);
}

/// Whether the goroutine may run on its M only.
#[inline(always)]
fn belongs_to_thread(g: &G) -> bool {
    !g.migratable.get() && !g.m.load(Ordering::Relaxed).is_null()
}

/// The next goroutine among those that cost no lock to find, or null. Null also when the run is
/// over: the caller then goes to the system stack, where the M stops.
#[inline(always)]
fn pick_next(m: &M) -> *mut G {
    let p = &m.p;
    let tick = p.tick.get().wrapping_add(1);
    p.tick.set(tick);
    // SAFETY: `m` is this thread's M.
    let sched = unsafe { sched_of(m) };
    if sched.stopping.load(Ordering::Relaxed) {
        return ptr::null_mut();
    }
    if m.has_mail() {
        m.take_mail();
    }
    if m.has_timers.load(Ordering::Relaxed) && tick.is_multiple_of(TIMERS_EVERY) {
        run_timers(m);
    }
    if tick.is_multiple_of(GLOBAL_EVERY) {
        let g = sched.pop_global(m);
        if !g.is_null() {
            return g;
        }
    }
    let next = p.run_next.get();
    if !next.is_null() && p.run_next_streak.get() < RUN_NEXT_STREAK {
        p.run_next.set(ptr::null_mut());
        p.run_next_streak.set(p.run_next_streak.get() + 1);
        return next;
    }
    p.run_next_streak.set(0);
    // Goroutines that have not started go first, so that who waits for many of them waits once;
    // the others have their turn in any case.
    let g = if tick.is_multiple_of(LOCAL_EVERY) {
        let g = m.local.pop();
        if g.is_null() { p.runq.pop() } else { g }
    } else {
        let g = p.runq.pop();
        if g.is_null() { m.local.pop() } else { g }
    };
    if g.is_null() { p.run_next.replace(ptr::null_mut()) } else { g }
}

#[cold]
fn run_timers(m: &M) {
    let now = Instant::now();
    while let Some(g) = m.due_timer(now) {
        // SAFETY: a sleeping goroutine is readied by its timer only.
        unsafe { make_runnable(&*g) };
        enqueue(m, g);
    }
}

/// # Safety
/// The goroutine waits, and the caller is the one who readies it.
#[inline(always)]
unsafe fn make_runnable(g: &G) {
    g.transition(Status::Waiting, Status::Runnable);
    g.set_wait_reason(WaitReason::None);
}

/// Gives way: the goroutine goes to the end of its queue. On a foreign thread this is
/// `std::thread::yield_now`.
#[inline(always)]
pub fn gosched() {
    let (from, to) = prepare_gosched();
    if !ptr::eq(from, to) {
        // SAFETY: `from` runs here and is in a queue of this thread; `to` was taken by us.
        unsafe { goswitch(&(*from).sched, &(*to).sched) };
    }
}

#[inline(never)]
fn prepare_gosched() -> (*const G, *const G) {
    let none = (ptr::null(), ptr::null());
    let g = getg();
    if g.is_null() {
        std::thread::yield_now();
        return none;
    }
    // SAFETY: on a goroutine; immortal structures of this thread.
    let (gr, m) = unsafe { (&*g, this_m()) };
    assert_may_park(m);
    if gr.migratable.get() {
        if std::thread::panicking() {
            // The count of panics is the thread's: `gopark` keeps the goroutine here.
            // SAFETY: readied once, by itself.
            unsafe { gopark(WaitReason::None, || ready(Parker(g), false)) };
            return none;
        }
        // SAFETY: a goroutine's stack; the system stack is free below its saved rsp.
        unsafe { mcall(&gr.sched, m.system_sp.get(), gosched0, g.cast_const()) };
        return none;
    }
    gr.transition(Status::Running, Status::Runnable);
    m.local.push(g);
    let next = pick_next(m);
    if next.is_null() {
        // SAFETY: the system stack is free below its saved rsp.
        unsafe { mcall(&gr.sched, m.system_sp.get(), schedule0, ptr::from_ref(m)) };
        return none;
    }
    make_current(m, next);
    (g, next)
}

/// A migratable goroutine gives way; on the system stack, since others may take it at once.
unsafe extern "C" fn gosched0(g: *const G) -> ! {
    // SAFETY: called by `gosched` on the system stack of this M; the context is saved.
    unsafe {
        let m = this_m();
        setg(ptr::null_mut());
        (*g).transition(Status::Running, Status::Runnable);
        enqueue(m, g.cast_mut());
        sched_of(m).wake_one();
        schedule(m)
    }
}

/// Leaves the running goroutine `g`, which is in a queue or waits, for the next one.
///
/// # Safety
/// The caller runs on `g`, on `m`, and only this thread can resume `g`.
#[inline(always)]
unsafe fn switch_away(m: &M, g: &G) {
    let next = pick_next(m);
    if next.is_null() {
        // SAFETY: the caller's promise; the system stack is free below its saved rsp.
        return unsafe { mcall(&g.sched, m.system_sp.get(), schedule0, ptr::from_ref(m)) };
    }
    make_current(m, next);
    if !ptr::eq(next, g) {
        // SAFETY: `next` is runnable, taken from a queue by us alone, and has a saved context.
        unsafe { goswitch(&g.sched, &(*next).sched) };
    }
}

unsafe extern "C" fn schedule0(m: *const M) -> ! {
    // SAFETY: called by `switch_away` and `mstart` on the system stack of this M.
    unsafe {
        setg(ptr::null_mut());
        schedule(&*m)
    }
}

/// The heart of an M, on its system stack: finds a goroutine and goes to it. When the run is
/// over, continues whoever called `mstart`.
///
/// # Safety
/// On the system stack of `m`, this thread's M, with nothing below that is needed.
#[inline(always)]
unsafe fn schedule(m: &'static M) -> ! {
    m.curg.store(ptr::null_mut(), Ordering::Relaxed);
    match find_runnable(m) {
        Some(g) => {
            make_current(m, g);
            // SAFETY: runnable and taken by us alone.
            unsafe { gogo(&(*g).sched) }
        }
        // SAFETY: saved by `mstart`, continued once.
        None => unsafe { gogo(&m.g0) },
    }
}

/// A goroutine to run; sleeps until there is one. `None` when the run is over.
#[inline(always)]
fn find_runnable(m: &'static M) -> Option<*mut G> {
    let next = pick_next(m);
    if !next.is_null() {
        return Some(next);
    }
    find_runnable_slow(m)
}

#[inline(never)]
fn find_runnable_slow(m: &'static M) -> Option<*mut G> {
    // SAFETY: this thread's M.
    let sched = unsafe { sched_of(m) };
    // Whether this M is counted in `sched.spinning`.
    let mut spinning = false;
    loop {
        let mut found = find_without_sleep(m, sched);
        if found.is_none() && !sched.stopping.load(Ordering::Acquire) {
            // Look on for a while, but not with everybody.
            if !spinning && 2 * sched.spinning.load(Ordering::Relaxed) + 1 < sched.ms.len() {
                sched.spinning.fetch_add(1, Ordering::SeqCst);
                spinning = true;
            }
            for _ in 0..if spinning { SPINS } else { 0 } {
                std::hint::spin_loop();
                found = find_without_sleep(m, sched);
                if found.is_some() {
                    break;
                }
            }
        }
        if std::mem::take(&mut spinning) {
            let was_last = sched.spinning.fetch_sub(1, Ordering::SeqCst) == 1;
            // There may be more where this came from, and nobody else is looking.
            if was_last && found.is_some() && work_exists(sched) {
                sched.wake_one();
            }
        }
        if sched.stopping.load(Ordering::Acquire) {
            return None;
        }
        if found.is_some() {
            return found;
        }
        spinning = sleep_until_work(m, sched);
    }
}

fn find_without_sleep(m: &M, sched: &Sched) -> Option<*mut G> {
    if m.has_timers.load(Ordering::Relaxed) {
        run_timers(m);
    }
    let g = pick_next(m);
    if !g.is_null() {
        return Some(g);
    }
    if sched.stopping.load(Ordering::Relaxed) {
        // Nothing more is run, and the own queue may be full: it is not to be stolen into.
        return None;
    }
    let g = sched.pop_global(m);
    if !g.is_null() {
        return Some(g);
    }
    let others = sched.ms.len();
    let start = m.p.tick.get() as usize % others;
    for i in 0..others {
        let victim = sched.ms[(start + i) % others];
        if !ptr::eq(victim, m) {
            let g = victim.p.runq.steal_into(&m.p.runq);
            if !g.is_null() {
                return Some(g);
            }
        }
    }
    None
}

/// Whether any queue that all Ms take from has something.
fn work_exists(sched: &Sched) -> bool {
    sched.global_len.load(Ordering::Acquire) != 0 || sched.ms.iter().any(|m| !m.p.runq.is_empty())
}

/// Returns whether this M was woken as one that is counted as spinning.
fn sleep_until_work(m: &'static M, sched: &'static Sched) -> bool {
    let idle = sched.idle.fetch_add(1, Ordering::SeqCst) + 1;
    m.prepare_park();
    let stay = m.has_mail() || work_exists(sched) || sched.stopping.load(Ordering::SeqCst);
    let woken_spinning = if stay {
        m.cancel_park()
    } else {
        // The last one to sleep looks for a deadlock: soon, and then from time to time, since a
        // foreign thread that could wake a goroutine may end. Whoever has a timer need not look.
        let is_last = idle == sched.ms.len();
        let is_suspect = || is_last && !m.has_timers.load(Ordering::Relaxed);
        let mut limit = (is_suspect() || pool::has_surplus(m)).then_some(IDLE_AFTER);
        loop {
            if let Some(spinning) = m.park(limit) {
                break spinning;
            }
            pool::give_back_idle(m, || m.is_parked());
            if is_suspect() {
                check_deadlock(sched);
            }
            limit = is_suspect().then_some(DEADLOCK_EVERY);
        }
    };
    // Before the mail is taken: see `check_deadlock`.
    sched.wakes.fetch_add(1, Ordering::SeqCst);
    sched.idle.fetch_sub(1, Ordering::SeqCst);
    woken_spinning
}

/// Called by the last M that went to sleep. With no timer set and no other thread in the process,
/// nothing can wake a goroutine any more.
fn check_deadlock(sched: &Sched) {
    // The Ms are looked at one after the other. Only if none of them woke meanwhile do the looks
    // add up to one state.
    let wakes = sched.wakes.load(Ordering::SeqCst);
    let is_quiet = || {
        let asleep =
            |m: &&M| m.is_parked() && !m.has_mail() && !m.has_timers.load(Ordering::SeqCst);
        sched.idle.load(Ordering::SeqCst) == sched.ms.len()
            && sched.ms.iter().all(asleep)
            && !work_exists(sched)
            && !sched.stopping.load(Ordering::SeqCst)
    };
    if !is_quiet() {
        return;
    }
    let threads = std::fs::read_dir("/proc/self/task").map_or(usize::MAX, Iterator::count);
    // A foreign thread may have readied a goroutine just before it ended: look again.
    if threads == sched.ms.len() && is_quiet() && sched.wakes.load(Ordering::SeqCst) == wakes {
        traceback::report_deadlock(sched);
    }
}

/// Parks the running goroutine until [`goready`]. `unlock` runs when the goroutine can be readied
/// safely: what it makes visible lets others call `goready`.
///
/// On a foreign thread the thread sleeps.
///
/// # Safety
/// 1. Exactly one call of `goready` with what [`current`] returned follows for each `gopark`, after
///    `unlock` was called.
/// 2. `unlock` does not park, and does not unwind.
///
/// # Panics
/// On a system stack, which cannot park.
#[inline(always)]
pub unsafe fn gopark(reason: WaitReason, unlock: impl FnOnce()) {
    let g = getg();
    if g.is_null() {
        // SAFETY: the stand-in is this thread's.
        return unsafe { park_thread(&*g::thread_g(), reason, unlock) };
    }
    // SAFETY: on a goroutine; immortal structures of this thread.
    let (gr, m) = unsafe { (&*g, this_m()) };
    assert_may_park(m);
    gr.set_wait_reason(reason);
    if gr.migratable.get() {
        // A goroutine that unwinds stays: the count of panics is the thread's.
        if !std::thread::panicking() {
            // SAFETY: by the contract of this function.
            return unsafe { park_migratable(gr, m, unlock) };
        }
        gr.migratable.set(false);
        gr.transition(Status::Running, Status::Waiting);
        unlock();
        // SAFETY: not migratable now, so only this thread resumes it.
        unsafe { switch_away(m, gr) };
        gr.migratable.set(true);
        return;
    }
    gr.transition(Status::Running, Status::Waiting);
    unlock();
    // SAFETY: whoever readies it puts it into a queue of this thread.
    unsafe { switch_away(m, gr) };
}

/// # Safety
/// As for [`gopark`].
unsafe fn park_migratable(g: &G, m: &M, unlock: impl FnOnce()) {
    struct Parking<'a> {
        g: &'a G,
        unlock: Cell<Option<&'a mut dyn FnMut()>>,
    }
    unsafe extern "C" fn park0(parking: *const Parking<'_>) -> ! {
        // SAFETY: on the system stack of this M; the context is saved. `parking` lies in the
        // goroutine's stack and is not touched after `unlock`.
        unsafe {
            let m = this_m();
            setg(ptr::null_mut());
            let unlock = (*parking).unlock.take().expect("set by park_migratable");
            (*parking).g.transition(Status::Running, Status::Waiting);
            unlock();
            schedule(m)
        }
    }
    let mut unlock = Some(unlock);
    let mut call = || (unlock.take().expect("called once"))();
    let parking = Parking { g, unlock: Cell::new(Some(&mut call)) };
    // SAFETY: a goroutine's stack; the system stack is free below its saved rsp.
    unsafe { mcall(&g.sched, m.system_sp.get(), park0, &raw const parking) };
}

/// # Safety
/// `g` is the stand-in of this thread; otherwise as for [`gopark`].
unsafe fn park_thread(g: &G, reason: WaitReason, unlock: impl FnOnce()) {
    g.thread_wake.store(0, Ordering::Relaxed);
    g.set_wait_reason(reason);
    unlock();
    while g.thread_wake.load(Ordering::Acquire) == 0 {
        futex::wait(&g.thread_wake, 0, None);
    }
    g.set_wait_reason(WaitReason::None);
}

/// The goroutine (or thread) that calls, as a value to hand to [`goready`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parker(*mut G);

// SAFETY: an address of an immortal structure; what may be done with it is `goready`'s contract.
unsafe impl Send for Parker {}
// SAFETY: as above.
unsafe impl Sync for Parker {}

impl Parker {
    pub(crate) const NONE: Self = Self(ptr::null_mut());

    pub(crate) fn into_raw(self) -> usize {
        self.0 as usize
    }

    pub(crate) fn from_raw(raw: usize) -> Self {
        Self(raw as *mut G)
    }

    /// Whether its run ended while it was parked: it will never run again.
    pub(crate) fn is_abandoned(self) -> bool {
        // SAFETY: immortal.
        unsafe { (*self.0).join.load(Ordering::Relaxed) == join_state::ABANDONED }
    }
}

/// Who calls.
#[inline]
pub fn current() -> Parker {
    match getg() {
        g if g.is_null() => Parker(g::thread_g()),
        g => Parker(g),
    }
}

/// Makes a parked goroutine runnable. It runs next on its thread, if that is this one.
///
/// # Safety
/// The goroutine is in a [`gopark`] whose `unlock` was called, and nobody else readies it.
#[inline]
pub unsafe fn goready(parker: Parker) {
    // SAFETY: the caller's promise.
    unsafe { ready(parker, true) };
}

/// [`goready`], or with `next` false: behind what is runnable already.
///
/// # Safety
/// As for [`goready`].
#[inline]
unsafe fn ready(parker: Parker, next: bool) {
    // SAFETY: immortal.
    let g = unsafe { &*parker.0 };
    if g.is_thread.get() {
        g.thread_wake.store(1, Ordering::Release);
        return futex::wake(&g.thread_wake);
    }
    // SAFETY: the caller's promise.
    unsafe { make_runnable(g) };
    let m = getm();
    let home = g.m.load(Ordering::Relaxed);
    if ptr::eq(m, home) {
        // SAFETY: this thread's M.
        let (p, run_id) = unsafe { (&(*m).p, (*m).run_id.load(Ordering::Relaxed)) };
        if run_id != g.run_id.load(Ordering::Relaxed) {
            return; // left behind by an earlier run that used this M
        }
        let queued = if next { p.run_next.replace(parker.0) } else { parker.0 };
        if !queued.is_null() {
            // SAFETY: this thread's M.
            enqueue(unsafe { &*m }, queued);
        }
        return;
    }
    // SAFETY: Ms are immortal; it has been one since the goroutine started.
    let home = unsafe { &*home };
    if !g.migratable.get() {
        return home.deliver(parker.0);
    }
    // SAFETY: an M's run outlives its goroutines' parks; a run that is over is not looked into.
    unsafe {
        if !m.is_null() && (*m).run_id.load(Ordering::Relaxed) == g.run_id.load(Ordering::Relaxed) {
            enqueue(&*m, parker.0);
            sched_of(&*m).wake_one();
        } else {
            // From outside of the run: the M that it parked on takes it in.
            home.deliver(parker.0);
        }
    }
}

/// Whether the caller may park now: not on a system stack.
#[inline(always)]
pub(crate) fn may_park() -> bool {
    let m = getm();
    // SAFETY: this thread's M, which is immortal.
    m.is_null() || !unsafe { (*m).on_system_stack.get() }
}

/// What `gopark` does where [`may_park`] says no, for those who must undo something before.
#[cold]
pub(crate) fn refuse_park() -> ! {
    panic!("a goroutine cannot park inside of systemstack: the system stack is its thread's")
}

#[inline(always)]
fn assert_may_park(m: &M) {
    if m.on_system_stack.get() {
        refuse_park();
    }
}

/// A goroutine that could not be started.
pub(crate) struct NewError {
    pub(crate) error: StackError,
}

/// Gives back a dead goroutine that nobody refers to any more.
pub(crate) fn free_g(g: *mut G) {
    // SAFETY: immortal, dead, and ours.
    let gr = unsafe { &*g };
    gr.transition(Status::Dead, Status::Idle);
    // SAFETY: this thread's M, if it is one; nobody refers to the goroutine any more.
    unsafe { pool::put(getm().as_ref(), g) };
}

/// Offset of a stack's top from its end: spreads the hottest lines over cache sets.
fn color(stack: stack::Stack) -> usize {
    (stack.hi >> 12) % 8 * 64
}

/// Room that the closure and the result of a goroutine may take of its stack.
pub(crate) fn task_room(class: SizeClass) -> usize {
    class.bytes() / 16
}

/// The stack class of the run that this thread belongs to.
///
/// # Panics
/// On a thread that no run owns.
pub(crate) fn current_class() -> SizeClass {
    let m = getm();
    assert!(
        !m.is_null(),
        "goroutines are started from goroutines: call footbridge::runtime::run first"
    );
    // SAFETY: this thread's M.
    unsafe { sched_of(&*m) }.class
}

/// A new goroutine before it is queued: idle, with room for a task at the top of its stack.
pub(crate) struct NewG {
    g: *mut G,
    data: *mut u8,
}

/// Takes a G of the class and reserves `size` bytes (at most [`task_room`]) at the top of its
/// stack. The thread is an M: [`current_class`] has found that out.
pub(crate) fn new_g(class: SizeClass, size: usize, align: usize) -> Result<NewG, NewError> {
    // SAFETY: a thread of a run.
    let m = unsafe { this_m() };
    let g = pool::take(Some(m), class).map_err(|error| NewError { error })?;
    // SAFETY: immortal and ours.
    let stack = unsafe { (*g).stack.get() };
    let data = (stack.hi - color(stack) - size) & !(align.max(16) - 1);
    Ok(NewG { g, data: data as *mut u8 })
}

impl NewG {
    /// Where the task goes.
    pub(crate) fn data(&self) -> *mut u8 {
        self.data
    }

    /// Queues the goroutine, or, with `pinned`, binds it to this thread first.
    pub(crate) fn start(
        self,
        task: &'static TaskType,
        join: usize,
        migratable: bool,
        pinned: bool,
    ) -> *mut G {
        let Self { g, data } = self;
        // SAFETY: `new_g` found that the thread is an M; the G is ours until it is queued.
        let (m, gr) = unsafe { (this_m(), &*g) };
        gr.task.set(Some(task));
        gr.data.set(data);
        gr.join.store(join, Ordering::Relaxed);
        gr.migratable.set(migratable);
        gr.result_dropped.set(false);
        let home = if pinned { ptr::from_ref(m).cast_mut() } else { ptr::null_mut() };
        gr.m.store(home, Ordering::Relaxed);
        gr.run_id.store(m.run_id.load(Ordering::Relaxed), Ordering::Relaxed);
        gr.goid.store(next_goid(m), Ordering::Relaxed);
        gr.anchor.clear();
        // The entry stub calls: rsp is 16-aligned there.
        gr.sched.start_at(goroutine_entry(), data as usize & !15);
        gr.lowest_sp.set(usize::MAX);
        gr.transition(Status::Idle, Status::Runnable);
        enqueue(m, g);
        if !pinned {
            // SAFETY: this thread's M.
            unsafe { sched_of(m) }.wake_one();
        }
        g
    }
}

fn next_goid(m: &M) -> u64 {
    const BATCH: u64 = 16;
    let (next, end) = m.p.goids.get();
    if next < end {
        m.p.goids.set((next + 1, end));
        return next;
    }
    let first = GOIDS.fetch_add(BATCH, Ordering::Relaxed);
    m.p.goids.set((first + 1, first + BATCH));
    first
}

/// Switches `2 * rounds` times between this stack and a goroutine that does nothing else, without
/// the scheduler: the floor of what any switch here costs. For benchmarks.
///
/// # Errors
/// There is no memory for stubs or a stack.
#[doc(hidden)]
pub fn measure_raw_switch(rounds: u64) -> Result<Duration, RunError> {
    struct Pair {
        home: Gobuf,
        partner: *mut G,
    }
    unsafe fn partner(data: *mut u8) {
        // SAFETY: the pair outlives the partner's last switch.
        unsafe {
            let pair = data.cast::<*const Pair>().read();
            loop {
                goswitch(&(*(*pair).partner).sched, &(*pair).home);
            }
        }
    }
    unsafe fn drop_nothing(_: *mut u8) {}
    static TASK: TaskType = TaskType { run: partner, drop_result: drop_nothing };
    super::switch::emit_stubs().map_err(RunError::Code)?;
    let class = Config::default().class()?;
    let g = pool::take(None, class).map_err(RunError::Stack)?;
    let pair = Pair { home: Gobuf::new(), partner: g };
    // SAFETY: the G is ours; the word at the top of its stack too.
    unsafe {
        let data = ((*g).stack.get().hi - 64) as *mut *const Pair;
        data.write(&raw const pair);
        (*g).task.set(Some(&TASK));
        (*g).data.set(data.cast());
        (*g).sched.start_at(goroutine_entry(), data as usize - 64);
        goswitch(&pair.home, &(*g).sched);
        let started = Instant::now();
        for _ in 0..rounds {
            goswitch(&pair.home, &(*g).sched);
        }
        let elapsed = started.elapsed();
        // Idle again: what is on its stack is never resumed.
        pool::put(None, g);
        Ok(elapsed)
    }
}

/// Where every goroutine starts, called by the entry stub with the address of its G (a Gobuf is
/// the first field of it).
pub(crate) extern "C-unwind" fn goroutine_main(g: *const G) -> ! {
    // SAFETY: the running goroutine; `start` set its task.
    unsafe {
        let task = (*g).task.get().expect("set before the goroutine was queued");
        (task.run)((*g).data.get());
        if (*g).join.load(Ordering::Acquire) == join_state::DETACHED {
            drop_result(&*g, task);
        }
        loop {
            let m = this_m();
            mcall(&(*g).sched, m.system_sp.get(), goexit0, g);
            // Continued: the handle went away in between.
            drop_result(&*g, task);
        }
    }
}

fn drop_result(g: &G, task: &TaskType) {
    // SAFETY: the task has run and its result was not taken: the handle is gone.
    let dropped =
        panic::catch_unwind(AssertUnwindSafe(|| unsafe { (task.drop_result)(g.data.get()) }));
    if dropped.is_err() {
        let goid = g.goid.load(Ordering::Relaxed);
        throw(format_args!("the result of goroutine {goid} panicked while it was dropped"));
    }
    g.result_dropped.set(true);
}

/// The end of a goroutine, on the system stack.
unsafe extern "C" fn goexit0(g: *const G) -> ! {
    // SAFETY: on the system stack of this M; the goroutine's context is saved and it has nothing
    // more to do, except to drop a result that nobody can take.
    unsafe {
        let m = this_m();
        setg(ptr::null_mut());
        let gr = &*g;
        let goid = gr.goid.load(Ordering::Relaxed);
        debug_assert!(goid != 0);
        // What is above its rsp is the task with its result, and the frame to continue in.
        gr.stack.get().give_back_depths(gr.lowest_sp.get(), gr.sched.sp());
        gr.transition(Status::Running, Status::Dead);
        match gr.join.swap(join_state::DONE, Ordering::AcqRel) {
            join_state::RUNNING => {}
            join_state::DETACHED if gr.result_dropped.get() => free_g(g.cast_mut()),
            join_state::DETACHED => {
                // Only the goroutine itself may run the destructor: continue it once more.
                gr.join.store(join_state::DETACHED, Ordering::Relaxed);
                gr.transition(Status::Dead, Status::Idle);
                gr.transition(Status::Idle, Status::Runnable);
                make_current(m, g.cast_mut());
                gogo(&gr.sched);
            }
            join_state::ABANDONED => {
                throw(format_args!("goroutine {goid} ended after its run did"))
            }
            // Who joins one goroutine often joins many: when its turn comes, more have ended.
            waiter => ready(Parker::from_raw(waiter), false),
        }
        schedule(m)
    }
}

/// Runs `f` on a goroutine of a new run, on this thread, and returns its result. Ends the run.
pub(crate) fn run<R>(config: &Config, f: impl FnOnce() -> R) -> Result<R, RunError> {
    if !getm().is_null() {
        return Err(RunError::Nested);
    }
    let class = config.class()?;
    futex::probe_fences();
    super::switch::emit_stubs().map_err(RunError::Code)?;
    super::signal::install();
    let processors = config.processor_count()?;
    let run_id = RUN_IDS.fetch_add(1, Ordering::Relaxed);
    let ms: Vec<_> = (0..processors).map(|_| M::allocate()).collect();
    let sched = Box::new(Sched {
        run_id,
        ms,
        class,
        global: Mutex::new(GlobalQueue(GQueue::new())),
        global_len: AtomicUsize::new(0),
        spinning: AtomicUsize::new(0),
        idle: AtomicUsize::new(0),
        wakes: AtomicUsize::new(0),
        stopping: AtomicBool::new(false),
    });
    let sched: &'static Sched = Box::leak(sched);
    for (id, m) in sched.ms.iter().enumerate() {
        m.id.set(id);
        m.run_id.store(run_id, Ordering::Relaxed);
        m.sched.store(ptr::from_ref(sched).cast_mut(), Ordering::Release);
    }
    let mut threads = Vec::new();
    let mut failed = None;
    for &m in &sched.ms[1..] {
        let thread = std::thread::Builder::new().name(format!("footbridge-m{}", m.id.get()));
        match thread.spawn(move || mstart(m)) {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                failed = Some(RunError::Thread { errno: error.raw_os_error().unwrap_or(0) });
                break;
            }
        }
    }
    let result = match failed {
        Some(error) => Err(error),
        None => run_main(sched, f),
    };
    stop(sched);
    for thread in threads {
        // An M's thread returns from mstart or aborts the process.
        let _ = thread.join();
    }
    abandon_goroutines(run_id);
    pool::close(sched.ms());
    for &m in &sched.ms {
        m.sched.store(ptr::null_mut(), Ordering::Relaxed);
        m.release();
    }
    // SAFETY: leaked above; all Ms have left and no structure refers to it any more.
    drop(unsafe { Box::from_raw(ptr::from_ref(sched).cast_mut()) });
    match result? {
        Ok(value) => Ok(value),
        Err(payload) => panic::resume_unwind(payload),
    }
}

type MainResult<R> = Result<R, Box<dyn Any + Send>>;

/// The main goroutine, bound to the calling thread, which is the first M.
fn run_main<R>(sched: &'static Sched, f: impl FnOnce() -> R) -> Result<MainResult<R>, RunError> {
    struct Main<'a, F, R> {
        f: Option<F>,
        result: &'a mut Option<MainResult<R>>,
        sched: &'static Sched,
    }
    unsafe fn run<F: FnOnce() -> R, R>(data: *mut u8) {
        // SAFETY: `run_main` wrote a Main there; it outlives the goroutine, since the caller's
        // frame waits for it.
        let main = unsafe { &mut *data.cast::<*mut Main<'_, F, R>>().read() };
        let f = main.f.take().expect("run once");
        *main.result = Some(panic::catch_unwind(AssertUnwindSafe(f)));
        stop(main.sched);
    }
    unsafe fn drop_nothing(_: *mut u8) {}
    struct Type<F, R>(std::marker::PhantomData<(F, R)>);
    impl<F: FnOnce() -> R, R> Type<F, R> {
        const TASK: TaskType = TaskType { run: run::<F, R>, drop_result: drop_nothing };
    }
    let m = sched.ms[0];
    let mut result = None;
    let mut main = Main { f: Some(f), result: &mut result, sched };
    let task = task_of::<_, R>(&main.f);
    fn task_of<F: FnOnce() -> R, R>(_: &Option<F>) -> &'static TaskType {
        const { &Type::<F, R>::TASK }
    }
    let previous_m = getm();
    debug_assert!(previous_m.is_null());
    setm(ptr::from_ref(m).cast_mut());
    let started = new_g(sched.class, size_of::<usize>(), align_of::<usize>()).map(|new| {
        // SAFETY: room for one pointer was reserved there.
        unsafe { new.data().cast::<*mut u8>().write((&raw mut main).cast()) };
        new.start(task, join_state::DETACHED, false, true);
    });
    if started.is_ok() {
        mstart(m);
    }
    setm(ptr::null_mut());
    if let Err(NewError { error }) = started {
        return Err(RunError::Stack(error));
    }
    Ok(result.expect("the run goes on until the main goroutine has left its result"))
}

/// Ends a run: every M leaves when it comes to the scheduler.
fn stop(sched: &Sched) {
    sched.stopping.store(true, Ordering::SeqCst);
    futex::heavy_fence();
    for m in &sched.ms {
        m.unpark();
    }
}

/// Makes the calling thread the M until the run is over.
fn mstart(m: &'static M) {
    let _alt_stack = AltStack::install();
    setm(ptr::from_ref(m).cast_mut());
    m.system_stack.set(super::signal::thread_stack_bounds());
    // The frame of this function stays; the scheduler works below it and its red zone.
    m.system_sp.set((super::switch::stack_pointer() - 128) & !15);
    // SAFETY: `g0` is the Gobuf of this stack; below system_sp nothing is alive while the
    // scheduler runs, since this frame only waits.
    unsafe { mcall(&m.g0, m.system_sp.get(), schedule0, ptr::from_ref(m)) };
    setm(ptr::null_mut());
}

/// Marks the goroutines that a run leaves behind. They are never resumed; what they own is leaked,
/// and their stacks stay, since others may hold addresses into them.
fn abandon_goroutines(run_id: u64) {
    for g in g::all() {
        // The status first: another run may take a dead G, and then sets the run before the status.
        let live = !matches!(g.status(), Status::Idle | Status::Dead);
        let left = live && g.run_id.load(Ordering::Relaxed) == run_id;
        if left {
            let waiter = g.join.swap(join_state::ABANDONED, Ordering::AcqRel);
            if waiter >= join_state::WAITER {
                let waiter = Parker::from_raw(waiter);
                // SAFETY: immortal.
                let other = unsafe { &*waiter.0 };
                // A waiter of the same run is left behind itself.
                if other.is_thread.get() || other.run_id.load(Ordering::Relaxed) != run_id {
                    // SAFETY: it parked in `join` and is readied by whoever takes its address.
                    unsafe { goready(waiter) };
                }
            }
        }
    }
}

/// The run that the calling thread belongs to, if any.
pub(crate) fn this_sched() -> Option<&'static Sched> {
    let m = getm();
    // SAFETY: this thread's M, and its run.
    (!m.is_null()).then(|| unsafe { sched_of(&*m) })
}
