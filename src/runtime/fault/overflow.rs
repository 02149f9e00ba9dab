#![allow(unsafe_code, reason = "reads the running goroutine in a signal handler")]
//! What becomes of a goroutine that overflows its stack.
//!
//! **In native code, and in JIT code that does not check**, an access hits the guard below the
//! stack. The handler of the fault reports that and aborts:
//!
//! ```text
//! footbridge: fatal: goroutine 7 "pump" overflowed its 64 KiB stack in rust app::parse
//! pc 0x55d0c0012345, rsp 0x7f00..20, access to 0x7f00..f8 in the guard 0x7f00..00..0x7f01..00
//! the next class is 256 KiB: runtime::Builder::stack_bytes for one goroutine, ...
//! JIT frames, innermost first:
//!     jit pump+0x1c
//! ```
//!
//! The report is written on the thread's alternate stack, since the goroutine has no stack left. It
//! reads the goroutine, the registry, the stack and symbol tables, and calls write(2). It must not
//! lock, allocate or unwind. Three kinds of code hit a guard, and are told apart by the pc: JIT
//! code is in the registry, a Rust function has a symbol that demangles, a C function has one that
//! does not. Without the feature `traceback` native code is reported by its address.
//!
//! **JIT code that checks its stack** (`Polls::check_stack`) panics in [`overflowed`] while there
//! is room for that, and the process lives.

use std::fmt::{self, Write};
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use super::report_right;
use crate::jit::{lookup, lookup_return};
use crate::runtime::arch::Registers;
use crate::runtime::gmp::current::getg;
use crate::runtime::gmp::g::G;
use crate::runtime::gmp::name::Label;
use crate::runtime::os::stderr::RawStderr;
use crate::runtime::sched::systemstack::systemstack;
use crate::runtime::walk::{Bounds, Start, WalkEnd, exact_walk, write_native};

/// The least that is left of a stack where a check of JIT code finds that it is used up.
///
/// The panic begins on the system stack. On the goroutine's it needs [`overflowed`] and the
/// unwinder of the first few frames, each of which leaves more room for the next: less than 3 KiB
/// with libgcc. Frames of code that need not check take some of the rest.
pub(crate) const PANIC_STACK_BYTES: usize = 6 << 10;

/// How many JIT frames are shown. Of the others the number is.
const SHOWN_FRAMES: usize = 16;

/// Reports the overflow and aborts, if the fault is in the guard of the goroutine that this thread
/// runs. Called in the handler of a fault, with the faulting address and the registers.
pub(super) fn check(fault: usize, at: Registers) {
    // SAFETY: null, or a G, which is never freed. This thread runs it.
    let Some(g) = (unsafe { getg().as_ref() }) else {
        return;
    };
    let stack = g.stack.get();
    if (stack.guard()..stack.lo).contains(&fault) {
        if report_right::acquire() {
            // A closed standard error leaves nothing to do.
            let _ = report(g, fault, at);
        }
        report_right::finish();
        std::process::abort();
    }
}

fn report(g: &G, fault: usize, at: Registers) -> fmt::Result {
    let mut out = RawStderr::new();
    let (stack, label) = (g.stack.get(), label(g));
    let class = stack.class();
    let size = Size(class.bytes());
    write!(out, "footbridge: fatal: {label} overflowed its {size} stack in ")?;
    match lookup(at.pc) {
        Some(stub) => writeln!(out, "{stub}")?,
        None => write_native(&mut out, at.pc, false)?,
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
        match frames > SHOWN_FRAMES || writeln!(out, "    {}", frame.stub).is_ok() {
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

/// Panics for code that found its stack used up. Called by the stack check stub, with a return
/// address in that code, and with the anchor that the goroutine had before: it is put back on the
/// way out, since native code that catches the panic relies on it.
pub(crate) extern "C-unwind" fn overflowed(
    return_address: usize,
    previous_fp: usize,
    previous_pc: usize,
) -> ! {
    struct RestoreAnchor<'a>(&'a G, (usize, usize));
    impl Drop for RestoreAnchor<'_> {
        fn drop(&mut self) {
            self.0.anchor.set(self.1);
        }
    }
    // SAFETY: the stub compared the stack pointer with the goroutine's stack, so one runs here, and
    // a G is never freed.
    let g = unsafe { &*getg() };
    let _anchor = RestoreAnchor(g, (previous_fp, previous_pc));
    let label = label(g);
    let size = Size(g.stack.get().class().bytes());
    let name = lookup_return(return_address).map_or("?", |stub| stub.name());
    // What a panic prints takes more stack than there is here.
    systemstack(|| panic!("{label} overflowed its {size} stack in JIT code {name}"))
}

/// How a goroutine that this thread runs is printed.
pub(super) fn label(g: &G) -> Label<'_> {
    // SAFETY: the goroutine runs here, so it has not ended.
    Label { id: g.id.load(Ordering::Relaxed), name: unsafe { g.name.get() } }
}

/// The size of a stack, with its unit.
struct Size(usize);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes < 1 << 20 => write!(f, "{} KiB", bytes >> 10),
            bytes => write!(f, "{} MiB", bytes >> 20),
        }
    }
}
