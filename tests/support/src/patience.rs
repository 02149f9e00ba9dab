//! Waits for what must happen, however slow the machine is.
//!
//! A test waits for a count or a state, and never counts what happens in a fixed time: on a machine
//! with a load of 12 a thread may not run for seconds. Each wait has a limit, after which the test
//! fails with what it has seen, instead of hanging. So a scope in a test has a guard
//! ([`AtEnd`](crate::runs::AtEnd)) that ends its goroutines when the test fails.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// How long a test waits for what takes milliseconds on an idle machine. Less than the limits of
/// child processes (`child`) and of nextest, so that the test reports what it has seen.
pub const LIMIT: Duration = Duration::from_secs(120);

/// A wait that has begun.
#[derive(Clone, Copy, Debug)]
pub struct Patience(Instant);

impl Patience {
    #[expect(clippy::new_without_default, reason = "the current time is no default")]
    pub fn new() -> Self {
        Self(Instant::now())
    }

    /// The time since the wait began.
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    /// Whether the wait has taken longer than a busy machine explains.
    pub fn is_over(&self) -> bool {
        self.0.elapsed() >= LIMIT
    }

    /// Panics with `seen()` if the wait has taken longer than a busy machine explains.
    #[track_caller]
    pub fn check<T: Debug>(&self, what: &str, seen: impl FnOnce() -> T) {
        assert!(!self.is_over(), "not in {LIMIT:?}: {what}; seen: {:?}", seen());
    }
}

/// Waits until `condition` holds, and calls `pause` in between. Panics with `seen()` if it takes
/// too long.
#[track_caller]
pub fn wait_by<T: Debug>(
    pause: impl Fn(),
    what: &str,
    seen: impl Fn() -> T,
    condition: impl Fn() -> bool,
) {
    let patience = Patience::new();
    while !condition() {
        patience.check(what, &seen);
        pause();
    }
}

/// Occupies this thread until `condition` holds: a goroutine that calls it does not yield.
#[track_caller]
pub fn spin_until(what: &str, condition: impl Fn() -> bool) {
    wait_by(std::hint::spin_loop, what, || (), condition);
}

/// Sleeps this thread, not only a goroutine, until `condition` holds.
#[track_caller]
pub fn block_until(what: &str, condition: impl Fn() -> bool) {
    wait_by(|| std::thread::sleep(Duration::from_millis(1)), what, || (), condition);
}
