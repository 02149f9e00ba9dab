#![allow(unsafe_code, reason = "reads the running goroutine in a signal handler")]
//! The report of a fault that is no overflow: in code that is registered, or on a thread of a run.
//!
//! ```text
//! footbridge: fault: SIGSEGV (SEGV_MAPERR), read of address 0x0, in jit load+0x7
//! pc 0x7f3a5c0012a7, bytes there: 48 8b 07 5d c3 cc cc cc cc cc cc cc cc cc cc cc
//!     rax 0x0000000000000000  rbx 0x00007f3a5c7fe6f0  rcx 0x0000000000000000
//!     ...
//! goroutine 7 "pump" [running]:
//!     jit load+0x7
//!     jit load+0x34 (enter)
//!     rust app::main::{{closure}}+0x5e
//!     jit goroutine entry+0x10 (goroutine entry)
//! ```
//!
//! Then what would have been done without the crate is done: the handler that was installed before
//! runs, or the process ends with the signal. So the exit status, a core dump and what a debugger
//! sees are the same with and without the report.
//!
//! It is written in the handler, on the thread's alternate stack: no lock, no allocation, no
//! panic. A fault of the report itself ([`abandon`]) ends the report with what there is, and the
//! thread resumes as if the first fault had just been reported.

use std::fmt::{self, Write};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use super::overflow::label;
use super::report_right;
use crate::jit::lookup;
use crate::runtime::arch::Registers;
use crate::runtime::gmp::current::{getg, getm, sched_of};
use crate::runtime::gmp::g::G;
use crate::runtime::os::fault::{alternate_stack_room, read_memory};
use crate::runtime::os::signals;
use crate::runtime::os::signals::Signal;
use crate::runtime::os::stderr::RawStderr;
use crate::runtime::walk::{Bounds, TraceStart, write_frames, write_native};

/// How many bytes of code are shown: no instruction of x86-64 is longer than 15.
const CODE_BYTES: usize = 16;

/// The stack that a whole report needs at most: debug builds need the most.
const FULL_REPORT_BYTES: usize = 32 << 10;

/// How many registers a line has.
const REGISTERS_PER_LINE: usize = 4;

/// Whether faults are reported on threads that are of no run: the setting of the last run that has
/// started.
static IS_ON: AtomicBool = AtomicBool::new(false);

/// The signal that is being reported, for a fault of the report itself. Null: an overflow is, or
/// nothing.
///
/// Invariant: the thread that has the report right alone reads and writes it.
static REPORTED: AtomicPtr<Signal> = AtomicPtr::new(ptr::null_mut());

/// Sets whether faults on threads that are of no run are reported.
pub(super) fn set_on(is_on: bool) {
    IS_ON.store(is_on, Ordering::Relaxed);
}

/// Whether a fault at this pc, on this thread, is reported.
fn is_reported(pc: usize) -> bool {
    // SAFETY: null, or this thread's M, which is never freed.
    match unsafe { getm().as_ref() } {
        // SAFETY: 1. this thread's M. 2. A thread is an M only while it is in its run.
        Some(m) => unsafe { sched_of(m).fault_reports },
        None => IS_ON.load(Ordering::Relaxed) && lookup(pc).is_some(),
    }
}

/// Reports the fault, if it is one of a run or of registered code. Called in its handler.
pub(super) fn check(signal: &mut Signal) {
    if !is_reported(signal.registers().pc) {
        return;
    }
    // A fault of the report itself must reach the handler.
    let faults = [signals::SEGMENT, signals::BUS];
    let before = faults.map(signals::unblock);
    if report_right::acquire() {
        REPORTED.store(signal, Ordering::Relaxed);
        // A closed standard error leaves nothing to do.
        let _ = report(signal);
        REPORTED.store(ptr::null_mut(), Ordering::Relaxed);
    }
    report_right::finish();
    for (fault, before) in faults.into_iter().zip(&before) {
        signals::block_as_before(fault, before);
    }
}

/// The report of this thread has faulted: ends it, and does what follows a report.
#[cold]
pub(super) fn abandon(signal: &mut Signal) {
    let _ = writeln!(
        RawStderr::new(),
        "    ({} at pc {:#x} in the report itself, which ends here)",
        signal.name(),
        signal.registers().pc
    );
    let outer = REPORTED.swap(ptr::null_mut(), Ordering::Relaxed);
    report_right::finish();
    // SAFETY: null, or stored by `check` of this thread, whose frame is further up on this stack
    // and does not return.
    let Some(outer) = (unsafe { outer.as_mut() }) else {
        std::process::abort(); // An overflow was being reported.
    };
    end(outer);
    // SAFETY: 1. and 2. as for the reference above.
    unsafe { signal.resume_like(outer) };
}

/// Does what would have been done without the crate's handler.
pub(super) fn end(signal: &mut Signal) {
    if signal.is_breakpoint() {
        signal.step_back();
    }
    signal.chain();
}

fn report(signal: &Signal) -> fmt::Result {
    let mut out = RawStderr::new();
    let at = signal.registers();
    write!(out, "footbridge: fault: {} ({})", signal.name(), signal.code_name())?;
    if let Some(address) = signal.access_address() {
        write!(out, ", {} of address {address:#x}", signal.access().unwrap_or("access"))?;
    }
    out.write_str(", in ")?;
    match lookup(at.pc) {
        Some(stub) => writeln!(out, "{stub}")?,
        None => write_native(&mut out, at.pc, true)?,
    }
    write_code(&mut out, at.pc)?;
    if room() < FULL_REPORT_BYTES {
        return out.write_str("there is too little stack here for registers and a traceback\n");
    }
    write_registers(&mut out, signal)?;
    // SAFETY: null, or this thread's G, which is never freed.
    match unsafe { getg().as_ref() } {
        Some(g) => write_goroutine(&mut out, signal, g),
        None => write_thread(&mut out, signal),
    }
}

/// How many bytes of stack are left. An M has an alternate stack with enough of them, unless there
/// was no memory for it. Other threads may have a few KiB.
#[inline(never)]
fn room() -> usize {
    let local = 0_u8;
    let here = (&raw const local).addr();
    let on_alternate_stack = alternate_stack_room();
    // SAFETY: null, or this thread's G, which is never freed.
    let stack = unsafe { getg().as_ref() }.map(|g| g.stack.get());
    let on_goroutine = stack.filter(|stack| (stack.lo..stack.hi).contains(&here));
    on_alternate_stack.or(on_goroutine.map(|stack| here - stack.lo)).unwrap_or(usize::MAX)
}

fn write_registers(out: &mut RawStderr, signal: &Signal) -> fmt::Result {
    for (i, (name, value)) in signal.all_registers().enumerate() {
        out.write_str(if i % REGISTERS_PER_LINE == 0 { "    " } else { "  " })?;
        write!(out, "{name:<3} {value:#018x}")?;
        if i % REGISTERS_PER_LINE == REGISTERS_PER_LINE - 1 {
            out.write_str("\n")?;
        }
    }
    out.write_str("\n")
}

/// The bytes at the pc, which may not be readable.
fn write_code(out: &mut RawStderr, pc: usize) -> fmt::Result {
    let mut code = [0; CODE_BYTES];
    let len = read_memory(pc, &mut code);
    write!(out, "pc {pc:#x}, ")?;
    if len == 0 {
        return out.write_str("whose bytes cannot be read\n");
    }
    out.write_str("bytes there:")?;
    code[..len].iter().try_for_each(|byte| write!(out, " {byte:02x}"))?;
    out.write_str("\n")
}

fn write_goroutine(out: &mut RawStderr, signal: &Signal, g: &G) -> fmt::Result {
    let bounds = Bounds::of(g);
    let stack = g.stack.get();
    write!(out, "{} [running", label(g))?;
    let sp = signal.registers().sp;
    if !(stack.lo..=stack.hi).contains(&sp) {
        let is_on_system_stack = bounds.holds(sp & !7);
        out.write_str(match is_on_system_stack {
            true => " on the system stack",
            // The handler of another signal, or a switch from another goroutine.
            false => " on another stack",
        })?;
    }
    out.write_str("]:\n")?;
    write_frames(out, start(signal, &bounds, g.anchor.get()), &bounds)
}

/// A thread that runs no goroutine.
fn write_thread(out: &mut RawStderr, signal: &Signal) -> fmt::Result {
    // SAFETY: null, or this thread's M, which is never freed.
    let Some(m) = (unsafe { getm().as_ref() }) else {
        return out.write_str("a thread of no run: its stack is not read\n");
    };
    writeln!(out, "thread {} of the run, between goroutines:", m.id.get())?;
    let bounds = Bounds::new(m.system_stack.get().range(), (0, 0));
    write_frames(out, start(signal, &bounds, (0, 0)), &bounds)
}

/// Where the traceback begins. A call to an address that cannot be executed is shown in its caller.
fn start(signal: &Signal, bounds: &Bounds, anchor: (usize, usize)) -> TraceStart {
    let at: Registers = signal.registers();
    if signal.access_address() == Some(at.pc)
        && let Some(caller) = signal.caller_at_entry(|word| bounds.read(word))
    {
        return TraceStart { at: caller, is_return_address: true, anchor };
    }
    TraceStart { at, is_return_address: false, anchor }
}
