//! JIT code starts a goroutine: the arguments become a record of words, and a Rust function takes
//! the record. The frame is that of a goroutine function (`goroutine_fn.rs`).

use dynasmrt::dynasm;

use super::goroutine_fn::NativeCall;
use super::{Shapes, StubEnv};
use crate::abi::{Assignment, Convention, Gpr, Signature, Type};
use crate::jit::emit::x86_64::{Context, Emitter, plan_bytes};
use crate::jit::{Arena, FrameClass, JitError, STUB_BYTES, StubId, StubKind, StubSpec};

/// A stub that calls `target(context, record of arguments)`.
pub(crate) fn emit(
    arena: &'static Arena,
    env: &StubEnv,
    name: &str,
    convention: Convention,
    signature: &'static Signature,
    target: usize,
    context: u64,
) -> Result<StubId, JitError> {
    if !signature.results().is_empty() {
        let rule = "nobody receives the results of a goroutine that JIT code starts: the \
                    signature must have none";
        return Err(JitError::Signature { stub: "spawn", rule });
    }
    if !signature.params().iter().all(|ty| ty.is_word() || matches!(ty, Type::F32 | Type::F64)) {
        let rule = "a goroutine is started with integers, pointers and floats; pass a pointer to \
                    anything else";
        return Err(JitError::Signature { stub: "spawn", rule });
    }
    static SHAPES: Shapes<Convention, NativeCall> = Shapes::new();
    let bridge = SHAPES.get_or_plan(convention, signature, || {
        let entry = convention.assign(signature)?;
        NativeCall::plan(convention, &entry, &Assignment::packed(signature), None)
    })?;
    let spec = StubSpec {
        name,
        kind: StubKind::Spawn,
        class: FrameClass::Standard,
        signature: Some(signature),
        user_data: context,
    };
    arena.emit(&spec, STUB_BYTES + plan_bytes(&bridge.plan), |ops| {
        let mut e = Emitter::new(ops, arena.range());
        let prologue_bytes = bridge.open(&mut e, env);
        e.steps(&bridge.plan.args, &bridge.areas, Context::Value(0));
        // Every argument is in the record now, so rdi and rsi are free.
        e.constant(Gpr::RDI, context);
        dynasm!(e.ops; .arch x64; mov rsi, rsp);
        e.call(target);
        bridge.close(e, env);
        prologue_bytes
    })
}
