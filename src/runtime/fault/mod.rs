//! Faults: a goroutine that overflows its stack ends the process with a message.

mod deadlock;
mod overflow;
use crate::runtime::os::signals;
use crate::runtime::os::signals::Signal;
pub(crate) use deadlock::report_deadlock;
pub(crate) use overflow::{PANIC_STACK_BYTES, overflowed};

/// Installs the handlers of faults, once for the process.
pub(crate) fn install_handlers() {
    signals::install(&[(signals::SEGMENT, on_fault), (signals::BUS, on_fault)]);
}

fn on_fault(signal: &mut Signal) {
    // A signal that was sent is no fault, and has no address.
    if let Some(address) = signal.fault_address() {
        overflow::check(address, signal.registers());
    }
    signal.chain();
}
