//! A wait that its timer or a peer ends, while its goroutine is still on the way to park; and waits
//! without a limit.
//!
//! The lock of a channel is not modelled. `visible` takes its place: a peer that sees it has taken
//! the waiter from the queue.

use std::sync::Arc;

use loom::cell::UnsafeCell;

use super::claim::{Claim, TimedOut};
use super::explore::{
    Body, Model, Mutant, Unseen, explore, see_broken, see_nothing, see_wrong, together,
};
use super::park;
use super::primitive::How::{Relaxed, Torn};
use super::primitive::{AtomicBool, AtomicU32, AtomicUsize, How, Ordering, Weak};
use super::status::{HasStatus, RUNNING, WAITING, transition};

/// The wait of a goroutine that receives.
struct Wait {
    status: AtomicU32,
    claim: Claim,
    /// The waiter is in the queue, and the lock of the channel was released.
    visible: AtomicBool,
    value: UnsafeCell<u32>,
    readied: AtomicUsize,
}

// SAFETY: loom checks the accesses of the cell.
unsafe impl Send for Wait {}
// SAFETY: loom checks the accesses of the cell.
unsafe impl Sync for Wait {}

impl HasStatus for Wait {
    fn status_word(&self) -> &AtomicU32 {
        &self.status
    }

    fn refuse(&self, now: u32, from: u32, _to: u32) -> ! {
        panic!("it is readied and does not wait: {now}, not {from}")
    }
}

const CASE: usize = 0;

#[derive(Clone, Copy, PartialEq)]
enum Steps {
    Right,
    /// The claim is opened before the goroutine waits.
    OpenFirst,
}

impl Wait {
    fn new(claim: Claim) -> Arc<Self> {
        Arc::new(Self {
            status: AtomicU32::new(RUNNING),
            claim,
            visible: AtomicBool::new(false),
            value: UnsafeCell::new(0),
            readied: AtomicUsize::new(0),
        })
    }

    fn ready(&self) {
        park::make_runnable(self);
        self.readied.fetch_add(1, Ordering::Relaxed);
    }

    /// Parks with a limit, up to where the goroutine has left its stack.
    fn park(&self, steps: Steps) {
        let unlock = || self.visible.store(true, Ordering::Release);
        if steps == Steps::Right {
            park::park(self, || self.claim.park(unlock, || self.ready()));
        } else {
            let is_open = self.claim.open_armed();
            transition(self, RUNNING, WAITING);
            unlock();
            if !is_open {
                self.ready();
            }
        }
    }

    /// The timer is due.
    fn time_out(&self) {
        if self.claim.time_out() == TimedOut::MustReady {
            self.ready();
        }
    }

    /// A peer has a value for the goroutine.
    fn send(&self) {
        if self.visible.load(Ordering::Acquire) && self.claim.claim(CASE) {
            // SAFETY: loom checks that nothing else has access.
            self.value.with_mut(|value| unsafe { *value += 1 });
            self.ready();
        }
    }
}

impl Wait {
    /// Parks without a limit, up to where the goroutine has left its stack.
    fn park_open(&self) {
        park::park(self, || self.visible.store(true, Ordering::Release));
    }

    /// [`Self::send`] to the only case of a wait. Peers take a waiter out of its queue under the
    /// lock, so that one of them comes to this.
    fn send_alone(&self) {
        if self.visible.load(Ordering::Acquire) {
            self.claim.claim_alone(CASE);
            // SAFETY: loom checks that nothing else has access.
            self.value.with_mut(|value| unsafe { *value += 1 });
            self.ready();
        }
    }
}

/// Two cases of a select without a limit, or one case alone.
fn open_in(peers: &[fn(&Wait)]) {
    let wait = Wait::new(Claim::open());
    let members = [Wait::park_open as fn(&Wait)].into_iter().chain(peers.iter().copied());
    let bodies = members.map(|member| -> Body {
        let wait = Arc::clone(&wait);
        Box::new(move || member(&wait))
    });
    together(bodies.collect());
    let readied = wait.readied.load(Ordering::Relaxed);
    assert!(readied <= 1, "it is readied {readied} times");
    // SAFETY: loom checks that nothing else has access.
    let passed = wait.value.with(|value| unsafe { *value }) as usize;
    assert!(passed == readied, "{passed} values passed, and it is readied {readied} times");
    assert!(readied == 0 || wait.claim.outcome() == CASE, "nothing ended it");
}

fn several() {
    open_in(&[Wait::send, Wait::send]);
}

fn alone() {
    open_in(&[Wait::send_alone]);
}

fn ending_in(steps: Steps) {
    let wait = Wait::new(Claim::arming());
    let member = |member: fn(&Wait)| -> Body {
        let wait = Arc::clone(&wait);
        Box::new(move || member(&wait))
    };
    let parks: Body = {
        let wait = Arc::clone(&wait);
        Box::new(move || wait.park(steps))
    };
    together(vec![parks, member(Wait::time_out), member(Wait::send), member(Wait::send)]);
    let readied = wait.readied.load(Ordering::Relaxed);
    assert!(readied == 1, "it is readied {readied} times");
    // SAFETY: loom checks that nothing else has access.
    let passed = wait.value.with(|value| unsafe { *value });
    let expected = match wait.claim.outcome() {
        CASE => 1,
        Claim::TIMED_OUT => 0,
        other => panic!("nothing ended it: {other}"),
    };
    assert!(passed == expected, "{passed} values passed, and {expected} are known");
}

fn ending() {
    ending_in(Steps::Right);
}

const ENDING: Model = Model {
    name: "a wait with a limit ends",
    body: ending,
    preemptions: Some(2),
    least: 100,
    without: &[],
};

const SEVERAL: Model = Model {
    name: "a wait with two cases ends",
    body: several,
    preemptions: None,
    least: 10,
    without: &[],
};
const ALONE: Model = Model {
    name: "a wait with one case ends",
    body: alone,
    preemptions: None,
    least: 2,
    without: &[],
};

#[test]
fn a_wait_without_a_limit_is_ended_once() {
    explore(SEVERAL);
    explore(ALONE);
}

#[test]
fn a_wait_is_ended_once_by_its_timer_or_a_peer() {
    explore(ENDING);
}

#[test]
fn a_claim_that_is_opened_too_early_readies_what_does_not_wait() {
    let body = || ending_in(Steps::OpenFirst);
    see_wrong(Model { body, ..ENDING }, "it is readied and does not wait");
}

const fn weak(function: &'static str, operation: &'static str, how: How) -> Weak {
    Weak { file: "claim.rs", function, operation, how }
}

const EXCHANGE: &str = "0.compare_exchange";

pub(crate) const MUTANTS: &[Mutant] = &[
    Mutant { weak: weak("open_armed", EXCHANGE, Relaxed), model: ENDING, says: "does not wait" },
    Mutant { weak: weak("open_armed", EXCHANGE, Torn), model: ENDING, says: "readied 0 times" },
    Mutant { weak: weak("claim", EXCHANGE, Torn), model: ENDING, says: "readied 2 times" },
    Mutant { weak: weak("claim", EXCHANGE, Torn), model: SEVERAL, says: "Concurrent write" },
    Mutant { weak: weak("time_out", EXCHANGE, Relaxed), model: ENDING, says: "does not wait" },
    Mutant { weak: weak("time_out", EXCHANGE, Torn), model: ENDING, says: "readied 0 times" },
];

const LOCKED: &str = "peers find the waiter in a queue, whose lock orders them after the park";
const READIED: &str = "the goroutine reads it after it was readied, which orders it";

pub(crate) const UNSEEN: &[Unseen] = &[
    Unseen { weak: weak("claim", EXCHANGE, Relaxed), model: ENDING, why: LOCKED },
    Unseen { weak: weak("outcome", "0.load", Relaxed), model: ENDING, why: READIED },
];

#[test]
fn claims_that_are_weakened_end_a_wait_twice_or_too_early() {
    see_broken(MUTANTS);
    see_nothing(UNSEEN);
}
