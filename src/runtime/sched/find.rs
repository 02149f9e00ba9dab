#![allow(unsafe_code, reason = "moves raw, immortal structures between queues")]
//! Choosing the next goroutine of an M, without sleeping.
//!
//! Fairness. A goroutine that was readied by the running one goes next, and shares its time slice, so
//! that two goroutines that wake each other in turn have one slice and not two. When that slice is
//! over, it goes to the end of a queue. Queues are first in, first out; the global queue is checked
//! once in 61 time_slices, and timers once in 16 ticks or when sysmon says that one is late.

use std::ptr;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use crate::runtime::gmp::current::sched_of;
use crate::runtime::gmp::g::{Backlog, G};
use crate::runtime::gmp::m::M;
use crate::runtime::gmp::p::{RUNQ, bump};
use crate::runtime::gmp::sched::Sched;
use crate::runtime::gmp::timers;
use crate::runtime::sched::ready::{displace_run_next, drain_inbox, run_timers};
use crate::runtime::sync::runq::Stolen;

/// The global queue is looked at once in so many time_slices, so that it cannot starve.
const GLOBAL_EVERY: u64 = 61;

/// Timers of a busy M are looked at once in so many rounds.
const TIMERS_EVERY: u64 = 16;

/// The local queue goes before the run queue once in so many time_slices.
const LOCAL_EVERY: u64 = 8;

/// How often in a row the run-next slot goes before the queues at most: with short turns, and where no
/// sysmon ends time_slices.
pub(crate) const RUN_NEXT_STREAK: u64 = 128;

impl Sched {
    /// Takes one goroutine from the global queue, and with it, for the M's own queue, a fair share
    /// of the others: one lock for many.
    pub(crate) fn pop_global(&self, m: &M) -> *mut G {
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
}

/// The next goroutine among those that cost no lock to find, or null. Null also when the run is
/// over: the caller then goes to the system stack, where the M stops.
#[inline(always)]
pub(crate) fn pick_next(m: &M) -> *mut G {
    let p = &m.p;
    // SAFETY: `m` is this thread's M.
    let sched = unsafe { sched_of(m) };
    if sched.stopping.load(Ordering::Relaxed) {
        return ptr::null_mut();
    }
    if m.has_remote() && drain_inbox(m) {
        sched.wake_one();
    }
    if p.timers.any() && (p.ticks.all().is_multiple_of(TIMERS_EVERY) || p.timers.is_overdue()) {
        run_timers(m, m);
    }
    let next = p.run_next.get();
    if !next.is_null() {
        if p.ticks.inherit_time_slice(RUN_NEXT_STREAK) {
            p.run_next.set(ptr::null_mut());
            return next;
        }
        displace_run_next(m);
    }
    if !m.yielded.is_empty() {
        readmit_yielded(m, sched);
    }
    let time_slice = p.ticks.time_slice();
    let mut g = ptr::null_mut();
    if time_slice.is_multiple_of(GLOBAL_EVERY) {
        g = sched.pop_global(m);
    }
    if g.is_null() {
        // Goroutines that have not started go first, so that who waits for many of them waits
        // once; the others have their turn in any case.
        g = if time_slice.is_multiple_of(LOCAL_EVERY) {
            let g = m.local.pop();
            if g.is_null() { p.runq.pop() } else { g }
        } else {
            let g = p.runq.pop();
            if g.is_null() { m.local.pop() } else { g }
        };
    }
    if !g.is_null() {
        p.ticks.begin_time_slice();
    }
    g
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

pub(crate) fn find_without_sleep(m: &M, sched: &Sched, may_steal: bool) -> Option<*mut G> {
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
    m.p.ticks.begin_time_slice();
    Some(g)
}

/// The other Ms, beginning somewhere else each time.
pub(crate) fn others<'a>(m: &'a M, sched: &'a Sched) -> impl Iterator<Item = &'static M> + 'a {
    let count = sched.ms.len();
    let start = m.p.ticks.all() as usize % count;
    let all = (start..start + count).map(move |i| sched.ms[i % count]);
    all.filter(move |other| !ptr::eq(*other, m))
}

/// Takes half of somebody else's run queue; returns one of it, or null. The own one is empty.
pub(crate) fn steal(m: &M, sched: &Sched) -> *mut G {
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
