//! Going from one goroutine to another: giving way, and passing values through channels.
//!
//! All goroutines are on one processor. One iteration is *one way*: a round trip counts as two.

use std::cell::Cell;
use std::hint::black_box;
use std::time::{Duration, Instant};

use corosensei::{Coroutine, CoroutineResult};
use footbridge::runtime::{Chan, Config, gosched, measure_raw_switch, scope};

use crate::meter::Subject;

const COROSENSEI: &str = "corosensei, resume or suspend";
const MANY: u64 = 1000;

/// The group.
pub fn subjects() -> Vec<Subject> {
    vec![
        Subject::new(COROSENSEI, corosensei),
        Subject::new("raw switch, without the scheduler", raw_switch)
            .at_most(2.6)
            .against(COROSENSEI),
        Subject::new("gosched, 2 goroutines", |n| gosched_ring(2, n))
            .faster_than_recorded("Go 1.27", 81.0, 5.0)
            .against(COROSENSEI),
        Subject::new("gosched, 1,000 goroutines", |n| gosched_ring(MANY, n)),
        Subject::new("channel hop, rendezvous", |n| ping_pong(0, n))
            .faster_than_recorded("Go 1.27", 129.0, 3.0)
            .against(COROSENSEI),
        Subject::new("channel hop, capacity 1", |n| ping_pong(1, n)).faster_than_recorded(
            "Go 1.27 (rendezvous)",
            129.0,
            3.0,
        ),
        Subject::new("channel value, capacity 128, one way stream", stream),
    ]
}

/// Runs `f` on a goroutine of a run with one processor.
fn on_one_processor<R>(f: impl FnOnce() -> R) -> R {
    let config = Config { processors: 1, ..Config::default() };
    config.run(f).expect("the run starts")
}

/// A number goes into a coroutine and comes back one larger.
pub fn corosensei(iterations: u64) -> Duration {
    let rounds = iterations.div_ceil(2);
    let mut coroutine = Coroutine::new(|yielder, first: u64| {
        let mut number = first;
        while number != u64::MAX {
            number = yielder.suspend(number + 1);
        }
    });
    let mut number = 0;
    let start = Instant::now();
    for _ in 0..rounds {
        match coroutine.resume(number) {
            CoroutineResult::Yield(next) => number = next,
            CoroutineResult::Return(()) => unreachable!("it ends at u64::MAX"),
        }
    }
    let time = start.elapsed();
    assert_eq!(black_box(number), rounds);
    assert!(matches!(coroutine.resume(u64::MAX), CoroutineResult::Return(())));
    time.mul_f64(iterations as f64 / (2 * rounds) as f64)
}

/// Two stacks switch to each other and do nothing else.
pub fn raw_switch(iterations: u64) -> Duration {
    let rounds = iterations.div_ceil(2);
    let time = measure_raw_switch(rounds).expect("stubs and a stack");
    time.mul_f64(iterations as f64 / (2 * rounds) as f64)
}

/// What goroutines of one thread share.
struct OneThread<T>(T);

// SAFETY: the goroutines that share it are of a run with one processor, which is one thread.
unsafe impl<T> Sync for OneThread<T> {}

/// So many goroutines give way in turn, and each counts its turns.
fn gosched_ring(goroutines: u64, iterations: u64) -> Duration {
    let rounds = iterations.div_ceil(goroutines);
    let (started, turns, over) = (Cell::new(1), Cell::new(0), Cell::new(false));
    let shared = OneThread((&started, &turns, &over));
    let (time, turns) = on_one_processor(|| {
        scope(|s| {
            for _ in 1..goroutines {
                s.go(|| {
                    let OneThread((started, turns, over)) = &shared;
                    started.set(started.get() + 1);
                    while !over.get() {
                        turns.set(turns.get() + 1);
                        gosched();
                    }
                });
            }
            while started.get() < goroutines {
                gosched();
            }
            turns.set(0);
            let start = Instant::now();
            for _ in 0..rounds {
                turns.set(turns.get() + 1);
                gosched();
            }
            let time = start.elapsed();
            over.set(true);
            (time, turns.get())
        })
    });
    assert_eq!(turns, rounds * goroutines, "everybody has the same number of turns");
    time.mul_f64(iterations as f64 / turns as f64)
}

/// A number goes through one channel and comes back one larger through another.
fn ping_pong(capacity: usize, iterations: u64) -> Duration {
    let rounds = iterations.div_ceil(2);
    let time = on_one_processor(|| {
        let (ping, pong) = (Chan::<u64>::new(capacity), Chan::<u64>::new(capacity));
        scope(|s| {
            s.go(|| {
                while let Some(number) = ping.recv() {
                    pong.send(number + 1).expect("nobody closes it");
                }
            });
            let mut number = 0;
            let start = Instant::now();
            for _ in 0..rounds {
                ping.send(number).expect("it is closed below");
                number = pong.recv().expect("nobody closes it");
            }
            let time = start.elapsed();
            assert_eq!(number, rounds);
            ping.close();
            time
        })
    });
    time.mul_f64(iterations as f64 / (2 * rounds) as f64)
}

/// Numbers go one way, through a channel that holds many.
fn stream(iterations: u64) -> Duration {
    on_one_processor(|| {
        let numbers = Chan::<u64>::new(128);
        scope(|s| {
            let sum = s.go(|| numbers.iter().sum::<u64>());
            let start = Instant::now();
            for number in 1..=iterations {
                numbers.send(number).expect("it is closed below");
            }
            numbers.close();
            let sum = sum.join().expect("adding does not panic");
            let time = start.elapsed();
            assert_eq!(sum, iterations * (iterations + 1) / 2);
            time
        })
    })
}
