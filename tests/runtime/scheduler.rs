//! Who runs next: time slices that are inherited, timers of threads that are kept busy, many
//! processors, and the counters that tell.

#![allow(unsafe_code, reason = "starts migratable goroutines")]

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use footbridge::runtime::{
    Builder, Chan, Config, Goroutine, MAX_PROCESSORS, Stats, Status, WaitReason, go, goroutines,
    gosched, scope, sleep, stats,
};

fn config(processors: usize) -> Config {
    Config::new().processors(processors).time_slice(Duration::from_millis(1))
}

fn run<R>(processors: usize, f: impl FnOnce() -> R) -> R {
    config(processors).run(f).expect("the run starts")
}

fn compute(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// Two goroutines that wake each other in turn have one time slice, not a new one each time: a third
/// one waits for that slice, and not for the 128 turns after which it would come in any case.
#[test]
fn a_pair_that_wakes_each_other_shares_a_slice() {
    const TURN: Duration = Duration::from_millis(2);
    let gaps: Vec<u64> = run(1, || {
        let turns = AtomicU64::new(0);
        let stop = AtomicBool::new(false);
        let (there, back) = (Chan::new(0), Chan::new(0));
        scope(|s| {
            s.go(|| {
                while back.recv().is_ok() {
                    turns.fetch_add(1, Ordering::Relaxed);
                    compute(TURN);
                    if there.send(()).is_err() {
                        break;
                    }
                }
            });
            s.go(|| {
                while !stop.load(Ordering::Relaxed) {
                    back.send(()).expect("open");
                    let _ = there.recv();
                    turns.fetch_add(1, Ordering::Relaxed);
                    compute(TURN);
                }
                there.close();
                back.close();
            });
            while turns.load(Ordering::Relaxed) < 4 {
                gosched();
            }
            let gaps = (0..6).map(|_| {
                let before = turns.load(Ordering::Relaxed);
                gosched();
                turns.load(Ordering::Relaxed) - before
            });
            let gaps = gaps.collect();
            stop.store(true, Ordering::Relaxed);
            gaps
        })
    });
    println!("turns in between: {gaps:?}");
    assert!(*gaps.iter().min().expect("six") < 40, "{gaps:?}");
    assert!(gaps.iter().all(|gap| *gap <= 129), "{gaps:?}");
}

/// Without sysmon nobody ends a slice; then the number of turns has a limit.
#[test]
fn a_pair_that_wakes_each_other_cannot_go_on_for_ever() {
    let config = Config::new().processors(1).time_slice(None);
    let gap = config.run(|| {
        let turns = AtomicU64::new(0);
        let stop = AtomicBool::new(false);
        let channel = Chan::new(0);
        scope(|s| {
            s.go(|| while channel.recv().is_ok() {});
            s.go(|| {
                while !stop.load(Ordering::Relaxed) {
                    channel.send(()).expect("open");
                    turns.fetch_add(1, Ordering::Relaxed);
                }
                channel.close();
            });
            while turns.load(Ordering::Relaxed) == 0 {
                gosched();
            }
            let before = turns.load(Ordering::Relaxed);
            gosched();
            let gap = turns.load(Ordering::Relaxed) - before;
            stop.store(true, Ordering::Relaxed);
            gap
        })
    });
    let gap = gap.expect("the run starts");
    assert!((10..1000).contains(&gap), "{gap}");
}

/// Timers are looked at now and then only, but for one that sysmon has seen to be late.
#[test]
fn sleepers_do_not_wait_for_many_long_turns() {
    const TURN: Duration = Duration::from_millis(4);
    const SLEEPS: u64 = 8;
    let turns_slept = run(1, || {
        let turns = AtomicU64::new(0);
        let stop = AtomicBool::new(false);
        scope(|s| {
            for _ in 0..2 {
                s.go(|| {
                    while !stop.load(Ordering::Relaxed) {
                        turns.fetch_add(1, Ordering::Relaxed);
                        compute(TURN);
                        gosched();
                    }
                });
            }
            gosched();
            let before = turns.load(Ordering::Relaxed);
            (0..SLEEPS).for_each(|_| sleep(Duration::from_millis(1)));
            stop.store(true, Ordering::Relaxed);
            turns.load(Ordering::Relaxed) - before
        })
    });
    println!("{turns_slept} turns in {SLEEPS} sleeps");
    // One turn runs when the timer is due; sysmon looks once in a slice; the two others go first.
    assert!(turns_slept < 8 * SLEEPS, "{turns_slept}");
}

/// A goroutine that may run anywhere does not sleep on while the thread that it fell asleep on is
/// kept by code that does not give way.
#[test]
fn a_sleeper_that_may_move_is_woken_by_another_thread() {
    // A machine that is too slow may need another try, with more time.
    let slept = (0..5).find(|tries| sleeps_elsewhere(Duration::from_millis(500 << tries)));
    assert!(slept.is_some());
}

/// Returns whether the sleeper was asleep before anything could wake it.
fn sleeps_elsewhere(time: Duration) -> bool {
    run(2, || {
        let (started, release) = (AtomicU32::new(0), AtomicBool::new(false));
        static AWAKE: AtomicBool = AtomicBool::new(false);
        AWAKE.store(false, Ordering::Relaxed);
        scope(|s| {
            // Keeps the other thread while the sleeper falls asleep on this one.
            s.go(|| {
                started.store(1, Ordering::Release);
                while !release.load(Ordering::Acquire) {
                    std::hint::spin_loop();
                }
            });
            while started.load(Ordering::Acquire) == 0 {
                std::hint::spin_loop();
            }
            // SAFETY: it has nothing of a thread's over the sleep.
            let sleeper = unsafe {
                Builder::new()
                    .go_migratable(move || {
                        sleep(time);
                        AWAKE.store(true, Ordering::Release);
                    })
                    .expect("memory")
            };
            // It falls asleep here, and the other thread has time to do so too before it is due.
            gosched();
            release.store(true, Ordering::Release);
            let start = Instant::now();
            compute(Duration::from_millis(100));
            let was_asleep = !AWAKE.load(Ordering::Acquire);
            while !AWAKE.load(Ordering::Acquire) {
                assert!(start.elapsed() < Duration::from_secs(20), "it sleeps on");
                std::hint::spin_loop();
            }
            sleeper.join().expect("no panic");
            was_asleep
        })
    })
}

/// What one goroutine makes runnable another thread takes, though the first goes on: by a channel, and
/// sleepers that are due together.
#[test]
fn what_may_move_is_offered_to_a_thread_that_sleeps() {
    run(2, || {
        let done = std::sync::Arc::new(AtomicUsize::new(0));
        let sleepers: Vec<_> = (0..6)
            .map(|_| {
                let done = std::sync::Arc::clone(&done);
                // SAFETY: it has nothing of a thread's over the sleep.
                unsafe {
                    Builder::new()
                        .go_migratable(move || {
                            sleep(Duration::from_millis(100));
                            // Once one is here, another one comes elsewhere before this one ends.
                            let start = Instant::now();
                            done.fetch_add(1, Ordering::Relaxed);
                            while done.load(Ordering::Relaxed) < 2 {
                                assert!(start.elapsed() < Duration::from_secs(20), "nobody came");
                                std::hint::spin_loop();
                            }
                        })
                        .expect("memory")
                }
            })
            .collect();
        sleepers.into_iter().for_each(|sleeper| sleeper.join().expect("no panic"));

        let (channel, done) = (Chan::new(0), std::sync::Arc::new(AtomicUsize::new(0)));
        let receivers: Vec<_> = (0..4)
            .map(|_| {
                let (channel, done) = (channel.clone(), std::sync::Arc::clone(&done));
                // SAFETY: it has nothing of a thread's over the receive.
                unsafe {
                    Builder::new()
                        .go_migratable(move || {
                            let _ = channel.recv();
                            done.fetch_add(1, Ordering::Relaxed);
                        })
                        .expect("memory")
                }
            })
            .collect();
        let is_waiting =
            |g: &Goroutine| g.status() == Some((Status::Waiting, WaitReason::ChanReceive));
        // Parked on this thread, wherever they began.
        while goroutines().iter().filter(|g| is_waiting(g)).count() < 4 {
            gosched();
        }
        // The other thread has time to fall asleep.
        compute(Duration::from_millis(50));
        (0..4).for_each(|_| channel.send(()).expect("open"));
        let start = Instant::now();
        // The one that was readied last goes next on this thread.
        while done.load(Ordering::Relaxed) < 3 {
            assert!(start.elapsed() < Duration::from_secs(20), "{:?}", stats());
            std::hint::spin_loop();
        }
        receivers.into_iter().for_each(|receiver| receiver.join().expect("no panic"));
    });
}

#[test]
fn what_happens_is_counted() {
    let since = |before: Stats| {
        let now = stats();
        let parts = [
            now.switches - before.switches,
            now.inherited - before.inherited,
            now.timers - before.timers,
            now.sleeps - before.sleeps,
        ];
        (parts, now)
    };
    run(1, || {
        let before = stats();
        let other = go(|| (0..100).for_each(|_| gosched()));
        (0..100).for_each(|_| gosched());
        other.join().expect("no panic");
        let ([switches, inherited, timers, sleeps], now) = since(before);
        // Its start, one for each time that somebody gave way, and the end of the join.
        assert!((200..=203).contains(&switches), "{switches}");
        assert_eq!((inherited, timers, sleeps), (0, 0, 0));
        assert_eq!((now.steals, now.stolen), (0, 0));

        let (before, channel) = (stats(), Chan::new(0));
        scope(|s| {
            s.go(|| (0..50).for_each(|n| channel.send(n).expect("open")));
            (0..50).for_each(|n| assert_eq!(channel.recv(), Ok(n)));
        });
        let ([switches, inherited, ..], _) = since(before);
        assert!(inherited >= 50 && inherited < switches, "{inherited} of {switches}");

        let before = stats();
        (0..3).for_each(|_| sleep(Duration::from_millis(1)));
        let ([_, _, timers, sleeps], _) = since(before);
        assert_eq!(timers, 3);
        assert!(sleeps >= 3, "{sleeps}");
    });
    run(2, || {
        let done = AtomicUsize::new(0);
        scope(|s| {
            let before = stats();
            for _ in 0..100 {
                s.go(|| done.fetch_add(1, Ordering::Relaxed));
            }
            // This thread does nothing for them.
            let start = Instant::now();
            while done.load(Ordering::Relaxed) < 100 {
                assert!(start.elapsed() < Duration::from_secs(20), "{:?}", stats());
            }
            let stats = stats();
            // All of them, wherever the other thread found them.
            assert!(stats.switches - before.switches >= 100, "{stats:?}");
            assert!((1..=100).contains(&stats.steals), "{stats:?}");
            assert!((stats.steals..=100).contains(&stats.stolen), "{stats:?}");
        });
    });
}

/// The end of a scope meets the end of its last goroutine, which another thread runs, at every moment.
#[test]
fn a_scope_ends_whoever_comes_last() {
    run(2, || {
        let end = Instant::now() + Duration::from_secs(1);
        let (mut scopes, mut sum, done) = (0u64, 0, AtomicU64::new(0));
        while Instant::now() < end {
            scopes += 1;
            scope(|s| {
                let done = &done;
                // One goroutine starts another one, and ends before it or after.
                s.go(move || {
                    s.go(|| done.fetch_add(1, Ordering::Relaxed));
                    done.fetch_add(1, Ordering::Relaxed);
                });
                // Now and then so long that the other thread has run both.
                (0..scopes % 256).for_each(|_| std::hint::spin_loop());
            });
            sum += 2;
            assert_eq!(done.load(Ordering::Relaxed), sum);
        }
        println!("{scopes} scopes, {:?}", stats());
        assert!(scopes > 100);
    });
}

/// As many processors as there can be, far more than this machine has.
#[test]
fn as_many_processors_as_there_can_be_share_the_work() {
    const GOROUTINES: usize = 4000;
    let config = Config::new().processors(MAX_PROCESSORS);
    let (sum, threads) = config
        .run(|| {
            let channel = Chan::new(16);
            let threads = std::sync::Mutex::new(std::collections::HashSet::new());
            let sum = scope(|s| {
                for n in 0..GOROUTINES {
                    let (channel, threads) = (&channel, &threads);
                    s.go(move || {
                        let this = std::thread::current().id();
                        threads.lock().expect("not poisoned").insert(this);
                        sleep(Duration::from_micros(n as u64 % 100));
                        channel.send(n).expect("open");
                        assert_eq!(std::thread::current().id(), this);
                    });
                }
                (0..GOROUTINES).map(|_| channel.recv().expect("open")).sum::<usize>()
            });
            (sum, threads.into_inner().expect("not poisoned").len())
        })
        .expect("the run starts");
    assert_eq!(sum, GOROUTINES * (GOROUTINES - 1) / 2);
    assert!(threads > 2, "{threads} threads");
}
