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

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::futex;
use super::handshake::{self, ASLEEP, AWAKE, ENDED};
use super::pool::Scavenger;
use super::preempt;
use super::sched::Sched;
use super::signal;
use super::timers;

const FIRST_DELAY: Duration = Duration::from_micros(20);
const MAX_DELAY: Duration = Duration::from_millis(10);
/// Rounds with the first delay.
const EAGER_ROUNDS: u32 = 50;

/// What sysmon shares with the Ms: whether it sleeps, and whether it is to end.
pub(crate) struct Sysmon(AtomicU32);

impl Sysmon {
    pub(crate) const fn new() -> Self {
        Self(AtomicU32::new(AWAKE))
    }

    /// Called by an M that was idle, after it is counted as idle no more.
    #[inline]
    pub(crate) fn wake(&self) {
        if handshake::must_wake(&self.0) {
            futex::wake(&self.0);
        }
    }

    /// Lets the thread end.
    pub(crate) fn end(&self) {
        self.0.store(ENDED, Ordering::SeqCst);
        futex::wake(&self.0);
    }

    /// Sleeps while all Ms are idle. Returns whether it did.
    fn sleep_while_idle(&self, sched: &Sched) -> bool {
        if !sched.all_idle() || !handshake::announce_sleep(&self.0) {
            return false;
        }
        while sched.all_idle() && self.0.load(Ordering::SeqCst) == ASLEEP {
            futex::wait(&self.0, ASLEEP, None);
        }
        // Fails where somebody woke it, or ended it.
        handshake::end_sleep(&self.0);
        true
    }
}

/// In which time slice an M was seen to be, and since when.
#[derive(Clone, Copy)]
struct Seen {
    slice: u64,
    since: Instant,
}

/// The body of the thread.
pub(crate) fn run(sched: &Sched, slice: Duration) {
    // Signals are for the threads of the program.
    signal::block_all();
    let longest = slice.min(MAX_DELAY).max(FIRST_DELAY);
    let mut seen: Vec<Option<Seen>> = vec![None; sched.ms().count()];
    let (mut delay, mut rounds) = (FIRST_DELAY, 0);
    let mut scavenger = Scavenger::new(Instant::now());
    let word = &sched.sysmon().0;
    while word.load(Ordering::SeqCst) != ENDED {
        futex::wait(word, AWAKE, Some(delay));
        if sched.sysmon().sleep_while_idle(sched) {
            (delay, rounds) = (FIRST_DELAY, 0);
            seen.fill(None);
            continue;
        }
        let now = Instant::now();
        for (m, seen) in sched.ms().zip(&mut seen) {
            let Some(current) = m.slice() else {
                *seen = None;
                continue;
            };
            if m.p.timers.any() && m.p.timers.is_due(timers::now()) {
                // It looks now and then only; and if it cannot, somebody else does.
                m.p.timers.set_overdue();
                sched.wake_one();
            }
            match seen {
                Some(known) if known.slice == current => {
                    if now.duration_since(known.since) >= slice {
                        preempt::request(m);
                        // If it goes on nevertheless it is asked again, and not too often.
                        known.since = now;
                    }
                }
                _ => *seen = Some(Seen { slice: current, since: now }),
            }
        }
        scavenger.tick(now);
        rounds += 1;
        if rounds > EAGER_ROUNDS {
            delay = (delay * 2).min(longest);
        }
    }
}
