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
//! 5. When its closure returns or panics, `goexit0` (`life.rs`) runs on the system stack, since the
//!    stack may be used again at once, publishes the end to whoever joins, and schedules.
//!
//! Why a park cannot lose a wake-up: a goroutine that belongs to a thread is resumed by that
//! thread only, and that thread is busy parking it. One that is migratable might be resumed
//! elsewhere before its context is saved, so it always parks through `mcall`, and what makes it
//! visible to its waker is done there, on the system stack.
//!
//! Why an M does not sleep over work, and why not all of them wake for it: `idle.rs`.
//!
//! Fairness. A goroutine that was readied by the running one goes next, and shares its time slice,
//! so that two who wake each other in turn have one slice and not two. Queues are first in, first
//! out; the global one is looked at once in so many slices, and timers once in so many rounds or
//! when sysmon says that one is late.

use std::cell::Cell;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::float_modes::put_aside_during;
use super::futex;
use super::g::{self, Backlog, G, GQueue, Status, WaitReason, join_state};
use super::handshake;
use super::idle::{Idle, Parking};
use super::latch::CountLatch;
use super::m::{M, RUNQ, bump};
use super::pool;
use super::runq::Stolen;
use super::stack::SizeClass;
use super::switch::{gogo, goswitch, mcall};
use super::sysmon::Sysmon;
use super::timers;
use super::tls::{getg, getm, set_g_and_guard};
use super::traceback;

/// The global queue is looked at once in so many slices, so that it cannot starve.
const GLOBAL_EVERY: u64 = 61;
/// Timers of a busy M are looked at once in so many rounds.
const TIMERS_EVERY: u64 = 16;
/// The local queue goes before the run queue once in so many slices.
const LOCAL_EVERY: u64 = 8;
/// How often in a row the run-next slot goes before the queues at most: with short turns, and where no
/// sysmon ends slices.
const RUN_NEXT_STREAK: u64 = 128;
/// How long an M has slept when it gives memory back and, as the last one, looks for a deadlock.
const IDLE_AFTER: Duration = Duration::from_millis(10);
/// How often a deadlock is looked for then.
const DEADLOCK_EVERY: Duration = Duration::from_secs(1);
/// How long an M without work looks for some before it sleeps, in nanoseconds: less than what it costs
/// to fall asleep and to be woken.
const SPIN_NS: u64 = 10_000;
/// How long it leaves others theirs, in nanoseconds, when it has just run out of its own, and between two
/// looks: a goroutine that its own thread gets to soon costs a tenth there of what it costs elsewhere,
/// and who looks all the time takes the queue's lines from who fills it.
const PATIENCE_NS: u64 = 2_000;

/// One run of the runtime: its Ms and what they share.
pub(crate) struct Sched {
    pub(super) run_id: u64,
    pub(super) ms: Vec<&'static M>,
    pub(super) class: SizeClass,
    pub(super) global: Mutex<GlobalQueue>,
    pub(super) global_len: AtomicUsize,
    /// How many goroutines went through the global queue, in and out. They wrap around.
    pub(super) global_pushed: AtomicU32,
    pub(super) global_popped: AtomicU32,
    pub(super) idle: Idle,
    pub(super) stopping: AtomicBool,
    /// Ms that may still run goroutines: no thread of the run ends before all have left.
    pub(super) ms_running: CountLatch,
    /// Whether a sysmon watches, and how it is woken.
    pub(super) has_sysmon: AtomicBool,
    pub(super) sysmon: Sysmon,
}

pub(super) struct GlobalQueue(pub(super) GQueue);
// SAFETY: behind a lock.
unsafe impl Send for GlobalQueue {}

impl Sched {
    pub(crate) fn run_id(&self) -> u64 {
        self.run_id
    }

    pub(crate) fn ms(&self) -> impl Iterator<Item = &'static M> {
        self.ms.iter().copied()
    }

    pub(crate) fn sysmon(&self) -> &Sysmon {
        &self.sysmon
    }

    /// Whether every M sleeps or is about to.
    pub(crate) fn all_idle(&self) -> bool {
        self.idle.sleeping() == self.ms.len()
    }

    /// Puts `count` goroutines at the end of the global queue. Returns how many went in so far.
    fn push_global(&self, gs: &GQueue, count: usize) -> u32 {
        let global = self.global.lock().unwrap_or_else(PoisonError::into_inner);
        global.0.append(gs);
        let before = self.global_pushed.fetch_add(count as u32, Ordering::Relaxed);
        self.global_len.fetch_add(count, Ordering::Release);
        before.wrapping_add(count as u32)
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
        self.global_popped.fetch_add(taken as u32, Ordering::Relaxed);
        self.global_len.fetch_sub(taken, Ordering::Release);
        g
    }

    /// Wakes one idle M, unless one looks for work already. Called after work was published.
    #[inline(always)]
    pub(super) fn wake_one(&self) {
        if self.idle.someone_sleeps() {
            self.wake_one_idle();
        }
    }

    fn parkings(&self) -> impl Iterator<Item = &Parking> + Clone {
        self.ms.iter().map(|m| &m.inbox.parking)
    }

    #[inline(never)]
    fn wake_one_idle(&self) {
        if let Some(parking) = self.idle.choose(self.parkings(), || work_exists(self)) {
            futex::wake(parking.word());
        }
    }
}

/// The M of this thread.
///
/// # Safety
/// The thread is an M; the reference is not kept over a suspension of a migratable goroutine.
#[inline(always)]
pub(super) unsafe fn this_m() -> &'static M {
    // SAFETY: the thread is an M by the contract, and those are immortal.
    unsafe { &*getm() }
}

/// # Safety
/// As for [`this_m`].
#[inline(always)]
pub(super) unsafe fn sched_of(m: &M) -> &'static Sched {
    // SAFETY: set before the thread became an M, and alive until all its Ms have left.
    unsafe { &*m.sched.load(Ordering::Relaxed) }
}

/// Makes `g` the goroutine that `m` runs. A switch to it follows.
#[inline(always)]
pub(super) fn make_current(m: &M, g: *mut G) {
    // SAFETY: immortal, and taken from a queue of ours: nobody else may run it.
    let gr = unsafe { &*g };
    gr.transition(Status::Runnable, Status::Running);
    if gr.freeze.is_wanted() {
        hold_back(m, gr);
    }
    gr.m.store(ptr::from_ref(m).cast_mut(), Ordering::Relaxed);
    let sp = gr.sched.sp();
    if sp < gr.lowest_sp.get() {
        gr.lowest_sp.set(sp);
    }
    // A new turn: what was asked of an earlier one is over.
    let limit = m.preempt.limit_of(gr);
    handshake::begin_turn(&m.curg, g, &gr.guard, limit, || set_g_and_guard(g, limit));
}

/// Somebody wants the goroutine still that is to run next.
#[cold]
#[inline(never)]
fn hold_back(m: &M, g: &G) {
    while g.freeze.is_wanted() {
        if !g.wait_while_wanted() {
            // It is the one that this thread is on the stack of, and finds nobody else to leave for.
            // SAFETY: on the goroutine's stack; the system stack is free below its saved rsp.
            unsafe { mcall(&g.sched, m.system_sp.get(), preempt0, ptr::from_ref(g)) };
        }
    }
}

/// Puts a runnable goroutine at the end of a queue of this M.
#[inline(always)]
pub(super) fn enqueue(m: &M, g: *mut G) {
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
    let half = GQueue::new();
    if !m.p.runq.take_half(|g| half.push(g)) {
        return enqueue(m, g); // there is room now
    }
    half.push(g);
    // SAFETY: `m` is this thread's M.
    let pushed = unsafe { sched_of(m) }.push_global(&half, RUNQ / 2 + 1);
    m.spills.set((m.spills.get().0.wrapping_add(1), pushed));
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
    // SAFETY: `m` is this thread's M.
    let sched = unsafe { sched_of(m) };
    if sched.stopping.load(Ordering::Relaxed) {
        return ptr::null_mut();
    }
    if m.has_mail() && m.take_mail() {
        sched.wake_one();
    }
    if p.timers.any() && (p.rounds.all().is_multiple_of(TIMERS_EVERY) || p.timers.is_overdue()) {
        run_timers(m, m);
    }
    let next = p.run_next.get();
    if !next.is_null() {
        if p.rounds.inherit_slice(RUN_NEXT_STREAK) {
            p.run_next.set(ptr::null_mut());
            return next;
        }
        displace_run_next(m);
    }
    if !m.yielded.is_empty() {
        readmit_yielded(m, sched);
    }
    let slice = p.rounds.slice();
    let mut g = ptr::null_mut();
    if slice.is_multiple_of(GLOBAL_EVERY) {
        g = sched.pop_global(m);
    }
    if g.is_null() {
        // Goroutines that have not started go first, so that who waits for many of them waits
        // once; the others have their turn in any case.
        g = if slice.is_multiple_of(LOCAL_EVERY) {
            let g = m.local.pop();
            if g.is_null() { p.runq.pop() } else { g }
        } else {
            let g = p.runq.pop();
            if g.is_null() { m.local.pop() } else { g }
        };
    }
    if !g.is_null() {
        p.rounds.begin_slice();
    }
    g
}

/// The goroutine in the run-next slot may not run in the current time slice any more: it goes to the
/// end of a queue. Left in the slot it would starve as long as the queues have something, and the
/// goroutine that readied it is in one of them when it polls in a loop.
#[cold]
fn displace_run_next(m: &M) {
    let next = m.p.run_next.replace(ptr::null_mut());
    // SAFETY: immortal.
    let is_for_all = !belongs_to_thread(unsafe { &*next });
    enqueue(m, next);
    if is_for_all {
        // SAFETY: this thread's M.
        unsafe { sched_of(m) }.wake_one();
    }
}

/// Puts the running goroutine, which yields and stays on its thread, after everything that is
/// runnable here.
#[inline(always)]
fn enqueue_yielded(m: &M, g: &G) {
    // SAFETY: this thread's M.
    let sched = unsafe { sched_of(m) };
    let p = &m.p;
    if !p.run_next.get().is_null() && !p.rounds.may_inherit(RUN_NEXT_STREAK) {
        displace_run_next(m);
    }
    let has_backlog = !p.runq.is_empty() || sched.global_len.load(Ordering::Relaxed) != 0;
    if has_backlog || !m.yielded.is_empty() {
        return yield_after_backlog(m, sched, g);
    }
    m.local.push(ptr::from_ref(g).cast_mut());
}

/// In `local` the goroutine would run before most of what waits in the run queue and the global
/// queue: a producer that starts many goroutines and yields after each batch would run ahead of all
/// of them.
#[inline(never)]
fn yield_after_backlog(m: &M, sched: &Sched, g: &G) {
    let is_global = sched.global_len.load(Ordering::Relaxed) != 0;
    let before = match is_global {
        true => sched.global_pushed.load(Ordering::Relaxed),
        false => m.p.runq.tail_position(),
    };
    g.backlog.set(Backlog { is_global, moved: 0, spills: m.spills.get().0, before });
    m.yielded.push(ptr::from_ref(g).cast_mut());
}

/// Moves goroutines that yielded to the local queue, oldest first, up to the first one whose backlog
/// has not had its turn.
///
/// A spill moves the older half of the run queue to the global queue, the backlog with it. It is
/// followed there, but not for ever: a goroutine that yields must not starve where others start more
/// than this M can run.
#[cold]
fn readmit_yielded(m: &M, sched: &Sched) {
    const MAX_MOVES: u8 = 16;
    let (spills, spilled_before) = m.spills.get();
    while let Some(g) = m.yielded.first() {
        let mut backlog = g.backlog.get();
        if backlog.spills != spills && backlog.moved < MAX_MOVES {
            let moved = backlog.moved + 1;
            backlog = Backlog { is_global: true, moved, spills, before: spilled_before };
        }
        if backlog.is_global {
            let popped = sched.global_popped.load(Ordering::Relaxed);
            if popped.wrapping_sub(backlog.before).cast_signed() >= 0 {
                backlog.is_global = false;
                backlog.before = m.p.runq.tail_position();
            }
        }
        g.backlog.set(backlog);
        if backlog.is_global || !m.p.runq.has_passed(backlog.before) {
            return;
        }
        m.local.push(m.yielded.pop());
    }
}

/// Readies the sleepers of `owner` whose time has come, `m` being the M of this thread. A goroutine
/// that belongs to another thread goes there.
#[cold]
fn run_timers(m: &M, owner: &M) {
    let now = timers::now();
    while let Some(sleeper) = owner.p.timers.take_due(now) {
        bump(&m.p.counts.timers, 1);
        // SAFETY: a sleeping goroutine is readied by its timer only, and whoever takes that does it.
        unsafe { ready(sleeper, false) };
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
#[track_caller]
pub fn gosched() {
    let (from, to) = prepare_gosched();
    if !ptr::eq(from, to) {
        // SAFETY: `from` runs here and is in a queue of this thread; `to` was taken by us.
        unsafe { goswitch(&(*from).sched, &(*to).sched) };
    }
}

#[inline(never)]
#[track_caller]
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
    if gr.keeps_float_modes.get() {
        put_aside_during(gr, gosched);
        return none;
    }
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
    enqueue_yielded(m, gr);
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
        set_g_and_guard(ptr::null_mut(), 0);
        (*g).transition(Status::Running, Status::Runnable);
        let sched = sched_of(m);
        if sched.global_len.load(Ordering::Relaxed) == 0 {
            enqueue(m, g.cast_mut());
        } else {
            // What waits in the global queue has its turn first.
            let only = GQueue::new();
            only.push(g.cast_mut());
            sched.push_global(&only, 1);
        }
        sched.wake_one();
        schedule(m)
    }
}

/// The end of a time slice, on the system stack. Such a turn was long: what is looked at once in many
/// turns is looked at now.
pub(super) unsafe extern "C" fn preempt0(g: *const G) -> ! {
    // SAFETY: called by `preempt.rs` on the system stack of this M; the context is saved.
    unsafe {
        let m = this_m();
        let sched = sched_of(m);
        set_g_and_guard(ptr::null_mut(), 0);
        if m.p.timers.any() {
            run_timers(m, m);
        }
        let waiting_for_all = sched.pop_global(m);
        if !waiting_for_all.is_null() {
            enqueue(m, waiting_for_all);
        } else if m.p.runq.is_empty() && !sched.stopping.load(Ordering::Relaxed) {
            // Others may keep theirs waiting in Rust code, which is not interrupted.
            let waiting_for_other = steal(m, sched);
            if !waiting_for_other.is_null() {
                enqueue(m, waiting_for_other);
            }
        }
        if !m.p.run_next.get().is_null() {
            // Its slice, which that one would have shared, is over: it is not to wait for another
            // one of the same goroutine.
            displace_run_next(m);
        }
        (*g).transition(Status::Running, Status::Runnable);
        enqueue(m, g.cast_mut());
        sched.wake_one();
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

pub(super) unsafe extern "C" fn schedule0(m: *const M) -> ! {
    // SAFETY: called by `switch_away` and `mstart` on the system stack of this M.
    unsafe {
        set_g_and_guard(ptr::null_mut(), 0);
        schedule(&*m)
    }
}

/// The heart of an M, on its system stack: finds a goroutine and goes to it. When the run is
/// over, continues whoever called `mstart`.
///
/// # Safety
/// On the system stack of `m`, this thread's M, with nothing below that is needed.
#[inline(always)]
pub(super) unsafe fn schedule(m: &'static M) -> ! {
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
    // Who was woken was woken for work that waits.
    let mut may_steal = false;
    loop {
        let mut found = find_without_sleep(m, sched, may_steal);
        if found.is_none() && !sched.stopping.load(Ordering::Acquire) {
            // Look on for a while, but not with everybody.
            spinning = spinning || sched.idle.start_spinning(sched.ms.len());
            let start = timers::now();
            let (mut now, mut next_steal) = (start, start + PATIENCE_NS);
            while found.is_none() && now < start + SPIN_NS {
                may_steal = !spinning || now >= next_steal;
                if may_steal {
                    next_steal = now + PATIENCE_NS;
                }
                found = find_without_sleep(m, sched, may_steal);
                if !spinning {
                    break;
                }
                std::hint::spin_loop();
                now = timers::now();
            }
        }
        if std::mem::take(&mut spinning) {
            let was_last = sched.idle.stop_spinning();
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
        may_steal = true;
    }
}

fn find_without_sleep(m: &M, sched: &Sched, may_steal: bool) -> Option<*mut G> {
    if m.p.timers.any() {
        run_timers(m, m);
    }
    let g = pick_next(m);
    if !g.is_null() {
        return Some(g);
    }
    if sched.stopping.load(Ordering::Relaxed) {
        // Nothing more is run, and the own queue may be full: it is not to be stolen into.
        return None;
    }
    let mut g = sched.pop_global(m);
    if g.is_null() && may_steal {
        g = steal(m, sched);
    }
    if g.is_null() && may_steal && steal_timers(m, sched) {
        return Some(pick_next(m)).filter(|g| !g.is_null());
    }
    if g.is_null() {
        return None;
    }
    m.p.rounds.begin_slice();
    Some(g)
}

/// The other Ms, beginning somewhere else each time.
fn others<'a>(m: &'a M, sched: &'a Sched) -> impl Iterator<Item = &'static M> + 'a {
    let count = sched.ms.len();
    let start = m.p.rounds.all() as usize % count;
    let all = (start..start + count).map(move |i| sched.ms[i % count]);
    all.filter(move |other| !ptr::eq(*other, m))
}

/// Takes half of somebody else's run queue; returns one of it, or null. The own one is empty.
fn steal(m: &M, sched: &Sched) -> *mut G {
    match others(m, sched).find_map(|victim| victim.p.runq.steal_into(&m.p.runq)) {
        Some(Stolen { first, count }) => {
            bump(&m.p.counts.steals, 1);
            bump(&m.p.counts.stolen, count.into());
            first
        }
        None => ptr::null_mut(),
    }
}

/// Fires timers of Ms that are kept from it. Returns whether there were any: who is migratable runs
/// here then.
fn steal_timers(m: &M, sched: &Sched) -> bool {
    if !others(m, sched).any(|other| other.p.timers.any()) {
        return false;
    }
    let now = timers::now();
    let victim = others(m, sched).find(|other| other.p.timers.is_due(now));
    victim.inspect(|victim| run_timers(m, victim)).is_some()
}

/// Whether any queue that all Ms take from has something.
fn work_exists(sched: &Sched) -> bool {
    sched.global_len.load(Ordering::Acquire) != 0 || sched.ms.iter().any(|m| !m.p.runq.is_empty())
}

/// Returns whether this M is counted as spinning.
fn sleep_until_work(m: &'static M, sched: &'static Sched) -> bool {
    let sleeping = sched.idle.prepare_sleep(&m.inbox.parking);
    let stay = m.has_mail()
        || !m.yielded.is_empty()
        || work_exists(sched)
        || sched.stopping.load(Ordering::SeqCst);
    let spinning = if stay {
        sched.idle.stay_awake(&m.inbox.parking);
        true
    } else {
        bump(&m.p.counts.sleeps, 1);
        // The last one to sleep looks for a deadlock: soon, and then from time to time, since a
        // foreign thread that could wake a goroutine may end. Whoever has a timer need not look.
        let is_last = sleeping == sched.ms.len();
        let is_suspect = || is_last && !m.p.timers.any();
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
    sched.idle.leave_sleep();
    sched.sysmon.wake();
    spinning
}

/// Called by the last M that went to sleep. With no timer set and no other thread in the process,
/// nothing can wake a goroutine any more.
fn check_deadlock(sched: &Sched) {
    // The Ms are looked at one after the other. Only if none of them woke meanwhile do the looks
    // add up to one state.
    let wakes = sched.idle.wakes();
    let is_quiet = || {
        let asleep = |m: &&M| m.is_parked() && !m.has_mail() && m.p.timers.next().is_none();
        sched.all_idle()
            && sched.ms.iter().all(asleep)
            && !work_exists(sched)
            && !sched.stopping.load(Ordering::SeqCst)
    };
    if !is_quiet() {
        return;
    }
    let own_threads = sched.ms.len() + usize::from(sched.has_sysmon.load(Ordering::Relaxed));
    let threads = std::fs::read_dir("/proc/self/task").map_or(usize::MAX, Iterator::count);
    // A foreign thread may have readied a goroutine just before it ended: look again.
    if threads == own_threads && is_quiet() && sched.idle.wakes() == wakes {
        traceback::report_deadlock();
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
#[track_caller]
pub unsafe fn gopark(reason: WaitReason, unlock: impl FnOnce()) {
    let g = getg();
    if g.is_null() {
        // SAFETY: the stand-in is this thread's.
        return unsafe { park_thread(&*g::thread_g(), reason, unlock) };
    }
    // SAFETY: on a goroutine; immortal structures of this thread.
    let (gr, m) = unsafe { (&*g, this_m()) };
    assert_may_park(m);
    if gr.keeps_float_modes.get() {
        // SAFETY: by the contract of this function.
        return put_aside_during(gr, || unsafe { gopark(reason, unlock) });
    }
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
            set_g_and_guard(ptr::null_mut(), 0);
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
pub struct Parker(pub(super) *mut G);

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
pub(super) unsafe fn ready(parker: Parker, next: bool) {
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
        let m = unsafe { &*m };
        if m.run_id.load(Ordering::Relaxed) != g.run_id.load(Ordering::Relaxed) {
            return; // left behind by an earlier run that used this M
        }
        let queued = if next { m.p.run_next.replace(parker.0) } else { parker.0 };
        // SAFETY: null, or immortal.
        if let Some(g) = unsafe { queued.as_ref() } {
            let is_for_all = !belongs_to_thread(g);
            enqueue(m, queued);
            if is_for_all {
                // SAFETY: this thread's M.
                unsafe { sched_of(m) }.wake_one();
            }
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
#[track_caller]
pub(crate) fn refuse_park() -> ! {
    panic!("a goroutine cannot park inside of systemstack: the system stack is its thread's")
}

#[inline(always)]
#[track_caller]
fn assert_may_park(m: &M) {
    if m.on_system_stack.get() {
        refuse_park();
    }
}

/// The run that the calling thread belongs to, if any.
pub(crate) fn this_sched() -> Option<&'static Sched> {
    let m = getm();
    // SAFETY: this thread's M, and its run.
    (!m.is_null()).then(|| unsafe { sched_of(&*m) })
}
