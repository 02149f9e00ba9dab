//! Requests to give way: against turns that begin, against the handler of an earlier signal; and
//! sysmon's sleep against Ms that wake.

use std::ptr;
use std::sync::{Arc, Mutex};

use super::explore::{
    Body, Model, Mutant, Unseen, explore, see_broken, see_nothing, see_wrong, together,
};
use super::idle::{Idle, Parking};
use super::preempt_request;
use super::primitive::How::{Missing, Relaxed, Torn};
use super::primitive::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, How, Ordering, Weak};
use super::sysmon_sleep::{self, ASLEEP, AWAKE, ENDED};

const LIMIT: usize = 4096;

/// Two goroutines of one thread: their guards and the thread's, and whom it runs.
struct Turns {
    gs: [AtomicUsize; 2],
    thread: AtomicUsize,
    current: AtomicPtr<AtomicUsize>,
    pending: AtomicBool,
    /// Whom each request found.
    found: Mutex<Vec<usize>>,
}

/// What the thread does when a turn begins.
#[derive(Clone, Copy, PartialEq)]
enum Steps {
    Right,
    /// Others see whom it runs before its own guard is renewed.
    CurrentFirst,
}

impl Turns {
    fn new() -> Arc<Self> {
        let turns = Arc::new(Self {
            gs: [LIMIT; 2].map(AtomicUsize::new),
            thread: AtomicUsize::new(0),
            current: AtomicPtr::new(ptr::null_mut()),
            pending: AtomicBool::new(false),
            found: Mutex::default(),
        });
        turns.begin(0, Steps::Right);
        turns
    }

    /// `make_current`.
    fn begin(&self, g: usize, steps: Steps) {
        let guard = &self.gs[g];
        let renew = || self.thread.store(LIMIT, Ordering::Relaxed);
        let now = steps == Steps::Right;
        let g = ptr::from_ref(guard).cast_mut();
        preempt_request::begin_tick(&self.current, g, guard, LIMIT, || {
            if now {
                renew()
            }
        });
        if !now {
            renew();
        }
    }

    /// `request_if`.
    fn request(&self) {
        let current = preempt_request::current(&self.current);
        let found = self.gs.iter().position(|g| ptr::eq(g, current)).expect("one runs always");
        preempt_request::request([&self.gs[found], &self.thread], &self.pending);
        self.found.lock().expect("one at a time").push(found);
    }

    /// Who is asked: the goroutines and the thread.
    fn asked(&self) -> [bool; 3] {
        [&self.gs[0], &self.gs[1], &self.thread].map(preempt_request::is_requested)
    }
}

/// A thread goes from one goroutine to the other, whose turn goes on; two others make requests.
fn turn_in(steps: Steps) {
    let turns = Turns::new();
    let request = || -> Body {
        let turns = Arc::clone(&turns);
        Box::new(move || turns.request())
    };
    let begins: Body = {
        let turns = Arc::clone(&turns);
        Box::new(move || turns.begin(1, steps))
    };
    together(vec![request(), request(), begins]);
    let found = turns.found.lock().expect("one at a time").clone();
    let asked = turns.asked();
    if found.contains(&1) {
        assert!(asked == [asked[0], true, true], "a request is lost: {asked:?}");
    } else {
        assert!(!asked[1], "a request is for somebody else");
    }
    // A request that came too late was seen once: in the thread's turn, or will be in the
    // goroutine's.
    turns.begin(1, Steps::Right);
    assert!(turns.asked() == [asked[0], false, false], "a request sticks to the thread");
    turns.begin(0, Steps::Right);
    assert!(turns.asked() == [false; 3], "a request sticks to a goroutine");
}

fn turn() {
    turn_in(Steps::Right);
}

/// The same goroutine has turn after turn, and gives way when it is asked.
fn again() {
    let turns = Turns::new();
    let given_way = Arc::new(Mutex::new(0));
    let request: Body = {
        let turns = Arc::clone(&turns);
        Box::new(move || turns.request())
    };
    let runs: Body = {
        let (turns, given_way) = (Arc::clone(&turns), Arc::clone(&given_way));
        Box::new(move || {
            for _ in 0..3 {
                // A poll, in code of either kind.
                if turns.asked() != [false; 3] {
                    *given_way.lock().expect("one at a time") += 1;
                }
                turns.begin(0, Steps::Right);
            }
        })
    };
    together(vec![request, runs]);
    let mut given_way = *given_way.lock().expect("one at a time");
    given_way += u32::from(turns.asked() != [false; 3]);
    // Its two stores may come on both sides of a turn's beginning.
    assert!(given_way <= 2, "one request ends {given_way} turns");
}

/// Two requests to a thread on its way to which a signal is. Whatever signal is sent is handled
/// afterwards, on the thread's own: by then it sees everything. What must not be is a request that
/// no handler sees.
fn signal_in(acknowledges_first: bool) {
    let guards = Arc::new([LIMIT; 2].map(AtomicUsize::new));
    let pending = Arc::new(AtomicBool::new(true));
    let sent = Arc::new(Mutex::new(0));
    let seen = Arc::new(Mutex::new(false));
    let request = || -> Body {
        let (guards, pending, sent) =
            (Arc::clone(&guards), Arc::clone(&pending), Arc::clone(&sent));
        Box::new(move || {
            let sends = preempt_request::request([&guards[0], &guards[1]], &pending);
            *sent.lock().expect("one at a time") += u32::from(sends);
        })
    };
    let handles: Body = {
        let (guards, pending, seen) =
            (Arc::clone(&guards), Arc::clone(&pending), Arc::clone(&seen));
        Box::new(move || {
            let look = || guards.iter().all(preempt_request::is_requested);
            let looked = if acknowledges_first {
                assert!(preempt_request::acknowledge(&pending), "it was expected");
                look()
            } else {
                let looked = look();
                preempt_request::acknowledge(&pending);
                looked
            };
            *seen.lock().expect("one at a time") = looked;
        })
    };
    together(vec![request(), request(), handles]);
    let (sent, seen) = (*sent.lock().expect("one at a time"), *seen.lock().expect("one at a time"));
    assert!(sent < 2, "two signals are on their way");
    assert!(sent == 1 || seen, "a request is lost");
}

fn signal() {
    signal_in(true);
}

/// All of two Ms are idle, and sysmon goes to sleep while both wake up.
fn sysmon() {
    const MS: usize = 2;
    let word = Arc::new(AtomicU32::new(AWAKE));
    let idle = Arc::new(Idle::new());
    for _ in 0..MS {
        idle.prepare_sleep(&Parking::new());
    }
    let woken = Arc::new(Mutex::new(0));
    let wakes = || -> Body {
        let (word, idle, woken) = (Arc::clone(&word), Arc::clone(&idle), Arc::clone(&woken));
        Box::new(move || {
            idle.leave_sleep();
            *woken.lock().expect("one at a time") += u32::from(sysmon_sleep::must_wake(&word));
        })
    };
    let sleeps: Body = {
        let (word, idle) = (Arc::clone(&word), Arc::clone(&idle));
        Box::new(move || {
            // `sleep_while_idle`.
            let announced = sysmon_sleep::announce_sleep(&word);
            assert!(announced, "nobody else changes the word while sysmon is awake");
            if idle.sleeping() != MS {
                sysmon_sleep::end_sleep(&word);
            }
        })
    };
    together(vec![wakes(), wakes(), sleeps]);
    assert!(*woken.lock().expect("one at a time") < 2, "two wake it");
    assert!(idle.sleeping() == 0 && idle.wakes() == MS, "they are counted wrong");
    let left_asleep = word.load(Ordering::Relaxed) == ASLEEP;
    assert!(!left_asleep, "sysmon sleeps while goroutines run");
    word.store(ENDED, Ordering::SeqCst);
    assert!(
        !sysmon_sleep::must_wake(&word) && !sysmon_sleep::end_sleep(&word),
        "an end is taken back"
    );
}

const TURN: Model =
    Model { name: "a turn begins", body: turn, preemptions: Some(2), least: 500, without: &[] };
const AGAIN: Model =
    Model { name: "turn after turn", body: again, preemptions: Some(3), least: 500, without: &[] };
const SIGNAL: Model = Model {
    name: "request and handler",
    body: signal,
    preemptions: Some(3),
    least: 20,
    without: &[],
};
const SYSMON: Model =
    Model { name: "sysmon's sleep", body: sysmon, preemptions: Some(3), least: 100, without: &[] };

#[test]
fn a_request_of_a_turn_that_goes_on_stands_and_a_late_one_goes() {
    explore(TURN);
}

#[test]
fn a_request_ends_few_turns() {
    explore(AGAIN);
}

#[test]
fn a_request_sends_a_signal_or_is_seen_by_the_one_before() {
    explore(SIGNAL);
}

#[test]
fn sysmon_does_not_sleep_while_an_m_is_awake() {
    explore(SYSMON);
}

#[test]
fn a_guard_that_is_renewed_too_late_loses_a_request() {
    let body = || turn_in(Steps::CurrentFirst);
    see_wrong(Model { body, ..TURN }, "a request is lost");
}

#[test]
fn a_handler_that_looks_before_it_acknowledges_loses_a_request() {
    let body = || signal_in(false);
    see_wrong(Model { body, ..SIGNAL }, "a request is lost");
}

const fn weak(function: &'static str, operation: &'static str, how: How) -> Weak {
    Weak { file: "preempt_request.rs", function, operation, how }
}

const fn sleep(function: &'static str, operation: &'static str, how: How) -> Weak {
    Weak { file: "sysmon_sleep.rs", function, operation, how }
}

const fn idle(function: &'static str, operation: &'static str, how: How) -> Weak {
    Weak { file: "idle.rs", function, operation, how }
}

pub(crate) const MUTANTS: &[Mutant] = &[
    Mutant {
        weak: idle("leave_sleep", "sleeping.fetch_sub", Torn),
        model: SYSMON,
        says: "counted",
    },
    Mutant { weak: idle("leave_sleep", "wakes.fetch_add", Torn), model: SYSMON, says: "counted" },
    Mutant {
        weak: weak("begin_tick", "stack_limit.store", Missing),
        model: TURN,
        says: "sticks to a",
    },
    Mutant { weak: weak("begin_tick", "current.store", Relaxed), model: TURN, says: "is lost" },
    Mutant { weak: weak("current", "current.load", Relaxed), model: TURN, says: "is lost" },
    Mutant { weak: weak("request", "pending.swap", Relaxed), model: SIGNAL, says: "is lost" },
    Mutant { weak: weak("request", "pending.swap", Torn), model: SIGNAL, says: "is lost" },
    Mutant { weak: weak("acknowledge", "pending.swap", Relaxed), model: SIGNAL, says: "is lost" },
    Mutant {
        weak: sleep("announce_sleep", "fence", Missing),
        model: SYSMON,
        says: "sysmon sleeps",
    },
    Mutant { weak: sleep("must_wake", "fence", Missing), model: SYSMON, says: "sysmon sleeps" },
    Mutant {
        weak: sleep("exchange", "word.compare_exchange", Torn),
        model: SYSMON,
        says: "two wake",
    },
];

const FENCED: &str = "the fences do what is needed";
const ONE_STATE: &str = "`check_deadlock` adds up looks to one state, which is not modelled";

pub(crate) const UNSEEN: &[Unseen] = &[
    Unseen {
        weak: sleep("exchange", "word.compare_exchange", Relaxed),
        model: SYSMON,
        why: FENCED,
    },
    Unseen { weak: idle("sleeping", "sleeping.load", Relaxed), model: SYSMON, why: ONE_STATE },
    Unseen { weak: idle("wakes", "wakes.load", Relaxed), model: SYSMON, why: ONE_STATE },
];

#[test]
fn requests_that_are_weakened_are_lost() {
    see_broken(MUTANTS);
    see_nothing(UNSEEN);
}
