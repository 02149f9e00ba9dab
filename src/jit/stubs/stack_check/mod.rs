//! A check of the stack: JIT code finds out at its entry whether there is enough stack for its
//! frame, with the compare of a poll.
//!
//! ```text
//!         push rbp
//!         mov rbp, rsp
//!         (callee-saved pushes of frame class Saved)
//!         cmp rsp, [stack limit]  or, where the frame is large, rsp less its size
//!         jbe slow              not taken
//!     back:
//!         sub rsp, frame
//!         ...
//!     slow:                     out of line, after the code
//!         lea rsp, [rsp - 128]  the red zone may be in use
//!         push frame
//!         call fs:[stack check stub]
//!         lea rsp, [rsp + 136]
//!         jmp back
//! ```
//!
//! The stack limit is what polls compare with (`stubs/poll/`), so that one branch serves both: the
//! stub finds out whether the stack is nearly used up or a yield is requested. In the second case
//! it polls, and returns. In the first it calls a Rust function that panics. It has a frame of
//! class Standard, and so has the code that calls it, so that the panic passes to the frame that
//! catches it.
//!
//! ```text
//!     |  frame of JIT code        |      addresses grow upwards
//!     |  red zone, 128 bytes      |  rbp+24
//!     |  bytes of the new frame   |  rbp+16
//!     |  return address           |  rbp+8
//!     |  rbp of JIT code          |  <- rbp = anchor.fp
//!     |  rax, rcx                 |  rbp-8, rbp-16
//! ```
//!
//! The stub is entered above the limit, less what code takes that does not check: what the panic
//! needs is below. Nothing but flags is changed for code that resumes.

pub(crate) mod x86_64;

use super::env::StubEnv;
use super::pinned::StackLimit;
use crate::abi::Convention;
use crate::jit::arena::{Arena, STUB_BYTES, StubSpec};
use crate::jit::emit::x86_64::Ops;
use crate::jit::error::JitError;
use crate::jit::frame::FrameClass;
use crate::jit::registry::StubKind;

pub(crate) use x86_64::{Pending, emit_slow_path};

/// Frames of up to this size are not counted: the room for a panic has them to spare.
pub(crate) const SMALL_FRAME_BYTES: i32 = 256;

/// The compare and the branch, before a frame of `frame_bytes` is made.
pub(crate) fn emit_check(
    ops: &mut Ops,
    env: &StubEnv,
    convention: Convention,
    frame_bytes: i32,
) -> Pending {
    // What the compare does not count the stub does not count either.
    let counted_bytes = if frame_bytes > SMALL_FRAME_BYTES { frame_bytes } else { 0 };
    x86_64::emit_check(ops, StackLimit::of(convention, env), counted_bytes)
}

/// Emits the stub. `overflowed` is a Rust function that gets the return address into the code that
/// checks, and fp and pc of the previous anchor, and panics. `headroom_bytes` are between the
/// lowest address of a stack and its limit.
pub(super) fn emit_stub(
    arena: &'static Arena,
    env: &StubEnv,
    headroom_bytes: usize,
    overflowed: usize,
) -> Result<usize, JitError> {
    let spec = StubSpec {
        name: "stack check",
        kind: StubKind::StackCheck,
        class: FrameClass::Standard,
        signature: None,
        user_data: 0,
    };
    let emitted = arena.emit(&spec, STUB_BYTES, |ops| {
        x86_64::emit_stub(ops, arena.range(), env, headroom_bytes as i32, overflowed)
    });
    emitted.map(|id| id.start())
}
