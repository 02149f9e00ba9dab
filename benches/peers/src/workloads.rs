//! The workloads that footbridge and Go have in common, as footbridge implements them.
//! `../go/main.go` has the same with equal numbers of goroutines, equal operations, and equal start
//! and end of the measurement.
//!
//! With two processors it matters which goroutines share a thread. In footbridge a goroutine stays
//! on the thread that it starts on, so a workload chooses that thread and checks it. In Go the
//! scheduler moves goroutines at any time.

use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use crate::switch::FpControl;
use footbridge::runtime::{Chan, Config, Scope, ScopedJoinHandle, go, gosched, scope};

const BATCH: u64 = 1000;

/// The number of goroutines on each thread.
#[derive(Clone, Copy)]
pub struct Places {
    processors: usize,
    /// Goroutines on the first thread.
    first: usize,
    /// Goroutines on the second thread.
    second: usize,
}

impl Places {
    /// All goroutines on the only thread.
    pub const fn one_processor(goroutines: usize) -> Self {
        Self { processors: 1, first: goroutines, second: 0 }
    }

    /// Two goroutines share a thread, and the other thread sleeps.
    pub const PAIR_BESIDE_NOTHING: Self = Self { processors: 2, first: 0, second: 2 };

    /// Two goroutines share one thread, two others the other thread.
    pub const PAIR_BESIDE_PAIR: Self = Self { processors: 2, first: 2, second: 2 };

    /// Two goroutines, each alone on a thread.
    pub const PAIR_APART: Self = Self { processors: 2, first: 1, second: 1 };

    fn goroutines(self) -> usize {
        self.first + self.second
    }

    /// Runs `task(0)` to `task(goroutines - 1)`, each on a goroutine on its thread, those of the
    /// first thread first. The measured time is from the start of all until the last one has
    /// finished.
    fn run(self, task: impl Fn(usize) + Sync) -> Duration {
        let Self { processors, first, second } = self;
        let (placed, start) = (AtomicUsize::new(0), AtomicBool::new(false));
        // Returns the thread of the goroutine, and when it finished.
        let body = |index| {
            let begins_on = thread::current().id();
            placed.fetch_add(1, Ordering::Relaxed);
            while !start.load(Ordering::Acquire) {
                gosched();
            }
            task(index);
            let end = Instant::now();
            assert_eq!(thread::current().id(), begins_on, "a goroutine stays on its thread");
            (begins_on, end)
        };
        let body = &body;
        let join = |handles: Vec<ScopedJoinHandle<'_, (ThreadId, Instant)>>| -> Vec<_> {
            handles
                .into_iter()
                .map(|handle| handle.join().expect("the goroutine does not panic"))
                .collect()
        };
        let config = Config::new().processors(processors);
        let run = config.run(|| {
            scope(|s| {
                let seconds = (second != 0).then(|| {
                    // This goroutine occupies the first thread until they have started, so they
                    // start on the second. From then on, the second thread always has work.
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
                let seconds =
                    seconds.map(|starter| starter.join().expect("the goroutine does not panic"));
                (thread::current().id(), began, firsts, seconds.unwrap_or_default())
            })
        });
        let (first_thread, began, firsts, seconds) = run.expect("the run starts");
        assert!(
            firsts.iter().all(|&(thread, _)| thread == first_thread),
            "each goroutine is on its thread"
        );
        assert!(
            seconds.iter().all(|&(thread, _)| thread != first_thread),
            "each goroutine is on its thread"
        );
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

/// Extrapolates the time, if fewer iterations were requested than were done.
fn scale(taken: Duration, requested: u64, done: u64) -> Duration {
    taken.mul_f64(requested as f64 / done as f64)
}

/// Goroutines yield in turn. An iteration is one call of `gosched`.
pub fn yields(places: Places, fp: FpControl, iterations: u64) -> Duration {
    let goroutines = places.goroutines() as u64;
    let each = iterations.div_ceil(goroutines);
    let taken = places.run(|index| {
        fp.during(index, || {
            for _ in 0..each {
                gosched();
            }
        });
    });
    scale(taken, iterations, each * goroutines)
}

/// In each pair a number is sent through one channel and returned through another, incremented. An
/// iteration is one way.
pub fn hops(places: Places, fp: FpControl, iterations: u64) -> Duration {
    let pairs = places.goroutines() / 2;
    let rounds = iterations.div_ceil(2 * pairs as u64);
    let channels: Vec<_> = (0..pairs).map(|_| (Chan::new(0), Chan::new(0))).collect();
    let taken = places.run(|index| {
        fp.during(index, || bounce(&channels[index / 2], index % 2 == 0, rounds));
    });
    scale(taken, iterations, 2 * pairs as u64 * rounds)
}

fn bounce((ping, pong): &(Chan<u64>, Chan<u64>), leads: bool, rounds: u64) {
    if !leads {
        for _ in 0..rounds {
            pong.send(ping.recv().expect("it stays open") + 1).expect("it stays open");
        }
        return;
    }
    let mut number = 0;
    for _ in 0..rounds {
        ping.send(number).expect("it stays open");
        number = pong.recv().expect("it stays open");
    }
    assert_eq!(number, rounds, "each round trip adds one");
}

/// Goroutines are started and joined, a batch at a time. An iteration is one goroutine. The first
/// batch, which allocates the stacks, is not measured.
fn batches(processors: usize, iterations: u64, mut run: impl FnMut(&mut [u64])) -> Duration {
    let rounds = iterations.div_ceil(BATCH);
    let mut results = vec![0; BATCH as usize];
    let mut batch = || {
        run(&mut results);
        let sum: u64 = results.iter_mut().map(std::mem::take).sum();
        assert_eq!(sum, BATCH * (BATCH + 1) / 2, "each goroutine has stored its number");
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

/// Each goroutine stores a number in its element, and one goroutine waits for all.
pub fn group(processors: usize, iterations: u64) -> Duration {
    batches(processors, iterations, |results| {
        scope(|s| {
            for (index, place) in results.iter_mut().enumerate() {
                s.go(move || *place = black_box(index) as u64 + 1);
            }
        });
    })
}

/// Each goroutine returns a number to the goroutine that started it.
pub fn values(processors: usize, iterations: u64) -> Duration {
    batches(processors, iterations, |results| {
        let start = |index| go(move || black_box(index) as u64 + 1);
        let handles: Vec<_> = (0..results.len()).map(start).collect();
        for (place, handle) in results.iter_mut().zip(handles) {
            *place = handle.join().expect("the goroutine does not panic");
        }
    })
}

/// Checks that goroutines that yield on one processor alternate, so that each call of `gosched` was
/// a switch. Panics otherwise.
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
    // The last goroutine to end may have been alone in its last turn.
    let turns = turns.into_inner();
    assert!(turns + 1 >= goroutines * EACH, "{turns} of {} were switches", goroutines * EACH);
}

/// In how many of `runs` runs with two processors both goroutines of a pair start on one thread. A
/// goroutine starts them one after the other, and then waits for them.
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
                handles.map(|handle| handle.join().expect("the goroutine does not panic"))
            })
        });
        let [a, b] = threads.expect("the run starts");
        a == b
    };
    (0..runs).filter(together).count()
}
