//! The reuse of stacks, and the decommit of their memory.

use std::collections::HashSet;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use footbridge::runtime::{self, Builder, Chan, go, gosched, scope, stack_usage};
use support::child;
use support::patience::wait_by;
use support::random::Random;
use support::runs::{AtEnd, alone, config, wait_for};
use support::settings::{number_or, seed_or};

use super::{CLASSES, DESCEND_FACTOR, KIB, MIB, PAGE, descend, in_use, lowest, made};

/// The number of resident pages of a range.
fn resident(from: usize, to: usize) -> usize {
    let from = from & !(PAGE - 1);
    let mut pages = vec![0u8; (to - from).div_ceil(PAGE)];
    // SAFETY: a page-aligned address, and a buffer of a byte for each page.
    let failed = unsafe { libc::mincore(from as *mut _, to - from, pages.as_mut_ptr()) };
    assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
    pages.iter().filter(|&&page| page & 1 != 0).count()
}

/// The resident set size of this process.
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("procfs");
    let pages: usize = statm.split(' ').nth(1).and_then(|n| n.parse().ok()).expect("a number");
    pages * PAGE
}

/// Lets this thread idle until `condition` holds.
#[track_caller]
fn idle_until(what: &str, seen: impl Fn() -> usize, condition: impl Fn() -> bool) {
    wait_by(|| runtime::sleep(Duration::from_millis(20)), what, seen, condition);
}

#[test]
fn stacks_are_reused_and_none_is_lost() {
    child::run("stacks_are_reused_and_none_is_lost", || {
        for processors in [1, 2] {
            for (class, count) in [(16 * KIB, 3000), (64 * KIB, 3000), (MIB, 200), (8 * MIB, 30)] {
                let before = made(class);
                let config = config(processors).stack_bytes(class);
                let run = config.run(|| {
                    for round in 0..5 {
                        let gate = Chan::<()>::new(0);
                        let handles: Vec<_> = (0..count)
                            .map(|_| {
                                let gate = gate.clone();
                                go(move || {
                                    let _ = gate.recv();
                                    black_box(0u8);
                                })
                            })
                            .collect();
                        assert_eq!(in_use(class), count + 1, "round {round}");
                        gate.close();
                        handles.into_iter().for_each(|handle| handle.join().expect("no panic"));
                    }
                });
                run.expect("the run starts");
                // Chains that another processor caches are not available: at most one burst more a
                // processor.
                let limit = count * processors + 2;
                assert!(made(class) - before <= limit, "{class}: {} - {before}", made(class));
                assert_eq!(in_use(class), 0, "none is lost");
            }
        }
    })
    .assert_success();
}

#[test]
fn no_two_goroutines_ever_share_a_stack() {
    child::run("no_two_goroutines_ever_share_a_stack", || {
        let seed = seed_or(0x5eed);
        let count = number_or("FOOTBRIDGE_STACK_STRESS", 6_000);
        println!("FOOTBRIDGE_SEED={seed}");
        static ENDED: AtomicU64 = AtomicU64::new(0);
        let run = config(3).run(|| {
            let mut random = Random(seed);
            // A foreign thread drops handles. It has no P that could cache the stacks.
            let (to_thread, dropped) = std::sync::mpsc::channel::<runtime::JoinHandle<u64>>();
            let thread = std::thread::spawn(move || dropped.iter().for_each(drop));
            let mut kept = Vec::new();
            for number in 0..count {
                let (class, parks) = (CLASSES[random.below(4) as usize], random.below(4));
                let depth = random.below(class as u64 / 4) as usize / DESCEND_FACTOR;
                let body = move || {
                    let here = black_box([number; 64]);
                    let result = descend(depth, &mut |_| {
                        (0..parks).for_each(|_| gosched());
                        number
                    });
                    assert_eq!(black_box(here), [number; 64], "the stack is corrupt");
                    ENDED.fetch_add(1, Ordering::Relaxed);
                    result
                };
                let handle = Builder::new().stack_bytes(class).go(body).expect("memory");
                match random.below(4) {
                    0 => drop(handle),
                    1 => to_thread.send(handle).expect("the thread receives until the end"),
                    _ => kept.push((number, handle)),
                }
                if random.below(50) == 0 {
                    for (number, handle) in kept.drain(..) {
                        assert_eq!(handle.join().expect("no panic"), number);
                    }
                }
                if random.below(1000) == 0 {
                    // Meanwhile stacks are decommitted.
                    runtime::sleep(Duration::from_millis(15));
                }
            }
            for (number, handle) in kept {
                assert_eq!(handle.join().expect("no panic"), number);
            }
            wait_for("all end", || ENDED.load(Ordering::Relaxed) == count);
            drop(to_thread);
            thread.join().expect("no panic");
        });
        run.expect("the run starts");
        assert!(CLASSES.iter().all(|&class| in_use(class) == 0), "{:?}", stack_usage());
    })
    .assert_success();
}

#[test]
fn the_stack_of_a_deep_goroutine_is_decommitted_when_it_ends() {
    child::run("the_stack_of_a_deep_goroutine_is_decommitted_when_it_ends", || {
        alone(|| {
            for class in [64 * KIB, 256 * KIB, MIB, 8 * MIB] {
                let body = move || {
                    let top = black_box(0u8);
                    let top = lowest(&raw const top as usize, class);
                    let bottom = descend(class / (2 * DESCEND_FACTOR), &mut |bottom| {
                        gosched();
                        bottom
                    });
                    (top, bottom, resident(bottom, top + class))
                };
                let handle = Builder::new().stack_bytes(class).go(body).expect("memory");
                wait_for("it ends", || handle.is_finished());
                let (stack, bottom, deep) = handle.join().expect("no panic");
                assert!(deep > 6, "{class}: only {deep} pages were used");
                assert!(bottom < stack + class - 4 * PAGE, "{class}");
                let left = resident(stack, stack + class);
                assert_eq!(left, 4, "{class}");
            }
        });
    })
    .assert_success();
}

#[test]
fn a_stack_that_was_deep_between_two_switches_is_decommitted_when_its_thread_idles() {
    child::run(
        "a_stack_that_was_deep_between_two_switches_is_decommitted_when_its_thread_idles",
        || {
            const COUNT: usize = 100;
            const CLASS: usize = 256 * KIB;
            alone(|| {
                let body = || {
                    let top = black_box(0u8);
                    descend(CLASS / (2 * DESCEND_FACTOR), &mut |_| ());
                    lowest(&raw const top as usize, CLASS)
                };
                let start = || Builder::new().stack_bytes(CLASS).go(body).expect("memory");
                let handles: Vec<_> = (0..COUNT).map(|_| start()).collect();
                let stacks: HashSet<_> =
                    handles.into_iter().map(|handle| handle.join().expect("no panic")).collect();
                assert_eq!(stacks.len(), COUNT);
                let pages = || stacks.iter().map(|&at| resident(at, at + CLASS)).sum::<usize>();
                // No stack has been decommitted yet.
                assert!(pages() > COUNT * 8, "{}", pages());
                let usage = |index: usize| stack_usage()[index];
                assert_eq!((usage(2).pooled, usage(2).decommitted), (COUNT, 0));
                idle_until(
                    "all are decommitted",
                    || usage(2).decommitted,
                    || (usage(2).pooled, usage(2).decommitted) == (0, COUNT),
                );
                assert_eq!(pages(), 0);
                // The same stacks are used again.
                let handles: Vec<_> = (0..COUNT).map(|_| start()).collect();
                let again = handles.into_iter().map(|handle| handle.join().expect("no panic"));
                assert!(again.into_iter().all(|stack| stacks.contains(&stack)));
                assert_eq!(usage(2).made, COUNT);
            });
        },
    )
    .assert_success();
}

#[test]
fn results_survive_the_decommit_of_their_stack() {
    static DROPPED: AtomicUsize = AtomicUsize::new(0);
    struct Large([u64; 4000]);
    impl Drop for Large {
        fn drop(&mut self) {
            assert!(self.0.iter().zip(1..).all(|(&word, n)| word == n), "the result is corrupt");
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }
    child::run("results_survive_the_decommit_of_their_stack", || {
        let run = config(1).stack_bytes(8 * MIB).run(|| {
            let body = || {
                descend(MIB / (2 * DESCEND_FACTOR), &mut |_| gosched());
                Large(std::array::from_fn(|n| n as u64 + 1))
            };
            let start = || Builder::new().stack_bytes(MIB).go(body).expect("memory");
            // The joining goroutine takes the result.
            drop(start().join().expect("no panic"));
            assert_eq!(DROPPED.load(Ordering::Relaxed), 1);
            // The handle was dropped before the goroutine ended: the goroutine drops the result.
            drop(start());
            wait_for("it ends", || in_use(MIB) == 0);
            assert_eq!(DROPPED.load(Ordering::Relaxed), 2);
            // The handle is dropped after the goroutine ended: this drops the result.
            let handle = start();
            wait_for("it ends", || handle.is_finished());
            drop(handle);
            assert_eq!((DROPPED.load(Ordering::Relaxed), in_use(MIB)), (3, 0));
        });
        run.expect("the run starts");
    })
    .assert_success();
}

#[test]
fn an_idle_process_decommits_the_stacks_of_a_burst() {
    let test = "an_idle_process_decommits_the_stacks_of_a_burst";
    for processors in [1, 2] {
        let outcome = child::run_case(test, processors, || {
            let count = number_or("FOOTBRIDGE_STACK_BURST", 100_000) as usize;
            let burst = || {
                let gate = Chan::<()>::new(0);
                let waiting = AtomicUsize::new(0);
                scope(|s| {
                    for _ in 0..count {
                        s.go(|| {
                            waiting.fetch_add(1, Ordering::Relaxed);
                            let _ = gate.recv();
                        });
                    }
                    let close = AtEnd(|| assert!(gate.close()));
                    wait_for("all wait", || waiting.load(Ordering::Relaxed) == count);
                    let peak = resident_bytes();
                    drop(close);
                    peak
                })
            };
            let run = config(processors).run(|| {
                let before = resident_bytes();
                let grown = burst() - before;
                assert!(grown > count * PAGE, "{grown} bytes for {count} stacks");
                let stacks = made(64 * KIB);
                let left = || resident_bytes().saturating_sub(before);
                idle_until("the stacks are decommitted", left, || left() < grown / 8);
                println!("{} MiB, and {} MiB are left", grown >> 20, left() >> 20);
                // A second burst reuses the same stacks.
                burst();
                assert_eq!(made(64 * KIB), stacks);
                (before, grown)
            });
            // The end of a run decommits stacks, too.
            let (before, grown) = run.expect("the run starts");
            let left = resident_bytes().saturating_sub(before);
            println!("{} MiB are left after the run", left >> 20);
            assert!(left < grown / 8, "{left} of {grown} bytes are left after the run");
        });
        if let Some(outcome) = outcome {
            outcome.assert_success();
        }
    }
}

#[test]
fn a_busy_process_decommits_unused_stacks() {
    const COUNT: usize = 6_000;
    child::run("a_busy_process_decommits_unused_stacks", || {
        let run = config(1).run(|| {
            let start = || {
                let gate = Chan::<()>::new(0);
                let receiver = gate.clone();
                let handles: Vec<_> = (0..COUNT)
                    .map(|_| {
                        let gate = receiver.clone();
                        go(move || gate.recv())
                    })
                    .collect();
                gosched();
                gate.close();
                for handle in handles {
                    let _ = handle.join().expect("no panic");
                }
            };
            start();
            let usage = || stack_usage()[1];
            assert!(usage().pooled > COUNT / 2, "{:?}", usage());
            // Two goroutines that yield to each other, and others that start and end: the thread is
            // never idle.
            let stop = AtomicU64::new(0);
            scope(|s| {
                let _stop = AtEnd(|| stop.store(1, Ordering::Relaxed));
                s.go(|| {
                    while stop.load(Ordering::Relaxed) == 0 {
                        gosched();
                    }
                });
                let start_one = || go(|| ()).join().expect("no panic");
                let is_done = || usage().pooled <= 2 * 512;
                wait_by(start_one, "unused stacks are decommitted", usage, is_done);
            });
            let left = usage();
            assert!(left.decommitted > COUNT - 2 * 512 - 3, "{left:?}");
        });
        run.expect("the run starts");
    })
    .assert_success();
}
