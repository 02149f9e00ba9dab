//! The `main` of every bench: runs criterion over the subjects of a group, then prints the table.

use std::time::Duration;

use criterion::Criterion;

use crate::meter::{Meter, Subject};

/// How this process was started.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Lists the benchmarks, or runs them under a profiler. Prints no table.
    Silent,
    /// Checks that everything runs: `cargo test --benches`, `cargo bench -- --test`.
    Smoke,
    /// `cargo bench -- --quick`.
    Quick,
    /// `cargo bench`.
    Full,
}

impl Mode {
    fn of_process() -> Self {
        let has = |flag: &str| std::env::args().any(|argument| argument == flag);
        if has("--list") || has("--profile-time") {
            Self::Silent
        } else if has("--test") || !has("--bench") {
            Self::Smoke
        } else if has("--quick") {
            Self::Quick
        } else {
            Self::Full
        }
    }
}

/// Runs a group, prints its table, and returns the mode.
pub fn drive(group: &str, mut subjects: Vec<Subject>) -> Mode {
    let mode = Mode::of_process();
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .configure_from_args();
    let mut benches = criterion.benchmark_group(group);
    for subject in &mut subjects {
        benches.bench_function(subject.name, |bencher| {
            bencher.iter_custom(|iterations| subject.time(iterations));
        });
    }
    benches.finish();
    criterion.final_summary();
    match mode {
        Mode::Silent => {}
        Mode::Smoke => Meter::SMOKE.print(group, &mut subjects),
        Mode::Quick | Mode::Full => Meter::FULL.print(group, &mut subjects),
    }
    mode
}
