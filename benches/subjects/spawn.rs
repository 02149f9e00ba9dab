//! Starting goroutines and joining them, and the memory of a parked one.

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
        assert_eq!(thread.join().expect("the goroutine does not panic"), n + 1);
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
            let sum: u64 =
                handles.drain(..).map(|h| h.join().expect("the goroutine does not panic")).sum();
            assert_eq!(sum, BATCH * (BATCH + 1) / 2);
        };
        // The first batch allocates the stacks.
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
            assert_eq!(handle.join().expect("the goroutine does not panic"), n + 1);
        }
        start.elapsed()
    })
}

/// The number of goroutines to park and report, if this process was started by [`report_parked`].
pub fn parked_requested() -> Option<u64> {
    std::env::var(REQUEST).ok()?.parse().ok()
}

const REQUEST: &str = "FOOTBRIDGE_BENCH_PARKED";

/// The cost of parked goroutines, in total.
#[derive(Clone, Copy)]
pub struct Parked {
    /// The number of goroutines.
    pub count: u64,
    /// Bytes of resident memory that they added to the process.
    pub resident: u64,
    /// Bytes of page tables that they added, which are not part of `resident`.
    pub tables: u64,
    /// The time until all had been started.
    pub started: Duration,
    /// The time until all were parked.
    pub parked: Duration,
}

impl Parked {
    /// The most bytes per goroutine that are aimed at, including page tables.
    pub const AIM_BYTES: f64 = 5000.0;

    /// Bytes per goroutine, including page tables.
    pub fn bytes_each(&self) -> f64 {
        self.each(self.resident + self.tables)
    }

    fn each(&self, bytes: u64) -> f64 {
        bytes as f64 / self.count as f64
    }

    /// Parses the output of such a process: resident bytes, bytes of page tables, nanoseconds until
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

/// Starts a new process of this program that parks `count` goroutines.
pub fn measure_parked(count: u64) -> Result<Parked, String> {
    let program = std::env::current_exe().expect("the path of this program");
    let child = std::process::Command::new(program).env(REQUEST, count.to_string()).output();
    Parked::parse(count, &child.expect("a process of the same program starts"))
}

/// Prints the cost of `count` parked goroutines.
pub fn report_parked(count: u64) {
    match measure_parked(count) {
        Ok(parked) => println!("  {parked}"),
        Err(failure) => println!("  {failure}"),
    }
}

/// Parks `count` goroutines in a channel's `recv`, resumes them all, and prints the cost for
/// [`Parked::parse`].
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
                    let number = numbers.recv().expect("one for each goroutine");
                    sum.fetch_add(number, Ordering::Relaxed);
                });
            }
            let started = start.elapsed();
            // There is one processor, so the last goroutine to count itself parks before this one
            // is resumed.
            while waiting.load(Ordering::Relaxed) < count {
                gosched();
            }
            let parked = start.elapsed();
            let after = Memory::of_process();
            for number in 1..=count {
                numbers.send(number).expect("it stays open");
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
    assert_eq!(sum.into_inner(), count * (count + 1) / 2, "each goroutine received its number");
    println!("{line}");
}

/// The memory of this process in bytes, as the kernel counts it.
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
