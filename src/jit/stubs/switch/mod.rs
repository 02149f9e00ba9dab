//! The stubs that switch stacks: gogo, mcall, systemstack, goroutine entry.
//!
//! All but systemstack are *jumped to*, never called: a `call` that no `ret` answers would set the
//! return predictor off by one for the rest of the thread. The code that jumps says in a register
//! where it is to be resumed, and declares every register clobbered but those in the Gobuf. They
//! leave by an indirect jump, for the same reason. (The switch from one goroutine to the next does
//! the same without a stub, in the runtime.)
//!
//! A goroutine that starts is a Gobuf like any other, whose pc is the entry stub.
//!
//! In `gogo`, from its first instruction to its last, the stack pointer belongs to neither side as
//! a whole: a walk that finds a pc there stops. The architecture's file says in which registers the
//! stubs take their arguments.

mod aarch64;
mod x86_64;

use dynasmrt::VecAssembler;
use dynasmrt::relocations::Relocation;

use super::env::GobufLayout;
use crate::abi::Arch;
use crate::jit::arena::{Arena, STUB_BYTES, StubSpec};
use crate::jit::error::JitError;
use crate::jit::frame::{FrameClass, FrameReport, HOST};
use crate::jit::registry::StubKind;

/// Addresses of the stubs.
#[derive(Clone, Copy)]
pub(crate) struct SwitchStubs {
    pub(crate) gogo: usize,
    pub(crate) mcall: usize,
    pub(crate) systemstack: usize,
    pub(crate) goroutine_entry: usize,
}

/// Emits all of them. `goroutine_main` is the Rust function that a goroutine starts in; it gets
/// the address of the Gobuf and does not return.
pub(crate) fn emit(
    arena: &'static Arena,
    gobuf: GobufLayout,
    goroutine_main: usize,
) -> Result<SwitchStubs, JitError> {
    let memory = arena.range();
    match HOST {
        Arch::Amd64 => publish(
            arena,
            |ops| x86_64::gogo(ops, gobuf),
            |ops| x86_64::mcall(ops, gobuf),
            x86_64::systemstack,
            |ops| x86_64::goroutine_entry(ops, memory, goroutine_main),
        ),
        Arch::Aarch64 => publish(
            arena,
            |ops| aarch64::gogo(ops, gobuf),
            |ops| aarch64::mcall(ops, gobuf),
            aarch64::systemstack,
            |ops| aarch64::goroutine_entry(ops, goroutine_main),
        ),
    }
}

/// Publishes what an architecture's file emits.
fn publish<R: Relocation>(
    arena: &'static Arena,
    gogo: impl FnOnce(&mut VecAssembler<R>) -> FrameReport,
    mcall: impl FnOnce(&mut VecAssembler<R>) -> FrameReport,
    systemstack: impl FnOnce(&mut VecAssembler<R>) -> FrameReport,
    goroutine_entry: impl FnOnce(&mut VecAssembler<R>) -> FrameReport,
) -> Result<SwitchStubs, JitError> {
    use FrameClass::{Root, Standard};
    use StubKind::{GoroutineEntry, Switch, Systemstack};
    let spec = |name, kind, class| StubSpec { name, kind, class, signature: None, user_data: 0 };
    let gogo = arena.emit(&spec("gogo", Switch, Root), STUB_BYTES, gogo)?;
    let mcall = arena.emit(&spec("mcall", Switch, Root), STUB_BYTES, mcall)?;
    let systemstack =
        arena.emit(&spec("systemstack", Systemstack, Standard), STUB_BYTES, systemstack)?;
    let entry = spec("goroutine entry", GoroutineEntry, Root);
    let goroutine_entry = arena.emit(&entry, STUB_BYTES, goroutine_entry)?;
    Ok(SwitchStubs {
        gogo: gogo.start(),
        mcall: mcall.start(),
        systemstack: systemstack.start(),
        goroutine_entry: goroutine_entry.start(),
    })
}
