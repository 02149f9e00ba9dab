//! What ends the process with a report: an overflow of a stack, and a deadlock.
//!
//! `on_fault` is the crate's handler of SIGSEGV and SIGBUS. A fault that is not an overflow is not
//! the crate's: the handler that was installed before runs, or the system's default. So this room
//! must never claim a fault that it cannot explain.
//!
//! | file | |
//! | --- | --- |
//! | `overflow.rs` | an access to the guard below a goroutine's stack; a check of the stack that fails |
//! | `undeliverable.rs` | no fault: a signal that the kernel could not deliver on a goroutine's stack |
//! | `deadlock.rs` | all goroutines are parked, and nothing can ready one |

mod deadlock;
mod overflow;
mod undeliverable;

use crate::runtime::os::signals;
use crate::runtime::os::signals::Signal;

pub(crate) use deadlock::report_deadlock;
pub(crate) use overflow::{PANIC_STACK_BYTES, overflowed};

/// Installs the handlers of faults, once for the process.
pub(crate) fn install_handlers() {
    signals::install(&[(signals::SEGMENT, on_fault), (signals::BUS, on_fault)]);
}

/// The handler of faults: see `os/linux/signals.rs` for what it may do.
fn on_fault(signal: &mut Signal) {
    if signal.is_failed_delivery() && undeliverable::report(signal.registers()) {
        return;
    }
    // A signal that was sent is no fault, and has no address.
    if let Some(address) = signal.fault_address() {
        overflow::check(address, signal.registers());
    }
    signal.chain();
}
