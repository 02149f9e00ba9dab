//! Storms of preemptions: the machine state of a goroutine survives, for each register set that
//! this CPU has. `rust_code.rs` tests Rust code under preemption.
//!
//! FOOTBRIDGE_STRESS_SECONDS is the least duration of each storm (default 2), FOOTBRIDGE_SEED the
//! seed of the random states. A storm lasts longer on a busy machine, until it has seen enough.

#![allow(unsafe_code, reason = "calls emitted code")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use support::patience::Patience;
use support::runs::{AtEnd, thread_number};
use support::settings::{seed_or, stress_or};

use footbridge::runtime::{self, Builder, Config, Refused, Stats, VectorState, scope};
use support::spinner::{Change, Level, Preemptible, Random, Spinner};

const SPINNERS: usize = 64;
/// A spin of this many iterations takes at least a millisecond: several time slices.
const ITERATIONS: u64 = 1 << 20;
const TIME_SLICE: Duration = Duration::from_micros(100);

fn stress() -> Duration {
    stress_or(2.0)
}

/// Storms exclude each other, since they compete for the CPUs.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn seed() -> u64 {
    seed_or(0x00f0_07b5_1d6e)
}

fn storm_config(vector_state: VectorState) -> Config {
    Config::new().processors(2).time_slice(TIME_SLICE).vector_state(vector_state)
}

/// The result of a storm.
struct Storm {
    stats: Stats,
    /// The parts of the machine state that changed, with counts.
    changes: BTreeMap<Change, u64>,
    /// Spinners that had not finished one spin at the end.
    starved: usize,
    spins: u64,
}

/// What a storm must see before it ends.
enum Enough {
    /// This number of preemptions in this counter, and a spin of every spinner.
    Preemptions(u64, fn(&Stats) -> u64),
    /// A change of the machine state.
    Change,
    /// Nothing.
    Time,
}

/// Runs 64 spinning goroutines for `time`, and longer until they have seen enough.
fn storm(
    config: &Config,
    level: Level,
    preemptible: Preemptible,
    time: Duration,
    enough: Enough,
) -> Storm {
    let _alone = alone();
    let spinner = Spinner::new(level, preemptible);
    let changes = Mutex::new(BTreeMap::new());
    let (done, spins) = (AtomicUsize::new(0), AtomicU64::new(0));
    let (patience, end) = (Patience::new(), Instant::now() + time);
    let is_over = || {
        let is_enough = || match enough {
            Enough::Preemptions(least, count) => {
                done.load(Ordering::Relaxed) == SPINNERS && count(&runtime::stats()) >= least
            }
            Enough::Change => !changes.lock().expect("no panic").is_empty(),
            Enough::Time => true,
        };
        Instant::now() >= end && (is_enough() || patience.is_over())
    };
    let stats = config.run(|| {
        scope(|s| {
            for n in 0..SPINNERS {
                let (spinner, changes, done, spins) = (&spinner, &changes, &done, &spins);
                let is_over = &is_over;
                s.go(move || {
                    let mut random = Random(seed() ^ (n as u64) << 32);
                    let mut finished = 0;
                    while !is_over() {
                        let found = spinner.spin(ITERATIONS, random.next_u64());
                        for change in found {
                            let mut changes = changes.lock().expect("no panic");
                            *changes.entry(change).or_insert(0) += 1;
                        }
                        if !is_over() || finished > 0 {
                            finished += 1;
                            done.fetch_add(usize::from(finished == 1), Ordering::Relaxed);
                        }
                    }
                    spins.fetch_add(finished, Ordering::Relaxed);
                });
            }
        });
        runtime::stats()
    });
    Storm {
        stats: stats.expect("the run starts"),
        changes: changes.into_inner().expect("no panic"),
        starved: SPINNERS - done.into_inner(),
        spins: spins.into_inner(),
    }
}

/// Asserts that there were enough preemptions, that nothing changed, and that no spinner starved.
#[track_caller]
fn assert_survived(storm: &Storm, preemptions: u64, least: u64, what: &str) {
    let Storm { stats, changes, starved, spins } = storm;
    println!("{what}: {spins} spins; {stats:?}");
    assert!(changes.is_empty(), "{what}: {changes:?}, seed {}", seed());
    assert_eq!(*starved, 0, "{what}: spinners that starved; {stats:?}");
    assert!(preemptions >= least, "{what}: only {preemptions} preemptions: {stats:?}");
}

fn asynchronous(stats: &Stats) -> u64 {
    stats.asynchronous
}

fn cooperative(stats: &Stats) -> u64 {
    stats.cooperative
}

#[test]
fn all_registers_of_the_cpu_survive_preemption() {
    let (config, enough) =
        (storm_config(VectorState::Auto), Enough::Preemptions(1000, asynchronous));
    let storm = storm(&config, Level::largest(), Preemptible::Anywhere, stress(), enough);
    assert_survived(&storm, storm.stats.asynchronous, 1000, "all");
    assert!(storm.stats.requested >= storm.stats.asynchronous);
}

#[test]
fn each_register_set_survives_with_a_save_area_of_its_size() {
    for level in Level::all() {
        let config = storm_config(level.vector_state());
        let enough = Enough::Preemptions(400, asynchronous);
        let storm = storm(&config, level, Preemptible::Anywhere, stress() / 2, enough);
        assert_survived(&storm, storm.stats.asynchronous, 400, &format!("{level:?}"));
    }
}

#[test]
fn all_registers_but_flags_survive_a_poll() {
    for level in Level::all() {
        let config = storm_config(level.vector_state());
        let enough = Enough::Preemptions(200, cooperative);
        let storm = storm(&config, level, Preemptible::AtPolls, stress() / 4, enough);
        assert_survived(&storm, storm.stats.cooperative, 200, &format!("{level:?} at polls"));
        assert_eq!(storm.stats.asynchronous, 0, "it is not preemptible");
    }
}

/// With a save area that is too small for the registers in use, the spinners find changes.
#[test]
fn the_harness_detects_registers_that_are_not_saved() {
    let all = Level::all();
    for (saved, used) in all.iter().zip(&all[1..]) {
        let config = storm_config(saved.vector_state());
        let storm = storm(&config, *used, Preemptible::Anywhere, stress() / 4, Enough::Change);
        let lost = |change: &Change| matches!(change, Change::Vector(_) | Change::Mask(_));
        assert!(!storm.changes.is_empty(), "{saved:?} saves {used:?}?");
        assert!(storm.changes.keys().all(lost), "{:?}", storm.changes);
    }
}

/// Without preemption two goroutines occupy the two threads, and all others starve.
#[test]
fn the_harness_detects_starvation_without_preemption() {
    let config = storm_config(VectorState::Auto).time_slice(None);
    let storm = storm(&config, Level::Sse, Preemptible::Anywhere, stress() / 8, Enough::Time);
    assert!(storm.starved >= SPINNERS - 2, "{} starved", storm.starved);
    let Stats { requested, signals, cooperative, asynchronous, refused, .. } = storm.stats;
    assert_eq!((requested, signals, cooperative, asynchronous), (0, 0, 0, 0));
    assert_eq!(refused, Refused::default());
}

/// Migratable goroutines are preempted on one thread and resume on another.
#[test]
fn registers_survive_a_migration() {
    let level = Level::largest();
    let spinner: &'static Spinner = Box::leak(Box::new(Spinner::new(level, Preemptible::Anywhere)));
    let _alone = alone();
    let (changes, stats, moved) = storm_config(VectorState::Auto)
        .run(|| {
            static MOVED: AtomicU64 = AtomicU64::new(0);
            let (patience, end) = (Patience::new(), Instant::now() + stress() / 2);
            let is_over = move || {
                let is_enough =
                    || runtime::stats().asynchronous >= 100 && MOVED.load(Ordering::Relaxed) > 10;
                Instant::now() >= end && (is_enough() || patience.is_over())
            };
            let handles: Vec<_> = (0..5u64)
                .map(|n| {
                    let body = move || {
                        let mut random = Random(seed() ^ n << 40);
                        let mut changes = 0;
                        while !is_over() {
                            let before = thread_number();
                            changes += spinner.spin(ITERATIONS, random.next_u64()).len();
                            let moved = thread_number() != before;
                            MOVED.fetch_add(u64::from(moved), Ordering::Relaxed);
                            // So that a thread sometimes has nothing to run but stolen goroutines.
                            runtime::sleep(Duration::from_micros(random.next_u64() % 10_000));
                        }
                        changes
                    };
                    // SAFETY: the goroutine uses nothing that belongs to its thread.
                    unsafe { Builder::new().go_migratable(body).expect("memory") }
                })
                .collect();
            let changes: Vec<_> =
                handles.into_iter().map(|handle| handle.join().expect("no panic")).collect();
            (changes, runtime::stats(), MOVED.load(Ordering::Relaxed))
        })
        .expect("the run starts");
    println!("{moved} spins ended on another thread; {stats:?}");
    assert_eq!(changes, [0; 5], "seed {}", seed());
    assert!(stats.asynchronous >= 100, "{stats:?}");
    assert!(moved > 10, "{moved} spins ended on another thread; {stats:?}");
}

/// The next goroutine does not see the FP control state and flags of preempted code.
#[test]
fn other_goroutines_run_in_the_fp_control_state_of_native_code() {
    let spinner = Spinner::new(Level::largest(), Preemptible::Anywhere);
    let _alone = alone();
    let (checks, stats) = storm_config(VectorState::Auto)
        .run(|| {
            let (stop, checks) = (AtomicBool::new(false), AtomicU64::new(0));
            let (patience, end) = (Patience::new(), Instant::now() + stress() / 4);
            let is_over = || {
                let is_enough =
                    || checks.load(Ordering::Relaxed) > 100 && runtime::stats().asynchronous > 50;
                Instant::now() >= end && (is_enough() || patience.is_over())
            };
            scope(|s| {
                let _stop = AtEnd(|| stop.store(true, Ordering::Relaxed));
                for _ in 0..4 {
                    s.go(|| keep_spinning(&spinner, &stop));
                }
                let check = || {
                    while !is_over() {
                        assert_eq!(native_state(), (0x1f80, 0x37f, 0, 0xffff));
                        checks.fetch_add(1, Ordering::Relaxed);
                        runtime::gosched();
                    }
                };
                let checkers: Vec<_> = (0..4).map(|_| s.go(check)).collect();
                checkers.into_iter().for_each(|checker| checker.join().expect("no panic"));
            });
            (checks.into_inner(), runtime::stats())
        })
        .expect("the run starts");
    assert!(checks > 100 && stats.asynchronous > 50, "{checks} checks; {stats:?}");
}

/// MXCSR without its exception flags, the x87 control word, DF and AC, and the x87 tag word.
#[inline(never)]
fn native_state() -> (u32, u16, u64, u16) {
    let (mut mxcsr, mut x87) = (0u32, [0u32; 7]);
    let flags: u64;
    // SAFETY: stores control registers; FNSTENV masks exceptions, which FLDENV undoes.
    unsafe {
        std::arch::asm!(
            "stmxcsr [{mxcsr}]",
            "fnstenv [{x87}]",
            "fldenv [{x87}]",
            "pushfq",
            "pop {flags}",
            mxcsr = in(reg) &raw mut mxcsr,
            x87 = in(reg) x87.as_mut_ptr(),
            flags = out(reg) flags,
        );
    }
    (mxcsr & !0x3f, x87[0] as u16, flags & (1 << 10 | 1 << 18), x87[2] as u16)
}

/// Spins until `stop` is set.
fn keep_spinning(spinner: &Spinner, stop: &AtomicBool) {
    let mut random = Random(seed());
    while !stop.load(Ordering::Relaxed) {
        assert_eq!(spinner.spin(ITERATIONS, random.next_u64()), []);
    }
}
