//! Runs of a test: on how many processors, and with which time slice.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use footbridge::runtime::{Config, gosched, stats};

/// The default settings on this many processors.
pub fn config(processors: usize) -> Config {
    Config::new().processors(processors)
}

/// Runs `f` on the main goroutine of a run on this many processors.
pub fn on<R>(processors: usize, f: impl FnOnce() -> R) -> R {
    config(processors).run(f).expect("the run starts")
}

/// Runs `f` on the main goroutine of a run on this thread alone.
pub fn alone<R>(f: impl FnOnce() -> R) -> R {
    on(1, f)
}

/// Like [`alone`], with preemption set up, and a time slice that never ends: goroutines are preempted
/// where the test requests it. One such run at a time: their tests have statics in common.
pub fn alone_and_preemptible<R>(f: impl FnOnce() -> R) -> R {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _lock = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let config = config(1).time_slice(Duration::from_secs(3600));
    config.run(f).expect("the run starts")
}

/// Yields until the condition holds. Panics with the counters of the run after 20 seconds.
pub fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}: {:?}", stats());
        gosched();
    }
}
