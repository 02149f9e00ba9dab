//! Scheduling order: inherited time slices, timers of busy threads, many processors, and the
//! counters.

#![allow(unsafe_code, reason = "starts migratable goroutines")]

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use support::patience::{Patience, spin_until};
use support::runs::{AtEnd, occupy_until, wait_for};
use support::watchdog;

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

/// Two goroutines that wake each other share one time slice instead of starting a new one each
/// time. A third goroutine waits for the end of that slice, and not for the limit of 128 ticks.
#[test]
fn a_pair_that_wakes_each_other_shares_a_time_slice() {
    const TICK: Duration = Duration::from_millis(2);
    // On a busy machine sysmon runs late now and then.
    const TRIES: usize = 60;
    let gaps: Vec<u64> = run(1, || {
        let ticks = AtomicU64::new(0);
        let stop = AtomicBool::new(false);
        let (there, back) = (Chan::new(0), Chan::new(0));
        scope(|s| {
            let _stop = AtEnd(|| stop.store(true, Ordering::Relaxed));
            s.go(|| {
                while back.recv().is_ok() {
                    ticks.fetch_add(1, Ordering::Relaxed);
                    compute(TICK);
                    if there.send(()).is_err() {
                        break;
                    }
                }
            });
            s.go(|| {
                while !stop.load(Ordering::Relaxed) {
                    back.send(()).expect("open");
                    let _ = there.recv();
                    ticks.fetch_add(1, Ordering::Relaxed);
                    compute(TICK);
                }
                there.close();
                back.close();
            });
            wait_for("the pair runs", || ticks.load(Ordering::Relaxed) >= 4);
            let mut gaps = vec![];
            while gaps.len() < 6 || gaps.len() < TRIES && !gaps.iter().any(|gap| *gap < 40) {
                let before = ticks.load(Ordering::Relaxed);
                gosched();
                gaps.push(ticks.load(Ordering::Relaxed) - before);
            }
            gaps
        })
    });
    println!("ticks in between: {gaps:?}");
    assert!(gaps.iter().any(|gap| *gap < 40), "{gaps:?}");
    assert!(gaps.iter().all(|gap| *gap <= 129), "{gaps:?}");
}

/// Without sysmon time slices do not end; then the number of ticks is limited.
#[test]
fn the_ticks_of_a_pair_that_wakes_each_other_are_limited() {
    let config = Config::new().processors(1).time_slice(None);
    let gap = config.run(|| {
        let ticks = AtomicU64::new(0);
        let stop = AtomicBool::new(false);
        let channel = Chan::new(0);
        scope(|s| {
            let _stop = AtEnd(|| stop.store(true, Ordering::Relaxed));
            s.go(|| while channel.recv().is_ok() {});
            s.go(|| {
                while !stop.load(Ordering::Relaxed) {
                    channel.send(()).expect("open");
                    ticks.fetch_add(1, Ordering::Relaxed);
                }
                channel.close();
            });
            wait_for("the pair runs", || ticks.load(Ordering::Relaxed) > 0);
            let before = ticks.load(Ordering::Relaxed);
            gosched();
            ticks.load(Ordering::Relaxed) - before
        })
    });
    let gap = gap.expect("the run starts");
    assert!((10..1000).contains(&gap), "{gap}");
}

/// A busy thread checks its timers only now and then, unless sysmon has found one that is late.
#[test]
fn sleepers_do_not_wait_for_many_long_ticks() {
    const TICK: Duration = Duration::from_millis(4);
    const SLEEPS: u64 = 8;
    // One tick runs when the timer is due, sysmon checks once a time slice, and the two other
    // goroutines run first.
    const LIMIT: u64 = 8 * SLEEPS;
    let ticks_slept = || {
        run(1, || {
            let ticks = AtomicU64::new(0);
            let stop = AtomicBool::new(false);
            scope(|s| {
                let _stop = AtEnd(|| stop.store(true, Ordering::Relaxed));
                for _ in 0..2 {
                    s.go(|| {
                        while !stop.load(Ordering::Relaxed) {
                            ticks.fetch_add(1, Ordering::Relaxed);
                            compute(TICK);
                            gosched();
                        }
                    });
                }
                gosched();
                let before = ticks.load(Ordering::Relaxed);
                (0..SLEEPS).for_each(|_| sleep(Duration::from_millis(1)));
                ticks.load(Ordering::Relaxed) - before
            })
        })
    };
    // On a busy machine sysmon runs late now and then.
    let mut tries = vec![ticks_slept()];
    while tries.len() < 10 && *tries.last().expect("one") >= LIMIT {
        tries.push(ticks_slept());
    }
    println!("{tries:?} ticks in {SLEEPS} sleeps");
    assert!(*tries.last().expect("one") < LIMIT, "{tries:?}");
}

/// A migratable sleeper wakes although code that does not yield occupies the thread on which it
/// went to sleep.
#[test]
fn a_migratable_sleeper_is_woken_by_another_thread() {
    // A slow machine may need another try with a longer sleep.
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
            let _release = AtEnd(|| release.store(true, Ordering::Release));
            // Occupies the other thread until the sleeper sleeps on this one.
            s.go(|| {
                started.store(1, Ordering::Release);
                while !release.load(Ordering::Acquire) {
                    std::hint::spin_loop();
                }
            });
            occupy_until("the other one starts", || started.load(Ordering::Acquire) != 0);
            // SAFETY: over the sleep it keeps nothing that belongs to a thread.
            let sleeper = unsafe {
                Builder::new()
                    .go_migratable(move || {
                        sleep(time);
                        AWAKE.store(true, Ordering::Release);
                    })
                    .expect("memory")
            };
            // It sleeps on this thread, and the other thread has time to go idle before it is due.
            gosched();
            release.store(true, Ordering::Release);
            compute(Duration::from_millis(100));
            let was_asleep = !AWAKE.load(Ordering::Acquire);
            occupy_until("it wakes", || AWAKE.load(Ordering::Acquire));
            sleeper.join().expect("no panic");
            was_asleep
        })
    })
}

/// Another thread steals goroutines that become runnable while the goroutine that readied them, by
/// a channel, or the first of several sleepers that are due together, keeps running.
#[test]
fn migratable_goroutines_are_offered_to_an_idle_thread() {
    run(2, || {
        let done = std::sync::Arc::new(AtomicUsize::new(0));
        let sleepers: Vec<_> = (0..6)
            .map(|_| {
                let done = std::sync::Arc::clone(&done);
                // SAFETY: over the sleep it keeps nothing that belongs to a thread.
                unsafe {
                    Builder::new()
                        .go_migratable(move || {
                            sleep(Duration::from_millis(100));
                            // The first one waits until another one runs on another thread.
                            done.fetch_add(1, Ordering::Relaxed);
                            spin_until("one is stolen", || done.load(Ordering::Relaxed) >= 2);
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
                // SAFETY: over the receive it keeps nothing that belongs to a thread.
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
        // They park on either thread, and are readied on this one.
        wait_for("four wait", || goroutines().iter().filter(|g| is_waiting(g)).count() == 4);
        // Gives the other thread time to go idle.
        compute(Duration::from_millis(50));
        (0..4).for_each(|_| channel.send(()).expect("open"));
        // The one that was readied last is in this thread's run-next slot.
        occupy_until("three are stolen", || done.load(Ordering::Relaxed) >= 3);
        receivers.into_iter().for_each(|receiver| receiver.join().expect("no panic"));
    });
}

#[test]
fn stats_count_switches_timers_sleeps_and_steals() {
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
    // No time slice ends, and no timer is due before its goroutine has parked, however slow the
    // machine is: under an emulator 50 exchanges take several milliseconds.
    let endless = config(1).time_slice(None);
    let counted = endless.run(|| {
        let before = stats();
        let other = go(|| (0..100).for_each(|_| gosched()));
        (0..100).for_each(|_| gosched());
        other.join().expect("no panic");
        let ([switches, inherited, timers, sleeps], now) = since(before);
        // Its start, one for each yield, and the end of the join.
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
        (0..3).for_each(|_| sleep(Duration::from_millis(20)));
        let ([_, _, timers, sleeps], _) = since(before);
        assert_eq!(timers, 3);
        assert!(sleeps >= 3, "{sleeps}");
    });
    counted.expect("the run starts");
    run(2, || {
        let done = AtomicUsize::new(0);
        scope(|s| {
            let before = stats();
            for _ in 0..100 {
                s.go(|| done.fetch_add(1, Ordering::Relaxed));
            }
            // This thread does not yield to them.
            occupy_until("all are stolen", || done.load(Ordering::Relaxed) == 100);
            let stats = stats();
            // All of them, from whichever queue the other thread took them.
            assert!(stats.switches - before.switches >= 100, "{stats:?}");
            assert!((1..=100).contains(&stats.steals), "{stats:?}");
            assert!((stats.steals..=100).contains(&stats.stolen), "{stats:?}");
        });
    });
}

/// The end of a scope's body races with the end of its last goroutine on another thread.
#[test]
fn a_scope_ends_whether_its_body_or_a_goroutine_ends_last() {
    let _watch = watchdog::watch(Duration::from_secs(120));
    run(2, || {
        let end = Instant::now() + Duration::from_secs(1);
        let (mut scopes, mut sum, done) = (0u64, 0, AtomicU64::new(0));
        while Instant::now() < end || scopes <= 1000 {
            watchdog::beat();
            scopes += 1;
            scope(|s| {
                let done = &done;
                // One goroutine starts another one, and ends before it or after.
                s.go(move || {
                    s.go(|| done.fetch_add(1, Ordering::Relaxed));
                    done.fetch_add(1, Ordering::Relaxed);
                });
                // Sometimes long enough that the other thread has run both.
                (0..scopes % 256).for_each(|_| std::hint::spin_loop());
            });
            sum += 2;
            assert_eq!(done.load(Ordering::Relaxed), sum);
        }
        println!("{scopes} scopes, {:?}", stats());
    });
}

/// Far more processors than CPUs.
#[test]
fn the_maximum_number_of_processors_share_the_work() {
    const GOROUTINES: usize = 4000;
    let config = Config::new().processors(MAX_PROCESSORS);
    let patience = Patience::new();
    // On a machine with two cores a third thread may come too late for the work of one run.
    loop {
        let run = config.run(|| {
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
        });
        let (sum, threads) = run.expect("the run starts");
        assert_eq!(sum, GOROUTINES * (GOROUTINES - 1) / 2);
        if threads > 2 {
            break;
        }
        patience.check("a third thread works", || threads);
    }
}
