//! Models of the handshakes of preemption under loom: a request against the handler of an earlier
//! signal, and sysmon's sleep against an M that wakes.
//!
//! The models run the crate's own `handshake.rs`, with loom's primitives in place of the real ones.
//! Each has a twin that is weakened and must be found broken: that tells that the model explores
//! what it claims to.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize as StdAtomicUsize, Ordering as Std};

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use loom::thread;

#[allow(dead_code, reason = "the model has no use for every part of the handshakes")]
#[path = "../src/runtime/handshake.rs"]
mod handshake;

/// What `handshake.rs` is built from, here of loom.
mod primitive {
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering, fence};
}

use handshake::{ASLEEP, AWAKE, ORDERS, Orders};

/// Explores all executions with few preemptions and returns how many there were.
fn explore(body: impl Fn() + Sync + Send + 'static) -> usize {
    let iterations = std::sync::Arc::new(StdAtomicUsize::new(0));
    let count = std::sync::Arc::clone(&iterations);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        count.fetch_add(1, Std::Relaxed);
        body();
    });
    iterations.load(Std::Relaxed)
}

/// What loom or an assertion said about a model that is wrong.
fn failure_of(body: impl Fn() + Sync + Send + 'static) -> String {
    let failed = catch_unwind(AssertUnwindSafe(|| explore(body)));
    let payload = failed.expect_err("the weakened twin passes: the model is blind");
    let text = payload.downcast_ref::<String>().cloned();
    text.or_else(|| payload.downcast_ref::<&str>().map(|&s| s.into())).unwrap_or_default()
}

/// In which order a handler does its two things.
#[derive(Clone, Copy)]
enum Handler {
    AcknowledgesFirst,
    LooksFirst,
}

const LIMIT: usize = 4096;

/// Two requests to a thread on its way to which a signal is. Whatever signal is sent is handled
/// afterwards, on the thread's own: by then it sees everything. What must not be is a request that
/// no handler sees.
fn request(handler: Handler, orders: Orders) {
    let guards = Arc::new((AtomicUsize::new(LIMIT), AtomicUsize::new(LIMIT)));
    let pending = Arc::new(AtomicBool::new(true));
    let requests = [0, 1].map(|_| {
        let (guards, pending) = (Arc::clone(&guards), Arc::clone(&pending));
        thread::spawn(move || handshake::request([&guards.0, &guards.1], &pending, orders))
    });
    let look = || [&guards.0, &guards.1].map(handshake::is_requested);
    let seen = match handler {
        Handler::AcknowledgesFirst => {
            assert!(handshake::acknowledge(&pending, orders), "it was expected");
            look()
        }
        Handler::LooksFirst => {
            let seen = look();
            handshake::acknowledge(&pending, orders);
            seen
        }
    };
    let sent = requests.map(|request| request.join().expect("a failure ends the model"));
    assert!(sent != [true, true], "two signals are on their way");
    // If none was sent anew, the one that was there has seen both requests' words.
    assert!(sent != [false, false] || seen == [true, true], "a request is lost");
}

#[test]
fn a_request_sends_a_signal_or_is_seen_by_the_one_before() {
    let iterations = explore(|| request(Handler::AcknowledgesFirst, ORDERS));
    println!("{iterations} executions");
    assert!(iterations >= 20, "{iterations} executions are too few to mean anything");
}

#[test]
fn a_handler_that_looks_before_it_acknowledges_loses_a_request() {
    let said = failure_of(|| request(Handler::LooksFirst, ORDERS));
    assert!(said.contains("a request is lost"), "{said}");
}

#[test]
fn relaxed_exchanges_lose_a_request() {
    let orders = Orders { pending: Ordering::Relaxed, ..ORDERS };
    let said = failure_of(move || request(Handler::AcknowledgesFirst, orders));
    assert!(said.contains("a request is lost"), "{said}");
}

/// All of two Ms are idle, and sysmon goes to sleep while both wake up.
fn sleep(orders: Orders) {
    const MS: usize = 2;
    let word = Arc::new(AtomicU32::new(AWAKE));
    let idle = Arc::new(AtomicUsize::new(MS));
    let ms = [0, 1].map(|_| {
        let (word, idle) = (Arc::clone(&word), Arc::clone(&idle));
        thread::spawn(move || {
            idle.fetch_sub(1, Ordering::SeqCst);
            handshake::must_wake(&word, orders)
        })
    });
    let announced = handshake::announce_sleep(&word, orders);
    assert!(announced, "nobody else changes the word while sysmon is awake");
    let sleeps = idle.load(Ordering::SeqCst) == MS;
    if !sleeps {
        handshake::end_sleep(&word);
    }
    let woken = ms.map(|m| m.join().expect("a failure ends the model"));
    assert!(woken != [true, true], "two wake it");
    let left_asleep = word.load(Ordering::Relaxed) == ASLEEP;
    assert!(!left_asleep, "sysmon sleeps while goroutines run");
}

#[test]
fn sysmon_does_not_sleep_while_an_m_is_awake() {
    let iterations = explore(|| sleep(ORDERS));
    println!("{iterations} executions");
    assert!(iterations >= 100, "{iterations} executions are too few to mean anything");
}

#[test]
fn without_fences_sysmon_sleeps_for_ever() {
    let said = failure_of(|| sleep(Orders { fenced: false, ..ORDERS }));
    assert!(said.contains("sysmon sleeps while goroutines run"), "{said}");
}
