//! Runs for tests, by the number of processors and the time slice.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use footbridge::runtime::{Config, gosched, stats};

use crate::patience;

/// The default settings with `processors` processors.
pub fn config(processors: usize) -> Config {
    Config::new().processors(processors)
}

/// Runs `f` on the main goroutine of a run with `processors` processors.
pub fn on<R>(processors: usize, f: impl FnOnce() -> R) -> R {
    config(processors).run(f).expect("the run starts")
}

/// Runs `f` on the main goroutine of a run on this thread alone.
pub fn alone<R>(f: impl FnOnce() -> R) -> R {
    on(1, f)
}

/// Like [`alone`], with preemption enabled and a time slice longer than any test: goroutines are
/// preempted where the test requests it. Such runs exclude each other, since their tests share
/// statics.
pub fn alone_and_preemptible<R>(f: impl FnOnce() -> R) -> R {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _lock = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let config = config(1).time_slice(Duration::from_secs(3600));
    config.run(f).expect("the run starts")
}

/// The number of this thread. Never inlined, so that a migratable goroutine may call it before and
/// after a park.
#[inline(never)]
pub fn thread_number() -> i32 {
    // SAFETY: no arguments.
    unsafe { libc::gettid() }
}

/// Calls a function when dropped, also in a test that fails, whose scope would wait for ever.
pub struct AtEnd<F: Fn()>(pub F);

impl<F: Fn()> Drop for AtEnd<F> {
    fn drop(&mut self) {
        self.0();
    }
}

/// Yields until `condition` holds. Panics with the counters of the run if it takes too long.
#[track_caller]
pub fn wait_for(what: &str, condition: impl Fn() -> bool) {
    patience::wait_by(gosched, what, stats, condition);
}

/// Occupies this thread of a run until `condition` holds: this goroutine does not yield. Panics
/// with the counters of the run if it takes too long.
#[track_caller]
pub fn occupy_until(what: &str, condition: impl Fn() -> bool) {
    patience::wait_by(std::hint::spin_loop, what, stats, condition);
}
