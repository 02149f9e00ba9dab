//! Settings of tests in environment variables.

use std::time::Duration;

/// The number in the variable `name`, if it is set.
pub fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

pub fn number_or(name: &str, default: u64) -> u64 {
    number(name).unwrap_or(default)
}

/// The seed of random choices: `FOOTBRIDGE_SEED`.
pub fn seed_or(default: u64) -> u64 {
    number_or("FOOTBRIDGE_SEED", default)
}

/// The duration of a stress test: `FOOTBRIDGE_STRESS_SECONDS`, which may be a fraction.
pub fn stress_or(default_seconds: f64) -> Duration {
    let text = std::env::var("FOOTBRIDGE_STRESS_SECONDS").ok();
    let seconds = text.map(|text| text.parse().expect("a number of seconds"));
    Duration::from_secs_f64(seconds.unwrap_or(default_seconds))
}
