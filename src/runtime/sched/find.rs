#![allow(unsafe_code, reason = "moves raw, immortal structures between queues")]
//! Choosing the next goroutine of an M, without sleeping and without switching.
//!
//! The order in which [`pick_next`] checks the queues, and why nothing starves:
//!
//! 1. *Inbox.* It is drained first, so that a goroutine which another thread has readied is queued
//!    after what is runnable now, and not after what will be.
//! 2. *Timers*, at one tick in 16, or when sysmon has found one to be late. Reading the clock at
//!    each tick would cost more than a switch.
//! 3. *Run-next slot.* A goroutine that the running one has readied runs next, and inherits the
//!    time slice: two goroutines that ready each other have one time slice between them, and not
//!    two. When that time slice is over, the goroutine goes to the end of a queue.
//! 4. *A round*, when one is due: one goroutine of the global queue, one of the run queue, and one
//!    of the local queue.
//! 5. *Yielded goroutines*, whose backlog has left the queues, join the local queue.
//! 6. *Global queue*, at one time slice in 64, so that the Ms' own queues do not starve it.
//! 7. *Run queue and local queue.* Goroutines of the run queue go first, which have mostly not
//!    started: a goroutine that waits for many of them is woken once. At one time slice in 8 the
//!    local queue goes first.
//!
//! All queues are first in, first out.
//!
//! Steps 5 to 7 count time slices, which may be long: 64 of them are most of a second. Rounds bound
//! the wait by time. One is due when a goroutine was descheduled at the end of its time slice, and
//! whenever as much time has passed (sysmon). So a goroutine that has come to the front of its
//! queue waits for the rest of the current time slice, and for one goroutine of each other queue.

use std::ptr;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use crate::runtime::gmp::current::sched_of;
use crate::runtime::gmp::g::{Backlog, G};
use crate::runtime::gmp::m::M;
use crate::runtime::gmp::p::{RUNQ, Turn, bump};
use crate::runtime::gmp::sched::Sched;
use crate::runtime::gmp::timers;
use crate::runtime::sched::ready::{displace_run_next, drain_inbox, run_timers, send_to_sleeper};
use crate::runtime::sync::runq::Stolen;

/// The global queue is checked first at one time slice in this many: a multiple of
/// [`LOCAL_EVERY`], so that the other time slices pay one check for both.
const GLOBAL_EVERY: u64 = 64;

/// The timers of a busy M are checked at one tick in this many.
const TIMERS_EVERY: u64 = 16;

/// The local queue goes before the run queue at one time slice in this many.
const LOCAL_EVERY: u64 = 8;

/// How many goroutines that were started one after the other must have suspended themselves before
/// others are sent to an M that sleeps. Two that exchange messages stay together.
const SETTLED: u32 = 2;

/// How many goroutines in a row inherit a time slice at most, in runs without a sysmon: nothing
/// else ends the time slice there.
const MAX_INHERITED_UNTIMED: u64 = 128;

/// The same where sysmon ends time slices.
///
/// So large that the time is up first. With a small one a pair that exchanges messages would have
/// some microseconds, and a loop on the same thread a whole time slice, in turn. It bounds time
/// slices that are set to be very long.
const MAX_INHERITED: u64 = 1 << 20;

/// How many goroutines in a row inherit a time slice at most.
pub(crate) fn max_inherited(has_time_slices: bool) -> u64 {
    if has_time_slices { MAX_INHERITED } else { MAX_INHERITED_UNTIMED }
}

impl Sched {
    /// Takes one goroutine from the global queue, and moves a fair share of the others to the M's
    /// run queue: one lock for many.
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

/// The next goroutine among those that are found without stealing, or null. Null also when the run
/// is over: then the caller goes to the system stack, where the M leaves.
#[inline(always)]
pub(crate) fn pick_next(m: &M) -> *mut G {
    let p = &m.p;
    // SAFETY: `m` is this thread's M, which has not left its run.
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
        if p.ticks.inherit_time_slice() {
            p.run_next.set(ptr::null_mut());
            return next;
        }
        displace_run_next(m);
    }
    let time_slice = p.ticks.time_slice();
    let mut g = ptr::null_mut();
    if time_slice.is_multiple_of(LOCAL_EVERY) | p.round.is_due() {
        g = pick_others_first(m, sched, time_slice);
    }
    if g.is_null() {
        g = p.runq.pop();
        if sched.idle.sleeping() != 0
            && !p.runq.is_empty()
            // SAFETY: null, or a G, which is never freed.
            && let Some(next) = unsafe { g.as_ref() }
            && p.burst.start_next(next) >= SETTLED
        {
            spread(m, sched);
        }
    }
    if g.is_null() {
        g = m.local.pop();
    }
    if g.is_null() && !m.yielded.is_empty() {
        readmit_yielded(m, sched);
        g = m.local.pop();
    }
    if !g.is_null() {
        p.ticks.begin_time_slice();
    }
    g
}

/// Sends half of the run queue to an M that sleeps.
///
/// Called where an M sleeps, and the goroutines that were started last have suspended themselves
/// instead of ending: a pool of workers that wait for jobs, or handlers that wait for their peers.
/// From then on they stay here, and those that start next probably will, too. An M that was woken
/// when the first one was queued comes too late to steal any: a thread takes some 50 us to wake,
/// and in one of them this M starts ten goroutines.
///
/// Goroutines that end at once are not sent: here they end before another thread has woken. Nor
/// are the first ones, so that a few that exchange messages stay together.
#[cold]
#[inline(never)]
fn spread(m: &M, sched: &Sched) {
    let waiting = RUNQ - m.p.runq.room();
    let Some(sleeper) = others(m, sched).find(|other| other.is_without_work()) else {
        return;
    };
    if !send_to_sleeper(m, sleeper, waiting.div_ceil(2)) {
        m.p.burst.reset(); // It searches, and steals by itself.
    }
}

/// The goroutine whose turn it is in the current round, if there is one.
#[cold]
fn serve_round(m: &M, sched: &Sched) -> *mut G {
    while let Some(turn) = m.p.round.take_turn() {
        let g = match turn {
            Turn::Global => sched.pop_global(m),
            Turn::RunQueue => m.p.runq.pop(),
            Turn::Local => {
                readmit_yielded(m, sched);
                m.local.pop()
            }
        };
        if !g.is_null() {
            return g;
        }
    }
    ptr::null_mut()
}

/// The goroutine that goes before the run queue, when a round is due and at one time slice in
/// [`LOCAL_EVERY`].
#[inline(never)]
fn pick_others_first(m: &M, sched: &Sched, time_slice: u64) -> *mut G {
    if m.p.round.is_due() {
        let g = serve_round(m, sched);
        if !g.is_null() || !time_slice.is_multiple_of(LOCAL_EVERY) {
            return g;
        }
    }
    if !m.yielded.is_empty() {
        readmit_yielded(m, sched);
    }
    let mut g = ptr::null_mut();
    if time_slice.is_multiple_of(GLOBAL_EVERY) {
        g = sched.pop_global(m);
    }
    if g.is_null() { m.local.pop() } else { g }
}

/// Whether the local queue is all that [`pick_next`] would have to check.
///
/// A goroutine that yields mostly finds it so. The checks are one branch: a branch for each cost a
/// yield a tenth of its time.
#[inline(always)]
pub(crate) fn is_local_only(m: &M, sched: &Sched) -> bool {
    let p = &m.p;
    let has_others = !p.run_next.get().is_null()
        | !p.runq.is_empty()
        | (sched.global_len.load(Ordering::Relaxed) != 0)
        | !m.yielded.is_empty()
        | m.has_remote()
        | p.timers.any()
        | sched.stopping.load(Ordering::Relaxed);
    !has_others
}

/// [`pick_next`] where [`is_local_only`] has said yes.
#[inline(always)]
pub(crate) fn pick_local(m: &M) -> *mut G {
    m.p.ticks.begin_time_slice();
    m.local.pop()
}

/// Moves goroutines that yielded to the local queue, oldest first, up to the first one whose
/// backlog has not left the queues.
///
/// A spill moves the older half of the run queue to the global queue, and the backlog with it. The
/// backlog is followed there, but not without end: a goroutine that yields must not starve where
/// others start more goroutines than this M can run.
#[cold]
pub(crate) fn readmit_yielded(m: &M, sched: &Sched) {
    /// How many spills a backlog is followed through.
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

/// The next goroutine from any queue, those of other Ms included if `may_steal`.
pub(crate) fn find_without_sleep(m: &M, sched: &Sched, may_steal: bool) -> Option<*mut G> {
    if m.p.timers.any() {
        run_timers(m, m);
    }
    let g = pick_next(m);
    if !g.is_null() {
        return Some(g);
    }
    if sched.stopping.load(Ordering::Relaxed) {
        // No goroutine runs any more. The own run queue may not be empty, and stealing into it
        // would overwrite what it has.
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

/// The other Ms, beginning at another one each time: thieves do not all go to the same victim.
pub(crate) fn others<'a>(m: &'a M, sched: &'a Sched) -> impl Iterator<Item = &'static M> + 'a {
    let count = sched.ms.len();
    let start = m.p.ticks.all() as usize % count;
    let all = (start..start + count).map(move |i| sched.ms[i % count]);
    all.filter(move |other| !ptr::eq(*other, m))
}

/// Steals half of another M's run queue, and returns one goroutine of it, or null. The run queue of
/// `m` is empty.
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

/// Fires timers of an M whose goroutine keeps it from that. Returns whether it did: a migratable
/// goroutine of them runs here.
fn steal_timers(m: &M, sched: &Sched) -> bool {
    if !others(m, sched).any(|other| other.p.timers.any()) {
        return false;
    }
    let now = timers::now();
    let victim = others(m, sched).find(|other| other.p.timers.is_due(now));
    victim.inspect(|victim| run_timers(m, victim)).is_some()
}
