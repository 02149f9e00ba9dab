#![allow(dead_code, reason = "each bench has a use for some kinds of comparison only")]
//! Measures times and prints tables of them. All numbers of the benches and of
//! `examples/overhead.rs` come from here.
//!
//! A time is the minimum over rounds. Each round runs every subject of a group once, so that other
//! load on the machine affects all of them, and the ratios within a group come from one run.
//!
//! A bad number is not a failure, because other processes share the machine: the table says
//! `MISSED`, and the run continues.

use std::fmt::Write;
use std::time::{Duration, Instant};

/// Runs `n` iterations, and returns how long they took.
type Run = Box<dyn FnMut(u64) -> Duration>;

/// A subject of a measurement.
pub struct Subject {
    /// Names one iteration.
    pub name: &'static str,
    run: Run,
    limit: u64,
    comparisons: Vec<Comparison>,
}

/// The reference of a comparison.
#[derive(Clone, Copy)]
enum Peer {
    /// Another subject of the group, by its name.
    Here(&'static str),
    /// A number of another run: its source, and nanoseconds.
    Recorded(&'static str, f64),
}

/// A line of the table, after the time of a subject.
enum Comparison {
    /// At most `aim` nanoseconds.
    Limit { aim: f64 },
    /// The ratio to the peer's time; `aim` is the least speedup, if any is aimed at.
    Ratio { peer: Peer, aim: Option<f64> },
    /// At most `aim` nanoseconds more than the peer.
    Above { peer: &'static str, aim: f64 },
    /// The median of all rounds.
    Median,
}

impl Subject {
    /// A subject that can run any number of iterations in a row.
    pub fn new(name: &'static str, run: impl FnMut(u64) -> Duration + 'static) -> Self {
        Self { name, run: Box::new(run), limit: u64::MAX, comparisons: Vec::new() }
    }

    /// Runs at most this many iterations in a row. The time of a longer request is extrapolated.
    pub fn limit(mut self, iterations: u64) -> Self {
        self.limit = iterations;
        self
    }

    /// Aims at `aim` nanoseconds or less.
    pub fn at_most(mut self, aim: f64) -> Self {
        self.comparisons.push(Comparison::Limit { aim });
        self
    }

    /// Shows the ratio to another subject of the group.
    pub fn against(self, peer: &'static str) -> Self {
        self.ratio(Peer::Here(peer), None)
    }

    /// Aims at a speedup of at least `aim` over another subject of the group.
    pub fn faster_than(self, peer: &'static str, aim: f64) -> Self {
        self.ratio(Peer::Here(peer), Some(aim))
    }

    /// Aims at a speedup of at least `aim` over a number that was measured elsewhere.
    pub fn faster_than_recorded(self, who: &'static str, ns: f64, aim: f64) -> Self {
        self.ratio(Peer::Recorded(who, ns), Some(aim))
    }

    /// Aims at `aim` nanoseconds or less above another subject of the group.
    pub fn above(mut self, peer: &'static str, aim: f64) -> Self {
        self.comparisons.push(Comparison::Above { peer, aim });
        self
    }

    /// Also shows the median. For subjects whose minimum is luck, because it depends on the thread
    /// that does the work.
    pub fn with_median(mut self) -> Self {
        self.comparisons.push(Comparison::Median);
        self
    }

    fn ratio(mut self, peer: Peer, aim: Option<f64>) -> Self {
        self.comparisons.push(Comparison::Ratio { peer, aim });
        self
    }

    /// The time of `iterations` iterations.
    pub fn time(&mut self, iterations: u64) -> Duration {
        let run = iterations.clamp(1, self.limit);
        let time = (self.run)(run);
        if run == iterations {
            return time;
        }
        time.mul_f64(iterations as f64 / run as f64)
    }
}

/// The effort that goes into a table.
#[derive(Clone, Copy)]
pub struct Meter {
    /// The number of runs of each subject.
    pub rounds: u32,
    /// The duration of one run.
    pub run: Duration,
}

impl Meter {
    /// For numbers that are quoted.
    pub const FULL: Self = Self { rounds: 30, run: Duration::from_millis(5) };

    /// Only checks that everything runs.
    pub const SMOKE: Self = Self { rounds: 2, run: Duration::from_micros(50) };

    /// Nanoseconds of one iteration of each subject, in each round.
    pub fn samples(self, subjects: &mut [Subject]) -> Vec<Vec<f64>> {
        let iterations: Vec<u64> = subjects.iter_mut().map(|s| self.calibrate(s)).collect();
        let mut samples = vec![Vec::new(); subjects.len()];
        for _ in 0..self.rounds {
            for ((subject, &n), samples) in subjects.iter_mut().zip(&iterations).zip(&mut samples) {
                samples.push(subject.time(n).as_nanos() as f64 / n as f64);
            }
        }
        samples
    }

    /// The number of iterations that take about as long as one run should.
    fn calibrate(self, subject: &mut Subject) -> u64 {
        let mut iterations = 1;
        while iterations < subject.limit {
            let time = subject.time(iterations);
            if time >= self.run {
                break;
            }
            iterations = (iterations * 2).min(subject.limit);
        }
        iterations
    }

    /// Measures a group and prints its table.
    pub fn print(self, group: &str, subjects: &mut [Subject]) {
        let start = Instant::now();
        let times: Vec<Times> = self.samples(subjects).into_iter().map(Times::of).collect();
        let mut table = format!("\n{group} (ns, minimum of {} rounds)\n", self.rounds);
        for (subject, own) in subjects.iter().zip(&times) {
            let of = |peer: &str| {
                let at = subjects.iter().position(|s| s.name == peer);
                times[at.unwrap_or_else(|| panic!("{peer:?} is not a subject of {group}"))].least
            };
            let mut columns = format!("  {:<46}{:>11}", subject.name, number(own.least));
            for comparison in &subject.comparisons {
                columns = format!("{columns:<59}  {}", comparison.line(own, of));
                writeln!(table, "{columns}").expect("a String takes everything");
                columns.clear();
            }
            if subject.comparisons.is_empty() {
                writeln!(table, "{columns}").expect("a String takes everything");
            }
        }
        print!("{table}");
        println!("  ({:.1} s)", start.elapsed().as_secs_f64());
    }
}

/// Nanoseconds of one iteration.
pub struct Times {
    /// The minimum of all rounds.
    pub least: f64,
    /// Their median.
    pub median: f64,
}

impl Times {
    /// The minimum and the median of the samples of a subject.
    pub fn of(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        Self { least: samples[0], median: samples[samples.len() / 2] }
    }
}

impl Comparison {
    fn line(&self, own: &Times, of: impl Fn(&str) -> f64) -> String {
        let ns = own.least;
        match *self {
            Self::Median => format!("median {}", number(own.median)),
            Self::Limit { aim } => {
                format!("aim <= {} ns: {}", number(aim), verdict(ns <= aim))
            }
            Self::Above { peer, aim } => {
                let above = ns - of(peer);
                format!("{above:+.2} ns to {peer}; aim <= {aim:+}: {}", verdict(above <= aim))
            }
            Self::Ratio { peer, aim } => {
                let (who, peer_ns) = match peer {
                    Peer::Here(name) => (name.to_string(), of(name)),
                    Peer::Recorded(who, ns) => (format!("{who}'s {ns} (recorded)"), ns),
                };
                let ratio = peer_ns / ns;
                let relation = if ratio >= 1.0 {
                    format!("{} times as fast as {who}", number(ratio))
                } else {
                    format!("{} times the time of {who}", number(1.0 / ratio))
                };
                match aim {
                    Some(aim) => format!("{relation}; aim >= {aim}: {}", verdict(ratio >= aim)),
                    None => relation,
                }
            }
        }
    }
}

/// The word of a table for whether an aim was reached.
pub fn verdict(reached: bool) -> &'static str {
    if reached { "reached" } else { "MISSED" }
}

/// A number with two decimals below 100, or with its thousands separated.
pub fn number(value: f64) -> String {
    if value < 100.0 {
        return format!("{value:.2}");
    }
    let digits = format!("{value:.0}");
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}
