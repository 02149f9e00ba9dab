//! Switches between goroutines: yields, and values sent through channels.
//!
//! All goroutines are on one processor. One iteration is *one way*: a round trip counts as two.

use std::arch::asm;
use std::cell::Cell;
use std::hint::black_box;
use std::time::{Duration, Instant};

use corosensei::{Coroutine, CoroutineResult};
use footbridge::runtime::{Chan, Config, gosched, keep_fp_control, measure_raw_switch, scope};

use crate::meter::Subject;

const COROSENSEI: &str = "corosensei, resume or suspend";
const GOSCHED: &str = "gosched, 2 goroutines";
const HOP: &str = "channel hop, rendezvous";
const MANY: u64 = 1000;

/// The group.
pub fn subjects() -> Vec<Subject> {
    vec![
        Subject::new(COROSENSEI, corosensei),
        Subject::new("raw switch, without the scheduler", raw_switch)
            .at_most(2.6)
            .against(COROSENSEI),
        Subject::new(GOSCHED, |n| gosched_ring(2, FpControl::OfThread, n))
            .faster_than_recorded("Go 1.27", 81.0, 5.0)
            .against(COROSENSEI),
        Subject::new("gosched, with own FP control state", |n| gosched_ring(2, FpControl::Own, n))
            .against(GOSCHED)
            .against(COROSENSEI),
        Subject::new("gosched, 1,000 goroutines", |n| gosched_ring(MANY, FpControl::OfThread, n)),
        Subject::new(HOP, |n| ping_pong(0, FpControl::OfThread, n))
            .faster_than_recorded("Go 1.27", 129.0, 3.0)
            .against(COROSENSEI),
        Subject::new("channel hop, with own FP control state", |n| ping_pong(0, FpControl::Own, n))
            .against(HOP),
        Subject::new("channel hop, capacity 1", |n| ping_pong(1, FpControl::OfThread, n))
            .faster_than_recorded("Go 1.27 (rendezvous)", 129.0, 3.0),
        Subject::new("channel value, capacity 128, one way stream", stream),
    ]
}

/// Runs `f` on a goroutine of a run with one processor.
fn on_one_processor<R>(f: impl FnOnce() -> R) -> R {
    let config = Config::new().processors(1);
    config.run(f).expect("the run starts")
}

/// A number is passed to a coroutine and returned, incremented.
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

/// Two stacks that only switch to each other.
pub fn raw_switch(iterations: u64) -> Duration {
    let rounds = iterations.div_ceil(2);
    let time = measure_raw_switch(rounds).expect("stubs and a stack");
    time.mul_f64(iterations as f64 / (2 * rounds) as f64)
}

/// The FP control state that goroutines run in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum FpControl {
    /// That of the thread.
    OfThread,
    /// Each goroutine keeps its own, which differs from its neighbours'.
    Own,
}

impl FpControl {
    /// Runs `f` in the FP control state of goroutine number `index`, and checks that it is
    /// unchanged afterwards. `f` must not compute with floating-point numbers.
    pub fn during<R>(self, index: usize, f: impl FnOnce() -> R) -> R {
        if self == Self::OfThread {
            return f();
        }
        // Rounding towards zero, and results flushed to zero (Intel SDM volume 1, section 10.2.3).
        let own = [0x6000, 0x8000][index % 2] | 0x1f80;
        let of_thread = mxcsr();
        assert!(!keep_fp_control(true), "a new goroutine keeps none");
        // SAFETY: loads control bits that the CPU has. The code computes with integers only.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const own, options(nostack, readonly)) };
        let result = f();
        assert_eq!(mxcsr(), own, "the goroutine keeps its FP control state");
        keep_fp_control(false);
        assert_eq!(mxcsr(), of_thread, "the thread keeps its FP control state");
        result
    }
}

/// The control bits of MXCSR.
fn mxcsr() -> u32 {
    let mut value = 0u32;
    // SAFETY: stores the register to a local variable.
    unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut value, options(nostack, preserves_flags)) };
    value & !0x3f
}

/// Data that goroutines of one thread share.
struct OneThread<T>(T);

// SAFETY: the goroutines that share it belong to a run with one processor, which has one thread.
unsafe impl<T> Sync for OneThread<T> {}

/// `goroutines` goroutines yield in turn, and each counts its turns.
fn gosched_ring(goroutines: u64, fp: FpControl, iterations: u64) -> Duration {
    let rounds = iterations.div_ceil(goroutines);
    let (started, turns, over) = (Cell::new(1), Cell::new(0), Cell::new(false));
    let shared = OneThread((&started, &turns, &over));
    let (time, turns) = on_one_processor(|| {
        scope(|s| {
            for index in 1..goroutines {
                let shared = &shared;
                s.go(move || {
                    let OneThread((started, turns, over)) = shared;
                    fp.during(index as usize, || {
                        started.set(started.get() + 1);
                        while !over.get() {
                            turns.set(turns.get() + 1);
                            gosched();
                        }
                    });
                });
            }
            fp.during(0, || {
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
        })
    });
    assert_eq!(turns, rounds * goroutines, "each goroutine has the same number of turns");
    time.mul_f64(iterations as f64 / turns as f64)
}

/// A number is sent through one channel and returned through another, incremented.
fn ping_pong(capacity: usize, fp: FpControl, iterations: u64) -> Duration {
    let rounds = iterations.div_ceil(2);
    let time = on_one_processor(|| {
        let (ping, pong) = (Chan::<u64>::new(capacity), Chan::<u64>::new(capacity));
        scope(|s| {
            s.go(|| {
                fp.during(1, || {
                    while let Ok(number) = ping.recv() {
                        pong.send(number + 1).expect("it stays open");
                    }
                });
            });
            fp.during(0, || {
                let mut number = 0;
                let start = Instant::now();
                for _ in 0..rounds {
                    ping.send(number).expect("it is closed below");
                    number = pong.recv().expect("it stays open");
                }
                let time = start.elapsed();
                assert_eq!(number, rounds);
                ping.close();
                time
            })
        })
    });
    time.mul_f64(iterations as f64 / (2 * rounds) as f64)
}

/// Numbers are sent one way, through a channel with a large capacity.
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
