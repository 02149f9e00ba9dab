//! Numbers from the environment.

use std::time::Duration;

/// A number, if the variable is set.
pub fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

pub fn number_or(name: &str, default: u64) -> u64 {
    number(name).unwrap_or(default)
}

/// Where random choices begin.
pub fn seed_or(default: u64) -> u64 {
    number_or("FOOTBRIDGE_SEED", default)
}

/// How long a stress test takes: `FOOTBRIDGE_STRESS_SECONDS`, which may be a fraction.
pub fn stress_or(default_seconds: f64) -> Duration {
    let text = std::env::var("FOOTBRIDGE_STRESS_SECONDS").ok();
    let seconds = text.map(|text| text.parse().expect("a number of seconds"));
    Duration::from_secs_f64(seconds.unwrap_or(default_seconds))
}
