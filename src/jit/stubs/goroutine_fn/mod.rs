//! JIT code calls a Rust function on the same goroutine and the same stack. The frame is that of a
//! native call (`native_call/mod.rs`).

mod x86_64;

use super::env::StubEnv;
use super::host::require_amd64;
use super::native_call::NativeCall;
use super::shapes::Shapes;
use crate::abi::{Convention, Signature, Type};
use crate::jit::arena::{Arena, STUB_BYTES, StubSpec};
use crate::jit::emit::x86_64::{check_processor, plan_bytes};
use crate::jit::error::JitError;
use crate::jit::frame::FrameClass;
use crate::jit::registry::{StubId, StubKind};

/// A stub that calls `target(arguments..., context)`.
pub(crate) fn emit(
    arena: &'static Arena,
    env: &StubEnv,
    name: &str,
    convention: Convention,
    signature: &Signature,
    target: usize,
    context: u64,
) -> Result<StubId, JitError> {
    require_amd64("goroutine functions")?;
    static SHAPES: Shapes<Convention, NativeCall> = Shapes::new();
    let (signature, call) = SHAPES.get_or_plan(convention, signature, || {
        let entry = convention.assign(signature)?;
        let callee = Convention::SystemV.assign(&signature.with_param(Type::Ptr))?;
        let bound_param = Some(signature.params().len());
        let call = NativeCall::plan(convention, &entry, &callee, bound_param)?;
        check_processor(&call.plan)?;
        Ok(call)
    })?;
    let spec = StubSpec {
        name,
        kind: StubKind::GoroutineFn,
        class: FrameClass::Standard,
        signature: Some(signature),
        user_data: context,
    };
    let checks = call.checks(arena, name);
    arena.emit(&spec, STUB_BYTES + plan_bytes(&call.plan), |ops| {
        x86_64::emit(ops, arena.range(), env, &call, checks, target, context)
    })
}
