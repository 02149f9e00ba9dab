//! The `main` of every bench: criterion over the subjects of a group, then the table of ratios.

use std::time::Duration;

use criterion::Criterion;

use crate::meter::{Meter, Subject};

/// How this process was started.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// To name the benchmarks only, or to run them under a profiler: no table.
    Silent,
    /// To see whether they run: `cargo test --benches`, `cargo bench -- --test`.
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

/// Runs a group and says in which mode that was, for what comes after the table.
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
