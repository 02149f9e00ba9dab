//! Deschedules a goroutine at any instruction of JIT code, and resumes it there later, with all of
//! its machine state.
//!
//! Two stubs, alike but for the way in and out:
//!
//! * *async preempt*: a signal handler points the interrupted thread here. It leaves 128 bytes
//!   below the interrupted rsp alone (the red zone: System V psABI, section 3.2.2), writes the
//!   interrupted pc below them, and sets rsp to that word and rip to the stub.
//! * *poll*: code that finds at a poll that its time slice is over does the same by itself: it
//!   moves rsp below its red zone and calls the stub (`stubs/poll/`).
//!
//! ```text
//!     |  interrupted stack        |  <- S, the interrupted rsp       addresses grow upwards
//!     |  red zone, 128 bytes      |
//!     |  where to resume          |  S-136                           rbp+8
//!     |  rbp                      |  <- rbp
//!     |  rflags                   |  rbp-8
//!     |  rbx, r12 .. r15          |  rbp-16 .. rbp-48
//!     |  rax, rcx, rdx, rsi, rdi  |  rbp-56 .. rbp-88
//!     |  r8 .. r11                |  rbp-96 .. rbp-120
//!     |  previous anchor: pc, fp  |  rbp-128, rbp-136
//!     |  (alignment)              |
//!     |  XSAVE or FXSAVE area     |  <- rsp, 64-aligned
//! ```
//!
//! A poll may come where the stack is nearly used up. If there is no room for the frame and for the
//! target, the stub returns at once: the goroutine yields at a later poll.
//!
//! Everything is saved before anything is changed, flags included. Native code is entered in the
//! state that it expects: DF and AC clear, the x87 stack empty, MXCSR and x87 control word as the
//! thread had them when it became an M, which a thread-local word says. When the target returns the
//! thread may be another one: the stub reads thread-local words anew.
//!
//! The goroutine's anchor is this frame while the target runs. Before and afterwards it is the
//! previous one, which native code further out may rely on if it has called the interrupted code by
//! its bare address. The slots of the previous anchor are written before the anchor, whose fp is
//! the first word to change and the last one to change back: while the anchor's fp is the frame's
//! rbp, the slots hold the previous one, and otherwise the anchor itself is the previous one.
//!
//! The way back needs a register that holds nothing, and there is none. *poll* has a return
//! address, and leaves by `ret 128`. *async preempt* was never called, so that a `ret` would upset
//! the return predictor and break a shadow stack; it leaves by a jump through a thread-local word.
//! Nothing else on the thread uses that word in between: the stub is not preemptible.
//!
//! The stub belongs to frame class Root, since to the unwinder of panics nothing is above it: no
//! panic starts at an arbitrary instruction. The crate's own walks know it by its kind
//! (`unwind/rules.rs`).

mod x86_64;

use super::env::StubEnv;
use super::host::require_amd64;
use super::stack_check;
use crate::jit::arena::{Arena, STUB_BYTES, StubSpec};
use crate::jit::emit::x86_64::Ops;
use crate::jit::error::JitError;
use crate::jit::frame::{FrameClass, FrameReport};
use crate::jit::registry::StubKind;

pub(crate) use x86_64::{SaveArea, frame};

/// Addresses of the two stubs, and of the one that checks of the stack call.
#[derive(Clone, Copy)]
pub(crate) struct PreemptStubs {
    pub(crate) async_preempt: usize,
    pub(crate) poll: usize,
    pub(crate) stack_check: usize,
}

/// Rust functions that are called with the interrupted rsp, on the goroutine's stack. They do not
/// unwind, but for `overflowed`: see `stack_check/`.
#[derive(Clone, Copy)]
pub(crate) struct Targets {
    pub(crate) async_preempt: usize,
    pub(crate) poll: usize,
    pub(crate) overflowed: usize,
}

/// The name of the stub that polls call, as tracebacks know it.
pub(crate) const POLL: &str = "poll";

/// Emits all. Of a goroutine's stack at least `headroom_bytes` are left below the interrupted rsp
/// when a target is called, the frame of the stub included.
pub(crate) fn emit(
    arena: &'static Arena,
    env: &StubEnv,
    area: SaveArea,
    headroom_bytes: usize,
    targets: Targets,
) -> Result<PreemptStubs, JitError> {
    require_amd64("preemption stubs")?;
    let stub = |name, body: &dyn Fn(&mut Ops) -> FrameReport| {
        let spec = StubSpec {
            name,
            kind: StubKind::Preempt,
            class: FrameClass::Root,
            signature: None,
            user_data: 0,
        };
        arena.emit(&spec, STUB_BYTES, body).map(|id| id.start())
    };
    let memory = || arena.range();
    Ok(PreemptStubs {
        async_preempt: stub("async preempt", &|ops| {
            x86_64::async_preempt(ops, memory(), env, area, targets.async_preempt)
        })?,
        poll: stub(POLL, &|ops| {
            x86_64::poll(ops, memory(), env, area, headroom_bytes, targets.poll)
        })?,
        stack_check: stack_check::emit_stub(arena, env, headroom_bytes, targets.overflowed)?,
    })
}
