//! Starting goroutines and waiting for them, and what a parked one costs in memory.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use footbridge::runtime::{Chan, Config, go, gosched, scope};

use crate::meter::Subject;

const THREAD: &str = "thread::spawn and join, one at a time";
const BATCH: u64 = 1000;

/// The group.
pub fn subjects() -> Vec<Subject> {
    vec![
        Subject::new(THREAD, threads),
        Subject::new("go and join, 1,000 at a time", |n| batches(1, n))
            .faster_than_recorded("Go 1.27", 165.0, 3.0)
            .against(THREAD),
        Subject::new("go and join, 1,000 at a time, 2 processors", |n| batches(2, n)),
        Subject::new("go and join, one at a time", one_by_one).against(THREAD),
    ]
}

fn run<R>(processors: usize, f: impl FnOnce() -> R) -> R {
    let config = Config { processors, ..Config::default() };
    config.run(f).expect("the run starts")
}

fn threads(iterations: u64) -> Duration {
    let start = Instant::now();
    for n in 0..iterations {
        let thread = std::thread::spawn(move || black_box(n) + 1);
        assert_eq!(thread.join().expect("it does not panic"), n + 1);
    }
    start.elapsed()
}

/// Each goroutine takes a number and returns one.
fn batches(processors: usize, iterations: u64) -> Duration {
    let rounds = iterations.div_ceil(BATCH);
    let time = run(processors, || {
        let mut handles = Vec::with_capacity(BATCH as usize);
        let mut batch = || {
            for n in 0..BATCH {
                handles.push(go(move || black_box(n) + 1));
            }
            let sum: u64 = handles.drain(..).map(|h| h.join().expect("it does not panic")).sum();
            assert_eq!(sum, BATCH * (BATCH + 1) / 2);
        };
        // The stacks are made by the first one.
        batch();
        let start = Instant::now();
        for _ in 0..rounds {
            batch();
        }
        start.elapsed()
    });
    time.mul_f64(iterations as f64 / (rounds * BATCH) as f64)
}

fn one_by_one(iterations: u64) -> Duration {
    run(1, || {
        let start = Instant::now();
        for n in 0..iterations {
            let handle = go(move || black_box(n) + 1);
            assert_eq!(handle.join().expect("it does not panic"), n + 1);
        }
        start.elapsed()
    })
}

/// How many parked goroutines this process is to hold and report on, if it was started for that by
/// [`report_parked`].
pub fn parked_requested() -> Option<u64> {
    std::env::var(REQUEST).ok()?.parse().ok()
}

const REQUEST: &str = "FOOTBRIDGE_BENCH_PARKED";

/// Starts a fresh process of this program that parks so many goroutines, and prints its report.
pub fn report_parked(count: u64) {
    let program = std::env::current_exe().expect("the path of this program");
    let child = std::process::Command::new(program).env(REQUEST, count.to_string()).output();
    let output = child.expect("a process of the same program starts");
    print!("{}", String::from_utf8_lossy(&output.stdout));
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        println!("  {count} parked goroutines: {}\n{stderr}", output.status);
    }
}

/// Parks so many goroutines in a channel's `recv`, says what that took, and wakes them all.
pub fn hold_parked(count: u64) {
    const AIM_BYTES: f64 = 5000.0;
    let (waiting, sum) = (AtomicU64::new(0), AtomicU64::new(0));
    let line = run(1, || {
        let numbers = Chan::<u64>::new(0);
        scope(|s| {
            let before = Memory::of_process();
            let start = Instant::now();
            for _ in 0..count {
                s.go(|| {
                    waiting.fetch_add(1, Ordering::Relaxed);
                    let number = numbers.recv().expect("one for each");
                    sum.fetch_add(number, Ordering::Relaxed);
                });
            }
            let started = start.elapsed();
            // The one that counts itself last parks before this one goes on: one processor.
            while waiting.load(Ordering::Relaxed) < count {
                gosched();
            }
            let parked = start.elapsed();
            let after = Memory::of_process();
            for number in 1..=count {
                numbers.send(number).expect("nobody closes it");
            }
            let each = |bytes: u64| bytes as f64 / count as f64;
            let resident = each(after.resident - before.resident);
            let verdict = if resident <= AIM_BYTES { "reached" } else { "MISSED" };
            format!(
                "  {count:>9} parked: {resident:.0} B resident each (aim <= {AIM_BYTES:.0} B: \
                 {verdict}) and {:.0} B of page tables; go {:.0} ns, go until parked {:.0} ns",
                each(after.tables - before.tables),
                started.as_nanos() as f64 / count as f64,
                parked.as_nanos() as f64 / count as f64,
            )
        })
    });
    assert_eq!(sum.into_inner(), count * (count + 1) / 2, "every one got its number");
    println!("{line}");
}

/// Bytes that the kernel counts for this process.
struct Memory {
    resident: u64,
    tables: u64,
}

impl Memory {
    fn of_process() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").expect("procfs is mounted");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib =
                line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
            kib.unwrap_or_else(|| panic!("no {name} in /proc/self/status")) * 1024
        };
        Self { resident: field("VmRSS:"), tables: field("VmPTE:") }
    }
}
