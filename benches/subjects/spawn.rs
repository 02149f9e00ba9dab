//! Starting goroutines and waiting for them, and what a parked one costs in memory.

use std::fmt;
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
        Subject::new("go and join, 1,000 at a time, 2 processors", |n| batches(2, n)).with_median(),
        Subject::new("go and join, one at a time", one_by_one).against(THREAD),
    ]
}

fn run<R>(processors: usize, f: impl FnOnce() -> R) -> R {
    let config = Config::new().processors(processors);
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

/// What so many parked goroutines take, all together.
#[derive(Clone, Copy)]
pub struct Parked {
    /// How many.
    pub count: u64,
    /// Bytes of memory that they added to the process.
    pub resident: u64,
    /// Bytes of page tables that they added, which `resident` does not count.
    pub tables: u64,
    /// Until all were started.
    pub started: Duration,
    /// Until all of them waited.
    pub parked: Duration,
}

impl Parked {
    /// No more bytes than this for each, page tables included.
    pub const AIM_BYTES: f64 = 5000.0;

    /// Bytes for each, page tables included.
    pub fn bytes_each(&self) -> f64 {
        self.each(self.resident + self.tables)
    }

    fn each(&self, bytes: u64) -> f64 {
        bytes as f64 / self.count as f64
    }

    /// Reads what such a process prints: bytes resident, bytes of page tables, nanoseconds until
    /// all were started, nanoseconds until all were parked.
    pub fn parse(count: u64, output: &std::process::Output) -> Result<Self, String> {
        let text = String::from_utf8_lossy(&output.stdout);
        let numbers: Option<Vec<u64>> = text.split_whitespace().map(|n| n.parse().ok()).collect();
        match numbers.as_deref() {
            Some(&[resident, tables, started, parked]) if output.status.success() => {
                let [started, parked] = [started, parked].map(Duration::from_nanos);
                Ok(Self { count, resident, tables, started, parked })
            }
            _ => {
                let stderr = String::from_utf8_lossy(&output.stderr);
                Err(format!("{count} parked goroutines: {}\n{text}{stderr}", output.status))
            }
        }
    }
}

impl fmt::Display for Parked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.bytes_each() <= Self::AIM_BYTES { "reached" } else { "MISSED" };
        let per_goroutine = |time: Duration| time.as_nanos() as f64 / self.count as f64;
        write!(
            f,
            "{:>9} parked: {:.0} B resident and {:.0} B of page tables, together {:.0} B each \
             (aim <= {:.0} B: {verdict}); all started in {:.3} s ({:.0} ns each), all parked after \
             {:.3} s ({:.0} ns each)",
            self.count,
            self.each(self.resident),
            self.each(self.tables),
            self.bytes_each(),
            Self::AIM_BYTES,
            self.started.as_secs_f64(),
            per_goroutine(self.started),
            self.parked.as_secs_f64(),
            per_goroutine(self.parked),
        )
    }
}

/// Starts a fresh process of this program that parks so many goroutines.
pub fn measure_parked(count: u64) -> Result<Parked, String> {
    let program = std::env::current_exe().expect("the path of this program");
    let child = std::process::Command::new(program).env(REQUEST, count.to_string()).output();
    Parked::parse(count, &child.expect("a process of the same program starts"))
}

/// Prints what so many parked goroutines take.
pub fn report_parked(count: u64) {
    match measure_parked(count) {
        Ok(parked) => println!("  {parked}"),
        Err(failure) => println!("  {failure}"),
    }
}

/// Parks so many goroutines in a channel's `recv`, wakes them all, and prints what it took to have
/// them, for [`Parked::parse`].
pub fn hold_parked(count: u64) {
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
            format!(
                "{} {} {} {}",
                after.resident - before.resident,
                after.tables - before.tables,
                started.as_nanos(),
                parked.as_nanos(),
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
