//! A thread that watches how long goroutines run, and asks those to give way that had their time.
//!
//! It looks often at first (20 us), and less and less often as long as nothing is new, down to once
//! a time slice, or in 10 ms. When every M of the run is idle it sleeps until one is not: an idle
//! process is not woken. Who leaves the idle state wakes it (`handshake.rs`).
//!
//! Meanwhile it gives back the memory of dead goroutines that nobody needs (`pool.rs`).
//!
//! It runs no goroutine, takes no part in the scheduler, and ends when all Ms have left: a run that
//! is over needs it until the last goroutine has given way.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::runtime::gmp::pools::Scavenger;
use crate::runtime::gmp::sched::Sched;
use crate::runtime::gmp::timers;
use crate::runtime::os::{futex, signals};
use crate::runtime::sched::preempt;
use crate::runtime::sync::sysmon_sleep;

const FIRST_DELAY: Duration = Duration::from_micros(20);

const MAX_DELAY: Duration = Duration::from_millis(10);

/// Ticks with the first delay.
const EAGER_TICKS: u32 = 50;

/// Sleeps while all Ms are idle. Returns whether it did.
fn sleep_while_idle(sched: &Sched) -> bool {
    let word = &sched.sysmon.0;
    if !sched.all_idle() || !sysmon_sleep::announce_sleep(word) {
        return false;
    }
    while sched.all_idle() && word.load(Ordering::SeqCst) == sysmon_sleep::ASLEEP {
        futex::wait(word, sysmon_sleep::ASLEEP, None);
    }
    // Fails where somebody woke it, or ended it.
    sysmon_sleep::end_sleep(word);
    true
}

/// In which time slice an M was seen to be, and since when.
#[derive(Clone, Copy)]
struct Seen {
    time_slice: u64,
    since: Instant,
    /// The slice was over then: the next one begins about then, and need not be seen before it is
    /// over itself.
    ended: bool,
}

impl Seen {
    /// What is known now that the M is in slice `current`.
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
    let (mut delay, mut ticks) = (FIRST_DELAY, 0);
    let mut scavenger = Scavenger::new(Instant::now());
    let word = &sched.sysmon().0;
    while word.load(Ordering::SeqCst) != sysmon_sleep::ENDED {
        futex::wait(word, sysmon_sleep::AWAKE, Some(delay));
        if sleep_while_idle(sched) {
            (delay, ticks) = (FIRST_DELAY, 0);
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
                // It looks now and then only; and if it cannot, somebody else does.
                m.p.timers.set_overdue();
                sched.wake_one();
            }
            let new = Seen { time_slice: current, since: now, ended: false };
            let known = seen.map_or(new, |seen| seen.update(current, now));
            let is_over = now.duration_since(known.since) >= time_slice;
            if is_over {
                preempt::request(m);
            }
            // If it goes on nevertheless it is asked again, and not too often.
            *seen = Some(if is_over { Seen { since: now, ended: true, ..known } } else { known });
        }
        scavenger.tick(now);
        ticks += 1;
        if ticks > EAGER_TICKS {
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
            // Asked to end at 7, and runs on: asked again a slice later.
            (seen(5, 7, true), 5, seen(5, 7, true)),
            // Asked to end at 7: so the next one began then.
            (seen(5, 7, true), 6, seen(6, 7, false)),
            // Others came and went: nobody knows when this one began.
            (seen(5, 7, true), 7, seen(7, 10, false)),
            (seen(5, 7, false), 6, seen(6, 10, false)),
            // Another run used the same structure.
            (seen(5, 7, true), 1, seen(1, 10, false)),
        ] {
            assert_eq!(parts(before.update(current, at(10))), parts(expected), "{current}");
        }
    }
}
