//! The watchdog: it sees a goroutine that keeps its thread for seconds while others wait for that.
//!
//! Two kinds of incident are reported, each once:
//!
//! * A goroutine has been on its M for the watchdog's time without coming to the scheduler, and
//!   goroutines wait for that M: those that belong to it, and where every M is in that state those
//!   that any M may run too. A goroutine that computes or blocks for long while none waits for it
//!   is no incident: that is what threads are for. So is one that a join waits for.
//! * The run has been ending for that time, and a goroutine still keeps its M.
//!
//! A third state is fatal: no M can ever run a goroutine again, since each is parked with nothing
//! to run or blocked in a lock that no thread can release ([`Watchdog::is_deadlock`]). The check of
//! `idle.rs` sees the first kind of M only.
//!
//! sysmon calls [`Watchdog::tick`] in its loop. A run without time slices has no sysmon: it has a
//! thread for the watchdog alone, on request ([`run`]). Either sleeps while all Ms are idle: then
//! no goroutine keeps its thread. What is written, and how the goroutine's stack is read, is
//! `fault/stall.rs`: this file knows nothing of walks. It must not block: it decides by words that
//! the Ms publish.

use std::ptr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::runtime::gmp::m::M;
use crate::runtime::gmp::sched::{Sched, Stall, StallKind};
use crate::runtime::gmp::status::Status;
use crate::runtime::gmp::{g, join_state, timers};
use crate::runtime::os::threads::Blocked;
use crate::runtime::os::{fault, futex, signals, threads};
use crate::runtime::sched::ready::work_exists;
use crate::runtime::sync::sysmon_sleep;

/// The watchdog checks this often within its time, so that an incident is seen at most one part
/// later.
const CHECKS: u32 = 8;

const MIN_INTERVAL: Duration = Duration::from_millis(1);

const MAX_INTERVAL: Duration = Duration::from_secs(1);

/// Counting those that wait takes one part in this many of the watchdog's time at most.
const COST_SHARE: u32 = 100;

/// A goroutine that an M runs.
struct Seen {
    id: u64,
    /// The M's ticks: the goroutine has not come to the scheduler while they are the same.
    ticks: u64,
    since: Instant,
    /// Goroutines waited for the M at the last check.
    had_waiting: bool,
    is_reported: bool,
    /// Where its thread was blocked at the last check, if that was of interest.
    blocked: Option<Blocked>,
}

/// What the watchdog of a run remembers from check to check.
pub(crate) struct Watchdog {
    limit: Duration,
    interval: Duration,
    next_check: Instant,
    seen: Vec<Option<Seen>>,
    ending_since: Option<Instant>,
}

impl Watchdog {
    /// `None`: the run has none.
    pub(crate) fn new(sched: &Sched) -> Option<Self> {
        let limit = sched.watchdog?;
        let interval = (limit / CHECKS).clamp(MIN_INTERVAL, MAX_INTERVAL);
        let seen = sched.ms().map(|_| None).collect();
        Some(Self { limit, interval, next_check: Instant::now(), seen, ending_since: None })
    }

    /// Checks the Ms, if it is time to.
    pub(crate) fn tick(&mut self, sched: &Sched, now: Instant) {
        if now < self.next_check {
            return;
        }
        self.next_check = now + self.interval;
        for (m, seen) in sched.ms().zip(&mut self.seen) {
            update(seen, m, now);
        }
        if sched.stopping.load(Ordering::Relaxed) {
            self.check_end(sched, now);
            return;
        }
        let limit = self.limit;
        let is_stuck = |seen: &Option<Seen>| {
            seen.as_ref().is_some_and(|seen| now.duration_since(seen.since) >= limit)
        };
        if self.seen.iter().any(is_stuck) {
            if self.is_deadlock(sched, is_stuck) {
                (sched.on_deadlock)();
            }
            self.check_waiting(sched, now, is_stuck);
        }
    }

    /// Reports goroutines whose Ms other goroutines wait for.
    fn check_waiting(
        &mut self,
        sched: &Sched,
        now: Instant,
        is_stuck: impl Fn(&Option<Seen>) -> bool,
    ) {
        let all_stuck = self.seen.iter().all(&is_stuck);
        let start = Instant::now();
        let counts = waiting(sched, all_stuck);
        // With a million goroutines the count takes long, and a goroutine may compute for hours
        // while none waits for it.
        self.next_check = self.next_check.max(now + start.elapsed() * COST_SHARE);
        let mut stalls = Vec::new();
        for ((m, seen), &goroutines) in sched.ms().zip(&mut self.seen).zip(&counts) {
            let is_stuck = is_stuck(seen);
            let Some(seen) = seen else { continue };
            // Twice: a goroutine may be on its way to another M.
            let had_waiting = std::mem::replace(&mut seen.had_waiting, goroutines > 0);
            if is_stuck && had_waiting && goroutines > 0 && !seen.is_reported {
                let kind = StallKind::Waiting { goroutines };
                stalls.extend(stall(m, seen, now.duration_since(seen.since), kind));
            }
        }
        self.report(sched, stalls);
    }

    /// Reports goroutines that keep a run from ending.
    fn check_end(&mut self, sched: &Sched, now: Instant) {
        let elapsed = now.duration_since(*self.ending_since.get_or_insert(now));
        if elapsed < self.limit {
            // What was reported before has waited for something else.
            self.seen.iter_mut().flatten().for_each(|seen| seen.is_reported = false);
            return;
        }
        let running = sched.ms().zip(&self.seen).filter_map(|(m, seen)| Some((m, seen.as_ref()?)));
        let unreported = running.filter(|(_, seen)| !seen.is_reported);
        let stalls =
            unreported.filter_map(|(m, seen)| stall(m, seen, elapsed, StallKind::Ending)).collect();
        self.report(sched, stalls);
    }

    /// Writes the messages. What could not be written is tried again.
    fn report(&mut self, sched: &Sched, stalls: Vec<Stall>) {
        if stalls.is_empty() {
            return;
        }
        let ids: Vec<u64> = stalls.iter().map(|stall| stall.id).collect();
        if (sched.on_stall)(stalls) {
            let reported = self.seen.iter_mut().flatten().filter(|seen| ids.contains(&seen.id));
            reported.for_each(|seen| seen.is_reported = true);
        }
    }

    /// Whether no goroutine can ever run again. That is so if all of these hold:
    ///
    /// 1. Each M is parked with nothing to run, or has been in one goroutine for the watchdog's
    ///    time, whose thread is blocked in a lock: at the same place at two checks.
    /// 2. There is no timer.
    /// 3. The process has no thread but the run's, which could release a lock or ready a
    ///    goroutine.
    /// 4. The program has no handler of a signal, which could release a semaphore.
    fn is_deadlock(&mut self, sched: &Sched, is_stuck: impl Fn(&Option<Seen>) -> bool) -> bool {
        let wakes = sched.idle.wakes();
        let mut is_quiet = true;
        for (m, seen) in sched.ms().zip(&mut self.seen) {
            is_quiet &= m.p.timers.next().is_none();
            if is_stuck(seen) {
                let Some(seen) = seen else { continue };
                let blocked = threads::blocked(m.tid.load(Ordering::Relaxed));
                let before = std::mem::replace(&mut seen.blocked, blocked);
                is_quiet &= blocked.is_some_and(|blocked| blocked.is_in_lock());
                is_quiet &= blocked == before;
            } else {
                is_quiet &= m.is_parked() && !m.has_remote() && !work_exists(sched);
            }
        }
        is_quiet
            && threads::count() == sched.own_threads()
            && !fault::handles_signals()
            && sched.idle.wakes() == wakes
            && !sched.stopping.load(Ordering::SeqCst)
    }
}

/// Notes what an M runs now.
fn update(seen: &mut Option<Seen>, m: &M, now: Instant) {
    let current = m.current().map(|g| (g.id.load(Ordering::Relaxed), m.p.ticks.all()));
    let is_same = |seen: &&mut Seen| current == Some((seen.id, seen.ticks));
    if seen.as_mut().filter(is_same).is_none() {
        *seen = current.map(|(id, ticks)| Seen {
            id,
            ticks,
            since: now,
            had_waiting: false,
            is_reported: false,
            blocked: None,
        });
    }
}

/// An incident, unless another goroutine runs on the M by now.
fn stall(m: &'static M, seen: &Seen, elapsed: Duration, kind: StallKind) -> Option<Stall> {
    let g = m.current()?;
    (g.id.load(Ordering::Relaxed) == seen.id).then_some(Stall { g, id: seen.id, elapsed, kind })
}

/// How many goroutines wait for each M of the run: those in its run-next slot, its local queue, its
/// inbox and among those that have yielded, and those whose timers it has not fired. With
/// `and_any`, goroutines that any M may start count for each M.
///
/// By the goroutines, and not by the queues: the M alone may read those. It takes time in
/// proportion to all goroutines, and so is done only once an M has been in one for long.
fn waiting(sched: &Sched, and_any: bool) -> Vec<usize> {
    let now = timers::now();
    let mut counts: Vec<usize> = sched.ms().map(|m| m.p.timers.count_due(now)).collect();
    let mut index_of: Vec<(*const M, usize)> = sched.ms().map(ptr::from_ref).zip(0..).collect();
    index_of.sort_unstable();
    let mut any = 0;
    for g in g::all() {
        let is_waiting = g.status() == Status::Runnable
            && g.run_id.load(Ordering::Relaxed) == sched.run_id
            && g.join.load(Ordering::Relaxed) != join_state::ABANDONED;
        if !is_waiting {
            continue;
        }
        let home = g.m.load(Ordering::Relaxed).cast_const();
        match index_of.binary_search_by_key(&home, |&(m, _)| m) {
            Ok(found) => counts[index_of[found].1] += 1,
            Err(_) => any += 1,
        }
    }
    if and_any {
        counts.iter_mut().for_each(|count| *count += any);
    }
    counts
}

/// The body of the thread of a run without time slices.
pub(crate) fn run(sched: &Sched) {
    // Signals are for the threads of the program.
    signals::block_all();
    let Some(mut watchdog) = Watchdog::new(sched) else { return };
    let word = &sched.sysmon().0;
    let sleep = |word: &_, value| futex::wait(word, value, None);
    while !sysmon_sleep::has_ended(word) {
        futex::wait(word, sysmon_sleep::AWAKE, Some(watchdog.interval));
        if !sysmon_sleep::sleep_while_idle(word, || sched.all_idle(), sleep) {
            watchdog.tick(sched, Instant::now());
        }
    }
}
