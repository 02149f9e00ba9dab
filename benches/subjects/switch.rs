//! Going from one goroutine to another: giving way, and passing values through channels.
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
        Subject::new(GOSCHED, |n| gosched_ring(2, Modes::OfThread, n))
            .faster_than_recorded("Go 1.27", 81.0, 5.0)
            .against(COROSENSEI),
        Subject::new("gosched, with float modes", |n| gosched_ring(2, Modes::Own, n))
            .against(GOSCHED)
            .against(COROSENSEI),
        Subject::new("gosched, 1,000 goroutines", |n| gosched_ring(MANY, Modes::OfThread, n)),
        Subject::new(HOP, |n| ping_pong(0, Modes::OfThread, n))
            .faster_than_recorded("Go 1.27", 129.0, 3.0)
            .against(COROSENSEI),
        Subject::new("channel hop, with float modes", |n| ping_pong(0, Modes::Own, n)).against(HOP),
        Subject::new("channel hop, capacity 1", |n| ping_pong(1, Modes::OfThread, n))
            .faster_than_recorded("Go 1.27 (rendezvous)", 129.0, 3.0),
        Subject::new("channel value, capacity 128, one way stream", stream),
    ]
}

/// Runs `f` on a goroutine of a run with one processor.
fn on_one_processor<R>(f: impl FnOnce() -> R) -> R {
    let config = Config::new().processors(1);
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

/// Whether goroutines keep floating-point control modes of their own.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Modes {
    /// They run in those of the thread.
    OfThread,
    /// Each has modes that differ from those of its neighbours.
    Own,
}

impl Modes {
    /// Runs `f` in the modes that goroutine number `index` has, and makes sure that they are still
    /// the same afterwards. Nothing in `f` computes with floating-point numbers.
    pub fn during<R>(self, index: usize, f: impl FnOnce() -> R) -> R {
        if self == Self::OfThread {
            return f();
        }
        // Rounding towards zero, and results flushed to zero (Intel SDM volume 1, section 10.2.3).
        let own = [0x6000, 0x8000][index % 2] | 0x1f80;
        let of_thread = mxcsr();
        assert!(!keep_fp_control(true), "a goroutine begins without");
        // SAFETY: loads control bits that the CPU has, for code that computes with integers only.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const own, options(nostack, readonly)) };
        let result = f();
        assert_eq!(mxcsr(), own, "the goroutine keeps its modes");
        keep_fp_control(false);
        assert_eq!(mxcsr(), of_thread, "the thread keeps its modes");
        result
    }
}

/// The control bits of MXCSR.
fn mxcsr() -> u32 {
    let mut value = 0u32;
    // SAFETY: stores the register to our own variable.
    unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut value, options(nostack, preserves_flags)) };
    value & !0x3f
}

/// What goroutines of one thread share.
struct OneThread<T>(T);

// SAFETY: the goroutines that share it are of a run with one processor, which is one thread.
unsafe impl<T> Sync for OneThread<T> {}

/// So many goroutines give way in turn, and each counts its turns.
fn gosched_ring(goroutines: u64, modes: Modes, iterations: u64) -> Duration {
    let rounds = iterations.div_ceil(goroutines);
    let (started, turns, over) = (Cell::new(1), Cell::new(0), Cell::new(false));
    let shared = OneThread((&started, &turns, &over));
    let (time, turns) = on_one_processor(|| {
        scope(|s| {
            for index in 1..goroutines {
                let shared = &shared;
                s.go(move || {
                    let OneThread((started, turns, over)) = shared;
                    modes.during(index as usize, || {
                        started.set(started.get() + 1);
                        while !over.get() {
                            turns.set(turns.get() + 1);
                            gosched();
                        }
                    });
                });
            }
            modes.during(0, || {
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
    assert_eq!(turns, rounds * goroutines, "everybody has the same number of turns");
    time.mul_f64(iterations as f64 / turns as f64)
}

/// A number goes through one channel and comes back one larger through another.
fn ping_pong(capacity: usize, modes: Modes, iterations: u64) -> Duration {
    let rounds = iterations.div_ceil(2);
    let time = on_one_processor(|| {
        let (ping, pong) = (Chan::<u64>::new(capacity), Chan::<u64>::new(capacity));
        scope(|s| {
            s.go(|| {
                modes.during(1, || {
                    while let Ok(number) = ping.recv() {
                        pong.send(number + 1).expect("nobody closes it");
                    }
                });
            });
            modes.during(0, || {
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
