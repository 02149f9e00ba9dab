//! Requests to yield: against ticks that begin, and against the handler of an earlier signal. And
//! sysmon's sleep against Ms that wake.

use std::ptr;
use std::sync::{Arc, Mutex};

use super::explore::{
    Body, Model, Mutant, SLEEPS, Unseen, explore, see_broken, see_nothing, see_wrong, together,
};
use super::gmp::Sleeper;
use super::idle::{Idle, Parking};
use super::preempt_request::{self, Signalled};
use super::primitive::How::{Missing, Relaxed, Torn};
use super::primitive::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, How, Ordering, Weak};
use super::sysmon_sleep::{self, ASLEEP, AWAKE};

const LIMIT: usize = 4096;

/// Two goroutines of one thread: their stack limits and the thread's, and which one it runs.
struct Ticks {
    gs: [AtomicUsize; 2],
    thread: AtomicUsize,
    current: AtomicPtr<AtomicUsize>,
    pending: AtomicBool,
    /// The goroutine that each request found.
    found: Mutex<Vec<usize>>,
}

/// What the thread does when a tick begins.
#[derive(Clone, Copy, PartialEq)]
enum Steps {
    Right,
    /// Other threads see which goroutine it runs before its own stack limit is set.
    CurrentFirst,
}

impl Ticks {
    fn new() -> Arc<Self> {
        let ticks = Arc::new(Self {
            gs: [LIMIT; 2].map(AtomicUsize::new),
            thread: AtomicUsize::new(0),
            current: AtomicPtr::new(ptr::null_mut()),
            pending: AtomicBool::new(false),
            found: Mutex::default(),
        });
        ticks.begin(0, Steps::Right);
        ticks
    }

    /// The thread makes a goroutine current.
    fn begin(&self, g: usize, steps: Steps) {
        let limit = &self.gs[g];
        let set_thread = || self.thread.store(LIMIT, Ordering::Relaxed);
        let now = steps == Steps::Right;
        let g = ptr::from_ref(limit).cast_mut();
        preempt_request::begin_tick(&self.current, g, limit, LIMIT, || {
            if now {
                set_thread()
            }
        });
        if !now {
            set_thread();
        }
    }

    /// A preempter requests that the current goroutine yields. No signal is sent.
    fn request(&self) {
        let limits_of = |g: *mut AtomicUsize| {
            let current = self.gs.iter().position(|limit| ptr::eq(limit, g));
            let current = current.expect("one is always current");
            self.found.lock().expect("one at a time").push(current);
            Some([&self.gs[current], &self.thread])
        };
        let send: Option<fn() -> bool> = None;
        preempt_request::request(&self.current, limits_of, &self.pending, send);
    }

    /// Which stack limits have a request: the goroutines' and the thread's.
    fn requested(&self) -> [bool; 3] {
        [&self.gs[0], &self.gs[1], &self.thread].map(preempt_request::is_requested)
    }
}

/// A thread goes from one goroutine to the other, whose tick goes on; two others make requests.
fn tick_in(steps: Steps) {
    let ticks = Ticks::new();
    let request = || -> Body {
        let ticks = Arc::clone(&ticks);
        Box::new(move || ticks.request())
    };
    let begins: Body = {
        let ticks = Arc::clone(&ticks);
        Box::new(move || ticks.begin(1, steps))
    };
    together(vec![request(), request(), begins]);
    let found = ticks.found.lock().expect("one at a time").clone();
    let requested = ticks.requested();
    if found.contains(&1) {
        assert!(requested == [requested[0], true, true], "a request is lost: {requested:?}");
    } else {
        assert!(!requested[1], "a request is for another goroutine");
    }
    // A request that came too late was seen once: in the thread's tick, or will be in the
    // goroutine's.
    ticks.begin(1, Steps::Right);
    assert!(ticks.requested() == [requested[0], false, false], "a request sticks to the thread");
    ticks.begin(0, Steps::Right);
    assert!(ticks.requested() == [false; 3], "a request sticks to a goroutine");
}

fn tick() {
    tick_in(Steps::Right);
}

/// The same goroutine has tick after tick, and yields when that is requested.
fn again() {
    let ticks = Ticks::new();
    let yielded = Arc::new(Mutex::new(0));
    let request: Body = {
        let ticks = Arc::clone(&ticks);
        Box::new(move || ticks.request())
    };
    let runs: Body = {
        let (ticks, yielded) = (Arc::clone(&ticks), Arc::clone(&yielded));
        Box::new(move || {
            for _ in 0..3 {
                // A poll, in code of either kind.
                if ticks.requested() != [false; 3] {
                    *yielded.lock().expect("one at a time") += 1;
                }
                ticks.begin(0, Steps::Right);
            }
        })
    };
    together(vec![request, runs]);
    let mut yielded = *yielded.lock().expect("one at a time");
    yielded += u32::from(ticks.requested() != [false; 3]);
    // Its two stores may come on both sides of a tick's beginning.
    assert!(yielded <= 2, "one request ends {yielded} ticks");
}

/// Two requests to a thread to which a signal is on its way. A signal that is sent is handled
/// afterwards, in the thread's own order: by then its handler sees everything. What must not be is
/// a request that no handler sees.
fn signal_in(acknowledges_first: bool) {
    let limits = Arc::new([LIMIT; 2].map(AtomicUsize::new));
    let current = Arc::new(AtomicPtr::new(ptr::null_mut::<u8>()));
    let pending = Arc::new(AtomicBool::new(true));
    let sent = Arc::new(Mutex::new(0));
    let seen = Arc::new(Mutex::new(false));
    let request = || -> Body {
        let (limits, current) = (Arc::clone(&limits), Arc::clone(&current));
        let (pending, sent) = (Arc::clone(&pending), Arc::clone(&sent));
        Box::new(move || {
            let send = || {
                *sent.lock().expect("one at a time") += 1;
                true
            };
            let limits_of = |_| Some([&limits[0], &limits[1]]);
            preempt_request::request(&current, limits_of, &pending, Some(send));
        })
    };
    let handles: Body = {
        let (limits, pending, seen) =
            (Arc::clone(&limits), Arc::clone(&pending), Arc::clone(&seen));
        Box::new(move || {
            let inspect = || limits.iter().all(preempt_request::is_requested);
            let inspected = if acknowledges_first {
                preempt_request::handle(&pending, inspect).expect("it was expected")
            } else {
                let inspected = inspect();
                preempt_request::acknowledge(&pending);
                inspected
            };
            *seen.lock().expect("one at a time") = inspected;
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

/// The signal of a request cannot be sent: the next request sends one.
fn unsent() {
    let limits = Arc::new([LIMIT; 2].map(AtomicUsize::new));
    let current = AtomicPtr::new(ptr::null_mut::<u8>());
    let pending = Arc::new(AtomicBool::new(false));
    let request = |can_send: bool| {
        let limits_of = |_| Some([&limits[0], &limits[1]]);
        let mut sends = false;
        let send = || {
            sends = true;
            can_send
        };
        preempt_request::request(&current, limits_of, &pending, Some(send));
        sends
    };
    assert_eq!([request(false), request(true), request(true)], [true, true, false]);
}

/// What sysmon does when a signal was not answered for some time.
#[derive(Clone, Copy, PartialEq)]
enum Resend {
    Right,
    /// It takes back that a signal is on its way.
    Acknowledges,
    /// It sends a signal whether or not a request waits for an answer.
    Always,
}

impl Resend {
    fn resend(self, pending: &AtomicBool, send: impl FnOnce() -> bool) -> bool {
        match self {
            Self::Right => preempt_request::resend(pending, send),
            Self::Acknowledges => {
                let is_sent = preempt_request::resend(pending, send);
                preempt_request::acknowledge(pending);
                is_sent
            }
            Self::Always => send(),
        }
    }
}

/// Signals are lost: no handler runs for them. Each request waits for one more, and only a resend
/// sends it, once each time. When one arrives, that was all.
fn lost_in(steps: Resend) {
    let limits = Arc::new([LIMIT; 2].map(AtomicUsize::new));
    let current = AtomicPtr::new(ptr::null_mut::<u8>());
    let pending = AtomicBool::new(false);
    let request = || {
        let limits_of = |_| Some([&limits[0], &limits[1]]);
        preempt_request::request(&current, limits_of, &pending, Some(|| true))
    };
    let resend = || steps.resend(&pending, || true);
    assert_eq!(request(), Some(Signalled::Sent));
    for _ in 0..3 {
        let signalled = request();
        assert!(signalled == Some(Signalled::Unanswered), "signals pile up: {signalled:?}");
        assert!(resend(), "a request is lost");
        assert!(!preempt_request::resend(&pending, || false), "it could not be sent");
    }
    let seen = preempt_request::handle(&pending, || preempt_request::is_requested(&limits[0]));
    assert_eq!(seen, Some(true), "the first signal that arrives");
    // The others arrive, too.
    assert_eq!(preempt_request::handle(&pending, || ()), None);
    assert!(!resend(), "a signal is sent that answers no request");
    assert_eq!(request(), Some(Signalled::Sent));
}

/// A signal was late, and not lost: its handler runs while another one is sent for it, and while
/// the next request is made.
fn late() {
    let limits = Arc::new([LIMIT; 2].map(AtomicUsize::new));
    let current = Arc::new(AtomicPtr::new(ptr::null_mut::<u8>()));
    let pending = Arc::new(AtomicBool::new(true));
    let sent = Arc::new(Mutex::new([0; 2]));
    let seen = Arc::new(Mutex::new(false));
    let requests: Body = {
        let (limits, current) = (Arc::clone(&limits), Arc::clone(&current));
        let (pending, sent) = (Arc::clone(&pending), Arc::clone(&sent));
        Box::new(move || {
            let send = || {
                sent.lock().expect("one at a time")[0] += 1;
                true
            };
            let limits_of = |_| Some([&limits[0], &limits[1]]);
            preempt_request::request(&current, limits_of, &pending, Some(send));
        })
    };
    let resends: Body = {
        let (pending, sent) = (Arc::clone(&pending), Arc::clone(&sent));
        Box::new(move || {
            preempt_request::resend(&pending, || {
                sent.lock().expect("one at a time")[1] += 1;
                true
            });
        })
    };
    let handles: Body = {
        let (limits, pending, seen) =
            (Arc::clone(&limits), Arc::clone(&pending), Arc::clone(&seen));
        Box::new(move || {
            let inspect = || limits.iter().all(preempt_request::is_requested);
            let inspected = preempt_request::handle(&pending, inspect);
            *seen.lock().expect("one at a time") = inspected.expect("it was expected");
        })
    };
    together(vec![requests, resends, handles]);
    let ([first, again], seen) =
        (*sent.lock().expect("one at a time"), *seen.lock().expect("one at a time"));
    assert!(first + again > 0 || seen, "a request is lost");
    assert!(first <= 1 && again <= 1, "signals pile up");
    // A word that says that a signal is on its way, and none is, ends preemption for good.
    let pending = preempt_request::acknowledge(&pending);
    assert!(!pending || first + again > 0, "a signal is awaited that was not sent");
    // The signal that was sent again finds its request, or nothing to do.
    assert!(pending || first == 0, "an answer was taken for another signal's");
}

/// All of two Ms are idle, and sysmon falls asleep while both wake up.
fn sysmon() {
    const MS: usize = 2;
    let word = Arc::new((AtomicU32::new(AWAKE), Sleeper::new()));
    let idle = Arc::new(Idle::new());
    for _ in 0..MS {
        idle.prepare_sleep(&Parking::new());
    }
    let woken = Arc::new(Mutex::new(0));
    let wakes = || -> Body {
        let (word, idle, woken) = (Arc::clone(&word), Arc::clone(&idle), Arc::clone(&woken));
        Box::new(move || {
            idle.leave_sleep();
            sysmon_sleep::wake(&word.0, |_| {
                *woken.lock().expect("one at a time") += 1;
                word.1.wake();
            });
        })
    };
    let sleeps: Body = {
        let (word, idle) = (Arc::clone(&word), Arc::clone(&idle));
        Box::new(move || {
            let sleep = |asleep: &AtomicU32, value| word.1.wait(asleep, value);
            sysmon_sleep::sleep_while_idle(&word.0, || idle.sleeping() == MS, sleep);
        })
    };
    together(vec![wakes(), wakes(), sleeps]);
    assert!(*woken.lock().expect("one at a time") < 2, "two wake it");
    assert!(idle.sleeping() == 0 && idle.wakes() == MS, "they are counted wrong");
    let left_asleep = word.0.load(Ordering::Relaxed) == ASLEEP;
    assert!(!left_asleep, "it announces a sleep that it has ended");
}

/// The run ends while sysmon falls asleep, all Ms being idle.
fn sysmon_ends() {
    let word = Arc::new((AtomicU32::new(AWAKE), Sleeper::new()));
    let ends: Body = {
        let word = Arc::clone(&word);
        Box::new(move || sysmon_sleep::end(&word.0, |_| word.1.wake()))
    };
    let sleeps: Body = {
        let word = Arc::clone(&word);
        Box::new(move || {
            let sleep = |asleep: &AtomicU32, value| word.1.wait(asleep, value);
            if sysmon_sleep::sleep_while_idle(&word.0, || true, sleep) {
                assert!(sysmon_sleep::has_ended(&word.0), "nothing else has woken it");
            }
        })
    };
    together(vec![ends, sleeps]);
    sysmon_sleep::wake(&word.0, |_| panic!("it sleeps after the end"));
    assert!(sysmon_sleep::has_ended(&word.0), "the end is taken back");
}

const TICK: Model =
    Model { name: "a tick begins", body: tick, preemptions: Some(2), least: 500, without: &[] };
const AGAIN: Model =
    Model { name: "tick after tick", body: again, preemptions: Some(3), least: 500, without: &[] };
const SIGNAL: Model = Model {
    name: "request and handler",
    body: signal,
    preemptions: Some(3),
    least: 20,
    without: &[],
};
const LATE: Model = Model {
    name: "a signal that is sent again",
    body: late,
    preemptions: Some(3),
    least: 20,
    without: &[],
};
const LOST: Model = Model {
    name: "signals that are lost",
    body: || lost_in(Resend::Right),
    preemptions: None,
    least: 1,
    without: &[],
};
const SYSMON: Model =
    Model { name: "sysmon's sleep", body: sysmon, preemptions: Some(3), least: 100, without: &[] };
const SYSMON_ENDS: Model =
    Model { name: "sysmon's end", body: sysmon_ends, preemptions: None, least: 10, without: &[] };

#[test]
fn a_request_of_a_tick_that_goes_on_stands_and_a_late_one_goes() {
    explore(TICK);
}

#[test]
fn a_request_ends_few_ticks() {
    explore(AGAIN);
}

#[test]
fn a_request_sends_a_signal_or_is_seen_by_the_one_before() {
    explore(SIGNAL);
}

#[test]
fn a_signal_that_cannot_be_sent_is_not_on_its_way() {
    loom::model(unsent);
}

#[test]
fn a_signal_that_is_sent_again_loses_no_request() {
    explore(LATE);
}

#[test]
fn a_request_whose_signal_is_lost_gets_another_one() {
    explore(LOST);
    let acknowledges = || lost_in(Resend::Acknowledges);
    see_wrong(Model { body: acknowledges, ..LOST }, "signals pile up");
    let always = || lost_in(Resend::Always);
    see_wrong(Model { body: always, ..LOST }, "answers no request");
}

#[test]
fn sysmon_does_not_sleep_while_an_m_is_awake() {
    explore(SYSMON);
}

#[test]
fn sysmon_does_not_sleep_over_its_end() {
    explore(SYSMON_ENDS);
}

#[test]
fn a_stack_limit_that_is_set_too_late_loses_a_request() {
    let body = || tick_in(Steps::CurrentFirst);
    see_wrong(Model { body, ..TICK }, "a request is lost");
}

#[test]
fn a_handler_that_inspects_before_it_acknowledges_loses_a_request() {
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
        model: TICK,
        says: "sticks to a",
    },
    Mutant { weak: weak("begin_tick", "current.store", Relaxed), model: TICK, says: "is lost" },
    Mutant { weak: weak("request", "current.load", Relaxed), model: TICK, says: "is lost" },
    Mutant { weak: weak("request", "pending.swap", Relaxed), model: SIGNAL, says: "is lost" },
    Mutant { weak: weak("request", "pending.swap", Torn), model: SIGNAL, says: "is lost" },
    Mutant { weak: weak("acknowledge", "pending.swap", Relaxed), model: SIGNAL, says: "is lost" },
    Mutant { weak: weak("request", "pending.swap", Torn), model: LATE, says: "is lost" },
    Mutant { weak: weak("acknowledge", "pending.swap", Relaxed), model: LATE, says: "is lost" },
    Mutant { weak: sleep("announce_sleep", "fence", Missing), model: SYSMON, says: SLEEPS },
    Mutant { weak: sleep("wake", "fence", Missing), model: SYSMON, says: SLEEPS },
    Mutant {
        weak: sleep("exchange", "word.compare_exchange", Torn),
        model: SYSMON,
        says: "two wake",
    },
    Mutant { weak: sleep("end", "word.swap", Torn), model: SYSMON_ENDS, says: SLEEPS },
];

const FENCED: &str = "the fences do what is needed";
const ONE_STATE: &str = "`check_deadlock` adds up checks to one state, which is not modelled";
const FUTEX: &str = "the kernel compares the newest value before it sleeps";
const JOINED: &str = "sysmon reads nothing that the end has written; its thread is joined";

pub(crate) const UNSEEN: &[Unseen] = &[
    Unseen {
        weak: sleep("exchange", "word.compare_exchange", Relaxed),
        model: SYSMON,
        why: FENCED,
    },
    Unseen {
        weak: sleep("sleep_while_idle", "word.load", Relaxed),
        model: SYSMON_ENDS,
        why: FUTEX,
    },
    Unseen { weak: sleep("end", "word.swap", Relaxed), model: SYSMON_ENDS, why: JOINED },
    Unseen { weak: sleep("has_ended", "word.load", Relaxed), model: SYSMON_ENDS, why: JOINED },
    Unseen { weak: idle("sleeping", "sleeping.load", Relaxed), model: SYSMON, why: ONE_STATE },
    Unseen { weak: idle("wakes", "wakes.load", Relaxed), model: SYSMON, why: ONE_STATE },
];

#[test]
fn requests_that_are_weakened_are_lost() {
    see_broken(MUTANTS);
    see_nothing(UNSEEN);
}
