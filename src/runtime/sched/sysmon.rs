//! sysmon: a thread that watches how long goroutines run, and requests that those yield whose time
//! slice is over.
//!
//! In time order:
//!
//! 1. It checks every M often at first (every 20 us), and then less and less often, down to once a
//!    time slice or in 10 ms. An M that is in the same time slice for too long gets a request
//!    (`preempt::request_by`), which its next poll sees. A signal, by which JIT code sees it at
//!    once, is sent where it can be of use: see [`Watch::wants_signal`].
//! 2. Once a time slice it begins a round on every M (`find.rs`).
//! 3. An M whose timers are late is told so. If its goroutine keeps it from firing them, another M
//!    that is woken does.
//! 4. It decommits stacks of dead goroutines that no goroutine needs (`gmp/pools.rs`).
//! 5. It lets the watchdog check the Ms (`watchdog.rs`).
//! 6. When every M is idle it sleeps until one is not: an idle process is not woken. The protocol
//!    is `sync/sysmon_sleep.rs`.
//! 7. It ends when all Ms have left the run. It must not end before: a goroutine that computes
//!    comes to the scheduler because sysmon requests it.
//!
//! It runs no goroutine and must not: it has no P, and nothing would watch it.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::runtime::gmp::m::M;
use crate::runtime::gmp::pools::Scavenger;
use crate::runtime::gmp::sched::Sched;
use crate::runtime::gmp::timers;
use crate::runtime::os::{futex, signals};
use crate::runtime::sched::watchdog::Watchdog;
use crate::runtime::sched::{preempt, preempt_signal};
use crate::runtime::sync::preempt_request::Signalled;
use crate::runtime::sync::sysmon_sleep;

const FIRST_DELAY: Duration = Duration::from_micros(20);

const MAX_DELAY: Duration = Duration::from_millis(10);

/// How many checks follow one another with the first delay.
const EAGER_CHECKS: u32 = 50;

/// The time slice that an M was seen in, and since when.
#[derive(Clone, Copy)]
struct Seen {
    time_slice: u64,
    since: Instant,
    /// sysmon ended the time slice at `since`. So the next one begins then, whether or not it is
    /// seen before it is over itself.
    ended: bool,
    /// The request of the end of the time slice was made without a signal.
    owes_signal: bool,
}

impl Seen {
    fn new(time_slice: u64, since: Instant) -> Self {
        Self { time_slice, since, ended: false, owes_signal: false }
    }

    /// What is known now that the M is in time slice `current`.
    fn update(self, current: u64, now: Instant) -> Self {
        match current.wrapping_sub(self.time_slice) {
            0 => self,
            1 if self.ended => Self::new(current, self.since),
            _ => Self::new(current, now),
        }
    }
}

/// How often the number of time slices between signals that find no preemptible code is doubled:
/// up to eight. The thread may enter preemptible code in between, where another goroutine then
/// waits for it for that long.
const MAX_DOUBLINGS: u32 = 3;

/// A thread that has had a processor for less than this time, or a sixteenth of a time slice, is
/// taken to wait in system calls. When one of these ends, the thread is ready to run, and a busy
/// machine lets it run much later: what a signal then interrupts is that call.
const MIN_COMPUTED: Duration = Duration::from_micros(500);

/// After this many signals in a row that are not answered, the cause is looked for.
const MIN_UNANSWERED: u32 = 2;

/// What sysmon knows of an M.
#[derive(Clone, Copy)]
struct Watch {
    seen: Option<Seen>,
    /// How long the thread had had a processor at `Seen::since`.
    cpu_time: Option<Duration>,
    /// The M's ticks when the last signal was sent, and how many time slices have ended since then.
    signalled: (u64, u32),
    /// How many requests in a row found that an earlier signal had not been answered.
    unanswered: u32,
}

impl Watch {
    fn new() -> Self {
        Self { seen: None, cpu_time: None, signalled: (0, 0), unanswered: 0 }
    }

    /// One check of the M, which is in time slice `current`. Requests that its goroutine yields if
    /// the time slice is over.
    fn check(&mut self, m: &M, sched: &Sched, current: u64, now: Instant, time_slice: Duration) {
        let known = self.seen.map_or(Seen::new(current, now), |seen| seen.update(current, now));
        if self.seen.is_none_or(|seen| seen.since != known.since) {
            self.cpu_time = preempt::thread_cpu_time(m);
        }
        self.seen = Some(known);
        let is_over = now.duration_since(known.since) >= time_slice;
        if !(is_over || known.owes_signal) {
            return;
        }
        if is_over {
            self.signalled.1 = self.signalled.1.saturating_add(1);
        }
        let by_signal = self.wants_signal(m, sched, time_slice);
        if !(is_over || by_signal) {
            return;
        }
        let signalled = preempt::request_by(m, by_signal);
        // If the goroutine runs on, it gets another request a time slice later.
        self.seen = Some(Seen { since: now, ended: true, owes_signal: !by_signal, ..known });
        self.cpu_time = preempt::thread_cpu_time(m);
        match signalled {
            None | Some(Signalled::No) => {}
            Some(Signalled::Sent) => {
                self.signalled = (m.p.ticks.all(), 0);
                self.unanswered = 0;
            }
            Some(Signalled::Unanswered | Signalled::Refused) => {
                self.unanswered = self.unanswered.saturating_add(1);
                // Each time twice as long after the last: a thread that never answers must not cost
                // a system call in each of its time slices.
                if self.unanswered >= MIN_UNANSWERED && self.unanswered.is_power_of_two() {
                    preempt_signal::resend(m);
                }
            }
        }
    }

    /// Whether a signal can be of use. In native code it only ends system calls with EINTR which
    /// SA_RESTART does not cover. So there is none:
    ///
    /// * where no goroutine waits for the processor: if one does later, the signal is sent then;
    /// * where the thread waits in a system call, as the kernel knows, or has done little else
    ///   for a time slice ([`MIN_COMPUTED`]);
    /// * for a while where signals in this tick have found no preemptible code: each time for twice
    ///   as many time slices.
    fn wants_signal(&self, m: &M, sched: &Sched, time_slice: Duration) -> bool {
        if !preempt::takes_signals(m) || !has_waiting(m, sched) {
            return false;
        }
        let (ticks, ended) = self.signalled;
        if m.p.ticks.all() != ticks {
            m.preempt.in_vain.store(0, Ordering::Relaxed);
        }
        let doublings = m.preempt.in_vain.load(Ordering::Relaxed).min(MAX_DOUBLINGS);
        let has_computed = || {
            let (before, now) = (self.cpu_time, preempt::thread_cpu_time(m));
            let time = before.zip(now).map(|(before, now)| now.saturating_sub(before));
            time.is_none_or(|time| time >= MIN_COMPUTED.min(time_slice / 16))
        };
        let waits = || preempt::thread_status(m).is_some_and(|status| status.waits);
        ended >= 1 << doublings && has_computed() && !waits()
    }
}

/// Whether a goroutine waits that the M could run, or the end of the run.
fn has_waiting(m: &M, sched: &Sched) -> bool {
    let p = &m.p;
    !p.run_next.get().is_null()
        || !m.local.is_empty()
        || !m.yielded.is_empty()
        || m.has_remote()
        || p.timers.any() && p.timers.is_due(timers::now())
        || sched.global_len.load(Ordering::Relaxed) != 0
        || sched.ms().any(|m| !m.p.runq.is_empty())
        || sched.stopping.load(Ordering::Relaxed)
}

/// The body of the thread.
pub(crate) fn run(sched: &Sched, time_slice: Duration) {
    // Signals are for the threads of the program.
    signals::block_all();
    let longest = time_slice.min(MAX_DELAY).max(FIRST_DELAY);
    let mut watches = vec![Watch::new(); sched.ms().count()];
    let (mut delay, mut checks) = (FIRST_DELAY, 0);
    let mut next_round = Instant::now() + time_slice;
    let mut scavenger = Scavenger::new(Instant::now());
    let mut watchdog = Watchdog::new(sched);
    let word = &sched.sysmon().0;
    let sleep = |word: &_, value| futex::wait(word, value, None);
    while !sysmon_sleep::has_ended(word) {
        futex::wait(word, sysmon_sleep::AWAKE, Some(delay));
        if sysmon_sleep::sleep_while_idle(word, || sched.all_idle(), sleep) {
            (delay, checks) = (FIRST_DELAY, 0);
            watches.iter_mut().for_each(|watch| watch.seen = None);
            continue;
        }
        let now = Instant::now();
        if now >= next_round {
            next_round = now + time_slice;
            sched.ms().for_each(|m| m.p.round.begin());
        }
        // Nothing waits longer than that for the end of a run, whatever the time slice is.
        let is_stopping = sched.stopping.load(Ordering::Relaxed);
        let time_slice = if is_stopping { longest } else { time_slice };
        for (m, watch) in sched.ms().zip(&mut watches) {
            let Some(current) = m.time_slice() else {
                watch.seen = None;
                continue;
            };
            if m.p.timers.any() && m.p.timers.is_due(timers::now()) {
                m.p.timers.set_overdue();
                sched.wake_one();
            }
            watch.check(m, sched, current, now, time_slice);
        }
        scavenger.tick(now);
        if let Some(watchdog) = &mut watchdog {
            watchdog.tick(sched, now);
        }
        checks += 1;
        if checks > EAGER_CHECKS {
            delay = (delay * 2).min(longest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_that_begins_when_another_one_ends_is_counted_from_there() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let seen = |time_slice, millis, ended| Seen {
            ended,
            owes_signal: ended,
            ..Seen::new(time_slice, at(millis))
        };
        let parts = |seen: Seen| (seen.time_slice, seen.since, seen.ended, seen.owes_signal);
        for (before, current, expected) in [
            // Still the same.
            (seen(5, 0, false), 5, seen(5, 0, false)),
            // Requested at 7, and runs on: the next request is a time slice later.
            (seen(5, 7, true), 5, seen(5, 7, true)),
            // Requested at 7: so the next one began then.
            (seen(5, 7, true), 6, seen(6, 7, false)),
            // Others came and went: it is not known when this one began.
            (seen(5, 7, true), 7, seen(7, 10, false)),
            (seen(5, 7, false), 6, seen(6, 10, false)),
            // Another run used the same structure.
            (seen(5, 7, true), 1, seen(1, 10, false)),
        ] {
            assert_eq!(parts(before.update(current, at(10))), parts(expected), "{current}");
        }
    }
}
