//! sysmon: a thread that watches how long goroutines run, and requests that those yield whose time
//! slice is over.
//!
//! In time order:
//!
//! 1. It checks every M often at first (every 20 us), and then less and less often, down to once a
//!    time slice or in 10 ms. An M that is in the same time slice for too long gets a request
//!    (`preempt::request`).
//! 2. An M whose timers are late is told so. If its goroutine keeps it from firing them, another M
//!    that is woken does.
//! 3. It decommits stacks of dead goroutines that no goroutine needs (`gmp/pools.rs`).
//! 4. It lets the watchdog check the Ms (`watchdog.rs`).
//! 5. When every M is idle it sleeps until one is not: an idle process is not woken. The protocol
//!    is `sync/sysmon_sleep.rs`.
//! 6. It ends when all Ms have left the run. It must not end before: a goroutine that computes
//!    comes to the scheduler because sysmon requests it.
//!
//! It runs no goroutine and must not: it has no P, and nothing would watch it.

use std::time::{Duration, Instant};

use crate::runtime::gmp::pools::Scavenger;
use crate::runtime::gmp::sched::Sched;
use crate::runtime::gmp::timers;
use crate::runtime::os::{futex, signals};
use crate::runtime::sched::preempt;
use crate::runtime::sched::watchdog::Watchdog;
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
}

impl Seen {
    /// What is known now that the M is in time slice `current`.
    fn update(self, current: u64, now: Instant) -> Self {
        match current.wrapping_sub(self.time_slice) {
            0 => self,
            1 if self.ended => Self { time_slice: current, ended: false, ..self },
            _ => Self { time_slice: current, since: now, ended: false },
        }
    }
}

/// The body of the thread.
pub(crate) fn run(sched: &Sched, time_slice: Duration) {
    // Signals are for the threads of the program.
    signals::block_all();
    let longest = time_slice.min(MAX_DELAY).max(FIRST_DELAY);
    let mut seen: Vec<Option<Seen>> = vec![None; sched.ms().count()];
    let (mut delay, mut checks) = (FIRST_DELAY, 0);
    let mut scavenger = Scavenger::new(Instant::now());
    let mut watchdog = Watchdog::new(sched);
    let word = &sched.sysmon().0;
    let sleep = |word: &_, value| futex::wait(word, value, None);
    while !sysmon_sleep::has_ended(word) {
        futex::wait(word, sysmon_sleep::AWAKE, Some(delay));
        if sysmon_sleep::sleep_while_idle(word, || sched.all_idle(), sleep) {
            (delay, checks) = (FIRST_DELAY, 0);
            seen.fill(None);
            continue;
        }
        let now = Instant::now();
        for (m, seen) in sched.ms().zip(&mut seen) {
            let Some(current) = m.time_slice() else {
                *seen = None;
                continue;
            };
            if m.p.timers.any() && m.p.timers.is_due(timers::now()) {
                m.p.timers.set_overdue();
                sched.wake_one();
            }
            let new = Seen { time_slice: current, since: now, ended: false };
            let known = seen.map_or(new, |seen| seen.update(current, now));
            let is_over = now.duration_since(known.since) >= time_slice;
            if is_over {
                preempt::request(m);
            }
            // If the goroutine runs on, it gets another request a time slice later.
            *seen = Some(if is_over { Seen { since: now, ended: true, ..known } } else { known });
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
        let seen = |time_slice, millis, ended| Seen { time_slice, since: at(millis), ended };
        let parts = |seen: Seen| (seen.time_slice, seen.since, seen.ended);
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
