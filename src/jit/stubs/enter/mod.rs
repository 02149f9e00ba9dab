//! Native code enters JIT code on a goroutine.
//!
//! ```text
//!     |  frame of native code     |      addresses grow upwards
//!     |  stack arguments          |  rbp+16
//!     |  return address           |  rbp+8
//!     |  rbp                      |  <- rbp
//!     |  rbx, r12, r13, r14, r15  |  rbp-8 .. rbp-40
//!     |  previous anchor: pc, fp  |  rbp-48, rbp-56
//!     |  address of the anchor    |  rbp-64
//!     |  (results pointer, pad)   |  rbp-72, rbp-80: packed entries only
//!     |  arguments of the target  |  <- rsp at the call, 16-aligned
//! ```
//!
//! The previous anchor is kept in the frame: a walk that reaches this frame continues there, and
//! the stub restores it when it returns. When a panic passes, the personality of the frame class
//! does that (`unwind/dwarf.rs`).

mod plan;
mod x86_64;

pub(crate) use plan::EntrySide;

use super::env::StubEnv;
use super::host::{require_amd64, require_target};
use super::shapes::Shapes;
use crate::abi::{Convention, Signature};
use crate::jit::arena::{Arena, STUB_BYTES, StubSpec};
use crate::jit::emit::x86_64::{check_processor, plan_bytes};
use crate::jit::error::JitError;
use crate::jit::frame::FrameClass;
use crate::jit::registry::{StubId, StubKind};
use plan::EnterPlan;

/// A stub that calls `target`, which is code of `convention`.
pub(crate) fn emit(
    arena: &'static Arena,
    env: &StubEnv,
    name: &str,
    side: EntrySide,
    convention: Convention,
    signature: &Signature,
    target: usize,
) -> Result<StubId, JitError> {
    require_amd64("entries to JIT code")?;
    require_target("enter", target)?;
    if !matches!(convention, Convention::SystemV | Convention::GoAbiInternal) {
        let rule = "JIT code is entered in SystemV or in GoAbiInternal";
        return Err(JitError::Signature { stub: "enter", rule });
    }
    static TYPED: Shapes<Convention, EnterPlan> = Shapes::new();
    static PACKED: Shapes<Convention, EnterPlan> = Shapes::new();
    let shapes = match side {
        EntrySide::Typed => &TYPED,
        EntrySide::Packed => &PACKED,
    };
    let (signature, enter) = shapes.get_or_plan(convention, signature, || {
        let enter = EnterPlan::new(side, convention, signature)?;
        check_processor(&enter.plan)?;
        Ok(enter)
    })?;
    let spec = StubSpec {
        name,
        kind: StubKind::Enter,
        class: FrameClass::Entry,
        signature: Some(signature),
        user_data: target as u64,
    };
    arena.emit(&spec, STUB_BYTES + plan_bytes(&enter.plan), |ops| {
        x86_64::emit(ops, arena.range(), env, &enter, target)
    })
}
