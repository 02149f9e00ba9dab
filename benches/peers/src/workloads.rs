//! The workloads that footbridge and Go have in common, as footbridge has them. `../go/main.go` has
//! the others: the same numbers of goroutines, the same operations, the same beginning and end.
//!
//! With two processors it matters which goroutines share a thread. Here a goroutine stays on the
//! thread that it begins on, so a workload says where that is, makes sure of it, and checks it. In
//! Go a goroutine is moved whenever its scheduler likes.

use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use crate::switch::Modes;
use footbridge::runtime::{Chan, Config, Scope, ScopedJoinHandle, go, gosched, scope};

const BATCH: u64 = 1000;

/// How many goroutines run on which thread.
#[derive(Clone, Copy)]
pub struct Places {
    processors: usize,
    /// On the first thread.
    first: usize,
    /// On the second.
    second: usize,
}

impl Places {
    /// So many on the one thread that there is.
    pub const fn one_processor(goroutines: usize) -> Self {
        Self { processors: 1, first: goroutines, second: 0 }
    }

    /// Two share a thread; the other thread sleeps.
    pub const PAIR_BESIDE_NOTHING: Self = Self { processors: 2, first: 0, second: 2 };

    /// Two share a thread, beside two that share the other.
    pub const PAIR_BESIDE_PAIR: Self = Self { processors: 2, first: 2, second: 2 };

    /// Each of two has a thread of its own.
    pub const PAIR_APART: Self = Self { processors: 2, first: 1, second: 1 };

    fn goroutines(self) -> usize {
        self.first + self.second
    }

    /// Runs `task(0)` to `task(goroutines - 1)`, each on a goroutine in its place, the ones of the
    /// first thread first. Time begins when all have started and ends when the last one says that
    /// it is done.
    fn run(self, task: impl Fn(usize) + Sync) -> Duration {
        let Self { processors, first, second } = self;
        let (placed, start) = (AtomicUsize::new(0), AtomicBool::new(false));
        // Where a goroutine was, and when it was done.
        let body = |index| {
            let begins_on = thread::current().id();
            placed.fetch_add(1, Ordering::Relaxed);
            while !start.load(Ordering::Acquire) {
                gosched();
            }
            task(index);
            let end = Instant::now();
            assert_eq!(thread::current().id(), begins_on, "goroutines stay");
            (begins_on, end)
        };
        let body = &body;
        let join = |handles: Vec<ScopedJoinHandle<'_, (ThreadId, Instant)>>| -> Vec<_> {
            handles.into_iter().map(|handle| handle.join().expect("it does not panic")).collect()
        };
        let config = Config::new().processors(processors);
        let run = config.run(|| {
            scope(|s| {
                let seconds = (second != 0).then(|| {
                    // This goroutine keeps the first thread until they have begun, so they begin
                    // on the second; and from then on that one is never without work.
                    let starter =
                        s.go(|| scope(|s| join(start_all(s, first..first + second, body))));
                    while placed.load(Ordering::Relaxed) < second {
                        spin_loop();
                    }
                    starter
                });
                let firsts = start_all(s, 0..first, body);
                while placed.load(Ordering::Relaxed) < first + second {
                    gosched();
                }
                let began = Instant::now();
                start.store(true, Ordering::Release);
                let firsts = join(firsts);
                let seconds = seconds.map(|starter| starter.join().expect("it does not panic"));
                (thread::current().id(), began, firsts, seconds.unwrap_or_default())
            })
        });
        let (first_thread, began, firsts, seconds) = run.expect("the run starts");
        assert!(firsts.iter().all(|&(thread, _)| thread == first_thread), "in their places");
        assert!(seconds.iter().all(|&(thread, _)| thread != first_thread), "in their places");
        let ends = firsts.iter().chain(&seconds).map(|&(_, end)| end);
        ends.max().expect("there is a goroutine").duration_since(began)
    }
}

fn start_all<'scope, T: Send + 'scope>(
    s: &'scope Scope<'scope, '_>,
    indices: std::ops::Range<usize>,
    body: &'scope (impl Fn(usize) -> T + Sync),
) -> Vec<ScopedJoinHandle<'scope, T>> {
    indices.map(|index| s.go(move || body(index))).collect()
}

/// What was asked for may be less than what was done.
fn scale(taken: Duration, asked: u64, done: u64) -> Duration {
    taken.mul_f64(asked as f64 / done as f64)
}

/// Goroutines give way in turn. An iteration is one call of `gosched`.
pub fn yields(places: Places, modes: Modes, iterations: u64) -> Duration {
    let goroutines = places.goroutines() as u64;
    let each = iterations.div_ceil(goroutines);
    let taken = places.run(|index| {
        modes.during(index, || {
            for _ in 0..each {
                gosched();
            }
        });
    });
    scale(taken, iterations, each * goroutines)
}

/// In each pair a number goes through one channel and comes back one larger through another. An
/// iteration is one way.
pub fn hops(places: Places, modes: Modes, iterations: u64) -> Duration {
    let pairs = places.goroutines() / 2;
    let rounds = iterations.div_ceil(2 * pairs as u64);
    let channels: Vec<_> = (0..pairs).map(|_| (Chan::new(0), Chan::new(0))).collect();
    let taken = places.run(|index| {
        modes.during(index, || bounce(&channels[index / 2], index % 2 == 0, rounds));
    });
    scale(taken, iterations, 2 * pairs as u64 * rounds)
}

fn bounce((ping, pong): &(Chan<u64>, Chan<u64>), leads: bool, rounds: u64) {
    if !leads {
        for _ in 0..rounds {
            pong.send(ping.recv().expect("nobody closes it") + 1).expect("nobody closes it");
        }
        return;
    }
    let mut number = 0;
    for _ in 0..rounds {
        ping.send(number).expect("nobody closes it");
        number = pong.recv().expect("nobody closes it");
    }
    assert_eq!(number, rounds, "each round trip adds one");
}

/// Goroutines are started and waited for, a batch at a time. An iteration is one goroutine. The
/// first batch, which makes stacks, is not counted.
fn batches(processors: usize, iterations: u64, mut run: impl FnMut(&mut [u64])) -> Duration {
    let rounds = iterations.div_ceil(BATCH);
    let mut results = vec![0; BATCH as usize];
    let mut batch = || {
        run(&mut results);
        let sum: u64 = results.iter_mut().map(std::mem::take).sum();
        assert_eq!(sum, BATCH * (BATCH + 1) / 2, "each has left its number");
    };
    let config = Config::new().processors(processors);
    let taken = config.run(|| {
        batch();
        let began = Instant::now();
        for _ in 0..rounds {
            batch();
        }
        began.elapsed()
    });
    scale(taken.expect("the run starts"), iterations, rounds * BATCH)
}

/// Each goroutine leaves a number in its place, and one waits for all.
pub fn group(processors: usize, iterations: u64) -> Duration {
    batches(processors, iterations, |results| {
        scope(|s| {
            for (index, place) in results.iter_mut().enumerate() {
                s.go(move || *place = black_box(index) as u64 + 1);
            }
        });
    })
}

/// Each goroutine hands a number to who started it.
pub fn values(processors: usize, iterations: u64) -> Duration {
    batches(processors, iterations, |results| {
        let start = |index| go(move || black_box(index) as u64 + 1);
        let handles: Vec<_> = (0..results.len()).map(start).collect();
        for (place, handle) in results.iter_mut().zip(handles) {
            *place = handle.join().expect("it does not panic");
        }
    })
}

/// Checks that goroutines which give way on one processor take turns, so that each call of
/// `gosched` was a switch: panics otherwise.
pub fn check_turns(goroutines: usize) {
    let (last, turns) = (AtomicUsize::new(usize::MAX), AtomicUsize::new(0));
    const EACH: usize = 1000;
    Places::one_processor(goroutines).run(|index| {
        for _ in 0..EACH {
            last.store(index, Ordering::Relaxed);
            gosched();
            let others = usize::from(last.load(Ordering::Relaxed) != index);
            turns.fetch_add(others, Ordering::Relaxed);
        }
    });
    // The last one to end may find itself alone in its last turn.
    let turns = turns.into_inner();
    assert!(turns + 1 >= goroutines * EACH, "{turns} of {} were switches", goroutines * EACH);
}

/// In how many of `runs` runs with two processors the goroutines of a pair, started one after the
/// other by somebody who then waits for them, begin on one thread.
pub fn pairs_together(runs: usize) -> usize {
    let together = |_: &usize| {
        let channels = (Chan::new(0), Chan::new(0));
        let body = |leads| {
            bounce(&channels, leads, 10);
            thread::current().id()
        };
        let body = &body;
        let config = Config::new().processors(2);
        let threads = config.run(|| {
            scope(|s| {
                let handles = [true, false].map(|leads| s.go(move || body(leads)));
                handles.map(|handle| handle.join().expect("it does not panic"))
            })
        });
        let [a, b] = threads.expect("the run starts");
        a == b
    };
    (0..runs).filter(together).count()
}
