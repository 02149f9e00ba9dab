#![allow(unsafe_code, reason = "reads the running goroutine in a signal handler")]
//! The report of a goroutine that overflowed its stack.
//!
//! It is written on the alternate stack of the thread, in the handler of the fault, since the
//! goroutine has no stack left. What is done here: read the goroutine, the registry, the stack and
//! symbol tables, and write(2). No lock, no allocation, no unwinding; the process ends.
//!
//! JIT code that checks its stack (`Polls::check_stack`) does not come that far: it panics while there
//! is room for that, and the process goes on.
//!
//! Three kinds of code hit a guard, and are told apart by the pc: JIT code is in the registry, a
//! Rust function has a symbol that demangles, a C function has one that does not.

use std::fmt::{self, Write};
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use crate::jit::{lookup, lookup_return};
use crate::runtime::arch::Registers;
use crate::runtime::gmp::current::getg;
use crate::runtime::gmp::g::G;
use crate::runtime::gmp::name::Label;
use crate::runtime::os::stderr::RawStderr;
use crate::runtime::os::symbols::with_symbol;
use crate::runtime::sched::systemstack::systemstack;
use crate::runtime::walk::{Bounds, Start, WalkEnd, exact_walk};

/// What is left of a stack, at least, where a check of JIT code finds that it is used up. The panic
/// begins on the system stack; what it takes here is [`overflowed`] and the unwinder of the first
/// few frames, each of which leaves more room for the next: less than 3 KiB with libgcc. Frames of
/// code that need not check take some, too.
pub(crate) const PANIC_STACK_BYTES: usize = 6 << 10;

/// JIT frames that are shown; of the others the number is.
const SHOWN_FRAMES: usize = 16;

/// If the fault is in the guard of the goroutine that this thread runs: reports it, and aborts.
/// Called in the handler of a fault, with the faulting address and the registers.
pub(super) fn check(fault: usize, at: Registers) {
    // SAFETY: null, or an immortal structure: this thread runs it.
    let Some(g) = (unsafe { getg().as_ref() }) else {
        return;
    };
    let stack = g.stack.get();
    if (stack.guard()..stack.lo).contains(&fault) {
        // Nothing can be done about a standard error that is closed.
        let _ = report(g, fault, at);
        std::process::abort();
    }
}

fn report(g: &G, fault: usize, at: Registers) -> fmt::Result {
    let mut out = RawStderr;
    let (stack, label) = (g.stack.get(), label(g));
    let class = stack.class();
    let size = Size(class.bytes());
    write!(out, "footbridge: fatal: {label} overflowed its {size} stack in ")?;
    match lookup(at.pc) {
        Some(stub) => writeln!(out, "{stub}")?,
        None => with_symbol(at.pc, |name, module| write_native(at.pc, name, module))?,
    }
    let (Registers { pc, sp, .. }, lo, guard) = (at, stack.lo, stack.guard());
    writeln!(
        out,
        "pc {pc:#x}, rsp {sp:#x}, access to {fault:#x} in the guard {guard:#x}..{lo:#x}"
    )?;
    match class.next().map(|class| Size(class.bytes())) {
        Some(next) => writeln!(
            out,
            "the next class is {next}: runtime::Builder::stack_bytes for one goroutine, \
             Config::stack_bytes for all"
        )?,
        None => writeln!(
            out,
            "there is no larger class: recurse less, or run it in runtime::systemstack"
        )?,
    }
    writeln!(out, "JIT frames, innermost first:")?;
    let mut frames = 0;
    let start = Start::Registers { at, anchor: g.anchor.get() };
    let end = exact_walk(start, &Bounds::of(g), &mut |frame| {
        frames += 1;
        match frames > SHOWN_FRAMES || writeln!(RawStderr, "    {}", frame.stub).is_ok() {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    });
    match frames.checked_sub(SHOWN_FRAMES) {
        _ if frames == 0 => writeln!(out, "    (none)")?,
        Some(more @ 1..) if end == WalkEnd::Stopped => {
            writeln!(out, "    (and at least {more} more)")?;
        }
        Some(more @ 1..) => writeln!(out, "    (and {more} more)")?,
        _ => {}
    }
    if let WalkEnd::Broken { at } = end {
        writeln!(out, "    (the frame at {at:#x} is broken)")?;
    }
    Ok(())
}

/// Called by the stack check stub, with an address in the code that checked, and with the anchor
/// that the goroutine had before: native code that catches the panic may rely on it.
pub(crate) extern "C-unwind" fn overflowed(
    return_address: usize,
    previous_fp: usize,
    previous_pc: usize,
) -> ! {
    struct PutBack<'a>(&'a G, (usize, usize));
    impl Drop for PutBack<'_> {
        fn drop(&mut self) {
            self.0.anchor.set(self.1);
        }
    }
    // SAFETY: on a goroutine: the stub has looked at its stack.
    let g = unsafe { &*getg() };
    let _anchor = PutBack(g, (previous_fp, previous_pc));
    let label = label(g);
    let size = Size(g.stack.get().class().bytes());
    let name = lookup_return(return_address).map_or("?", |stub| stub.name());
    // What a panic prints takes more stack than there is here.
    systemstack(|| panic!("{label} overflowed its {size} stack in JIT code {name}"))
}

/// The goroutine that this thread runs, as it is printed.
fn label(g: &G) -> Label<'_> {
    // SAFETY: it runs here, so it has not ended.
    Label { id: g.id.load(Ordering::Relaxed), name: unsafe { g.name.get() } }
}

/// A function that the registry does not know, as the frames of tracebacks are written.
fn write_native(pc: usize, name: Option<&str>, module: Option<&str>) -> fmt::Result {
    let mut out = RawStderr;
    match name.map(|name| (name, rustc_demangle::try_demangle(name))) {
        Some((_, Ok(path))) => write!(out, "rust {path:#}")?,
        Some((name, Err(_))) => write!(out, "c {name}")?,
        None => write!(out, "native code at {pc:#x}")?,
    }
    match module {
        Some(module) => writeln!(out, " ({module})"),
        None => writeln!(out),
    }
}

/// A size of a stack.
struct Size(usize);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes < 1 << 20 => write!(f, "{} KiB", bytes >> 10),
            bytes => write!(f, "{} MiB", bytes >> 20),
        }
    }
}
