//! Reports of what is wrong: overflows, other faults, deadlocks, and goroutines that keep their
//! thread.
//!
//! `on_fault` is the crate's handler of faults. It reports a fault of registered code, or of a
//! thread of a run, and then the handler that was installed before runs, or the system's default:
//! only an overflow is the crate's to end the process for. A fault elsewhere is passed on without a
//! word.
//!
//! | file | |
//! | --- | --- |
//! | `overflow.rs` | an access to the guard below a goroutine's stack; a check of the stack that fails |
//! | `crash.rs` | any other fault |
//! | `undeliverable.rs` | no fault: a signal that the kernel could not deliver on a goroutine's stack |
//! | `report_right.rs` | one report at a time |
//! | `deadlock.rs` | all goroutines are parked, and nothing can ready one |
//! | `stall.rs` | a goroutine keeps its thread while others wait for that |
//! | `running.rs` | the traceback of a goroutine that runs on another thread |

mod crash;
mod deadlock;
mod overflow;
mod report_right;
mod running;
mod stall;
mod undeliverable;

use crate::runtime::os::fault::has_default_action;
use crate::runtime::os::signals;
use crate::runtime::os::signals::Signal;
use crate::runtime::walk::prepare_signal_safe;

pub(crate) use deadlock::report_deadlock;
pub(crate) use overflow::{PANIC_STACK_BYTES, overflowed};
pub(crate) use stall::report_stalls;

/// Installs the handlers of faults, once for the process, and makes what reports need.
/// `fault_reports`: faults other than overflows are reported.
pub(crate) fn install_handlers(fault_reports: bool) {
    signals::install(&[(signals::SEGMENT, on_fault), (signals::BUS, on_fault)]);
    if fault_reports {
        signals::install(&[(signals::ILLEGAL, on_fault), (signals::ARITHMETIC, on_fault)]);
        // A program that handles SIGTRAP executes breakpoints on purpose, or single-steps itself.
        if has_default_action(signals::TRAP) {
            signals::install(&[(signals::TRAP, on_fault)]);
        }
    }
    prepare_signal_safe();
    crash::set_on(fault_reports);
}

/// The handler of faults: see `os/linux/signals.rs` for what it may do.
fn on_fault(signal: &mut Signal) {
    if signal.is_failed_delivery() && undeliverable::report(signal.registers()) {
        return;
    }
    // A signal that was sent is no fault, and has no address.
    if let Some(address) = signal.fault_address() {
        if report_right::is_held_here() {
            crash::abandon(signal);
            return;
        }
        if signal.is_access() {
            overflow::check(address, signal.registers());
        }
        crash::check(signal);
    }
    crash::end(signal);
}
