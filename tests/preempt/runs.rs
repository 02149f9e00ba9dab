//! The settings of preemption, sysmon, and the end of a run with endless loops.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use footbridge::runtime::{self, RunError, VectorState, go};
use support::child;
use support::patience::block_until;
use support::runs::occupy_until;

use super::{GO, Loop, SYSTEM_V, Waiter, config, run};

#[test]
fn a_run_ends_while_goroutines_loop_for_ever() {
    for kind in [Loop::Preemptible, Loop::Polls(SYSTEM_V), Loop::Polls(GO)] {
        let waiter: &'static Waiter = Box::leak(Box::new(Waiter::new(kind)));
        static NEVER: AtomicU32 = AtomicU32::new(0);
        // The time slice is longer than the test: the end of the run requests preemption itself.
        let config = config(3).time_slice(Duration::from_secs(3600));
        let handles = config.run(|| {
            static STARTED: AtomicU32 = AtomicU32::new(0);
            STARTED.store(0, Ordering::Relaxed);
            let body = || {
                STARTED.fetch_add(1, Ordering::Relaxed);
                waiter.wait(&NEVER)
            };
            let handles: Vec<_> = (0..2).map(|_| go(body)).collect();
            occupy_until("both loop", || STARTED.load(Ordering::Relaxed) == 2);
            handles
        });
        for handle in handles.expect("the run starts") {
            let error = handle.join().expect_err("it cannot have ended");
            assert!(error.is::<runtime::Abandoned>(), "{kind:?}");
        }
    }
}

/// The number of times that sysmon has gone to sleep. `None`: it has not set its name yet.
fn sleeps_of_sysmon() -> Option<u64> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("procfs");
    let mut sleeps = None;
    for task in tasks {
        let path = task.expect("a thread").path();
        let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
        if name.trim_end() == "footbridge-sysm" {
            let status = std::fs::read_to_string(path.join("status")).expect("it lives");
            let line = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"));
            assert_eq!(sleeps, None, "one sysmon for a run");
            sleeps = line.and_then(|n| n.trim().parse().ok());
        }
    }
    sleeps
}

fn sysmon_sleeps() -> u64 {
    sleeps_of_sysmon().expect("a run with preemption has a sysmon")
}

#[test]
fn an_idle_run_is_not_woken() {
    child::run("an_idle_run_is_not_woken", || {
        run(2, || {
            // A foreign thread counts while the only goroutine sleeps.
            let counter = std::thread::spawn(|| {
                // On a busy machine it takes a while until all threads sleep.
                block_until("sysmon starts", || sleeps_of_sysmon().is_some());
                block_until("200 ms without a sleep of sysmon", || {
                    let before = sysmon_sleeps();
                    std::thread::sleep(Duration::from_millis(200));
                    sysmon_sleeps() - before <= 1
                });
            });
            while !counter.is_finished() {
                runtime::sleep(Duration::from_secs(1));
            }
            counter.join().expect("no panic");
            let before = sysmon_sleeps();
            occupy_until("sysmon wakes up again and again", || sysmon_sleeps() - before > 50);
        });
    })
    .assert_success();
}

#[test]
fn invalid_settings_are_refused() {
    let requested = Duration::from_micros(19);
    let error = config(1).time_slice(requested).run(|| ()).expect_err("short");
    assert_eq!(error, RunError::TimeSlice { requested });
    assert_eq!(
        error.to_string(),
        "Config::time_slice is 19µs, and must be at least 20µs; None is no preemption"
    );
    let shortest = config(1).time_slice(Duration::from_micros(20));
    assert_eq!(shortest.run(|| 7), Ok(7));
    let error = RunError::VectorState { requested: VectorState::Avx512 };
    assert_eq!(
        error.to_string(),
        "Config::vector_state is Avx512, which this CPU or its operating system does not have; \
         VectorState::Auto is what it has"
    );
}
