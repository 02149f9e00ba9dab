//! JIT code starts a goroutine: the stub moves the arguments into a packed buffer in its frame and
//! calls a Rust function with the address of that. The frame is that of a native call
//! (`native_call/mod.rs`).

mod x86_64;

use super::env::StubEnv;
use super::host::require_amd64;
use super::native_call::NativeCall;
use super::shapes::Shapes;
use crate::abi::{Assignment, Convention, Signature, Type};
use crate::jit::arena::{Arena, STUB_BYTES, StubSpec};
use crate::jit::emit::x86_64::{check_processor, plan_bytes};
use crate::jit::error::JitError;
use crate::jit::frame::FrameClass;
use crate::jit::registry::{StubId, StubKind};

/// A stub that calls `target(context, packed buffer of arguments)`.
pub(crate) fn emit(
    arena: &'static Arena,
    env: &StubEnv,
    name: &str,
    convention: Convention,
    signature: &Signature,
    target: usize,
    context: u64,
) -> Result<StubId, JitError> {
    require_amd64("stubs by which JIT code starts goroutines")?;
    if !signature.results().is_empty() {
        let rule = "the results of a goroutine that JIT code starts have no receiver: the \
                    signature must have none";
        return Err(JitError::Signature { stub: "spawn", rule });
    }
    if !signature.params().iter().all(|ty| ty.is_word() || matches!(ty, Type::F32 | Type::F64)) {
        let rule = "a goroutine is started with integers, pointers and floats; pass a pointer to \
                    anything else";
        return Err(JitError::Signature { stub: "spawn", rule });
    }
    static SHAPES: Shapes<Convention, NativeCall> = Shapes::new();
    let (signature, call) = SHAPES.get_or_plan(convention, signature, || {
        let entry = convention.assign(signature)?;
        let call = NativeCall::plan(convention, &entry, &Assignment::packed(signature), None)?;
        check_processor(&call.plan)?;
        Ok(call)
    })?;
    let spec = StubSpec {
        name,
        kind: StubKind::Spawn,
        class: FrameClass::Standard,
        signature: Some(signature),
        user_data: context,
    };
    let checks = call.checks(arena, name);
    arena.emit(&spec, STUB_BYTES + plan_bytes(&call.plan), |ops| {
        x86_64::emit(ops, arena.range(), env, &call, checks, target, context)
    })
}
