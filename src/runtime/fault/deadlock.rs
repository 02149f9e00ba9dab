//! The report of a deadlock.

use std::time::Duration;

use crate::runtime::walk::all_from;

/// Every goroutine is parked and nothing can wake one: says so, like Go does, and exits.
#[cold]
pub(crate) fn report_deadlock() -> ! {
    eprintln!("footbridge: fatal: all goroutines are asleep - deadlock!\n");
    for traceback in all_from(None, Duration::ZERO) {
        eprintln!("{traceback}");
    }
    std::process::exit(2)
}
