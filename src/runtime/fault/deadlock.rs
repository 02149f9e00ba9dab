//! The report of a deadlock.
//!
//! It runs on the system stack of the last M that sleeps, outside of any signal handler, so it must
//! not park. The scheduler calls it through `Sched::on_deadlock`: that keeps tracebacks out of the
//! rooms below them.

use std::time::Duration;

use crate::runtime::walk::all_from;

/// Prints every goroutine, as Go does, and exits with status 2: all goroutines are parked, and
/// nothing can ready one.
///
/// No goroutine is waited for, since none runs.
#[cold]
pub(crate) fn report_deadlock() -> ! {
    eprintln!("footbridge: fatal: all goroutines are asleep - deadlock!\n");
    for traceback in all_from(None, Duration::ZERO) {
        eprintln!("{traceback}");
    }
    std::process::exit(2)
}
