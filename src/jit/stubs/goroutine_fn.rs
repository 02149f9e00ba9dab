//! JIT code calls a Rust function on the same goroutine and the same stack.
//!
//! ```text
//!     |  frame of JIT code        |      addresses grow upwards
//!     |  stack arguments          |  rbp+16
//!     |  return address           |  rbp+8
//!     |  rbp of JIT code          |  <- rbp = anchor.fp
//!     |  (alignment)              |
//!     |  arguments of the target  |  <- rsp at the call, 16-aligned
//! ```
//!
//! Before the call the stub stores where it is in the goroutine's anchor, so that a walk can skip
//! the native frames. It does not put the anchor back: while JIT code runs nobody reads it, and the
//! next stub that leaves JIT code overwrites it. Frame class Standard: a panic of the Rust function
//! passes through.
//!
//! When the function has returned, the stub polls: the time slice may have ended in native code,
//! which is not interrupted.

use dynasmrt::{DynasmApi, dynasm};

use super::{ANCHOR_PC, Shapes, StubEnv, poll};
use crate::abi::{
    Assignment, Convention, Gpr, Pinned, Plan, PlanRequest, Reg, RegSet, Signature, Type, Xmm,
};
use crate::jit::emit::x86_64::{Areas, Base, Context, Emitter, check_processor, plan_bytes};
use crate::jit::{Arena, FrameClass, JitError, STUB_BYTES, StubId, StubKind, StubSpec};

/// Registers that a stub entered in System V may lose and that carry no argument of it.
const SYSTEM_V_SCRATCH: RegSet =
    RegSet::of_gprs(&[Gpr::R10, Gpr::R11]).union(RegSet::of_xmms(&[Xmm::XMM15]));

/// The same for ABIInternal. xmm15 is made zero again afterwards.
const GO_INTERNAL_SCRATCH: RegSet =
    RegSet::of_gprs(&[Gpr::R12, Gpr::R13]).union(RegSet::of_xmms(&[Xmm::XMM15]));

/// A stub that calls `target(arguments..., context)`.
pub(crate) fn emit(
    arena: &'static Arena,
    env: &StubEnv,
    name: &str,
    convention: Convention,
    signature: &'static Signature,
    target: usize,
    context: u64,
) -> Result<StubId, JitError> {
    static SHAPES: Shapes<Convention, NativeCall> = Shapes::new();
    let bridge = SHAPES.get_or_plan(convention, signature, || {
        let entry = convention.assign(signature)?;
        let callee = Convention::SystemV.assign(&signature.with_param(Type::Ptr))?;
        NativeCall::plan(convention, &entry, &callee, Some(signature.params().len()))
    })?;
    let spec = StubSpec {
        name,
        kind: StubKind::GoroutineFn,
        class: FrameClass::Standard,
        signature: Some(signature),
        user_data: context,
    };
    arena.emit(&spec, STUB_BYTES + plan_bytes(&bridge.plan), |ops| {
        let mut e = Emitter::new(ops, arena.range());
        let prologue_bytes = bridge.open(&mut e, env);
        e.steps(&bridge.plan.args, &bridge.areas, Context::Value(context));
        e.call(target);
        e.steps(&bridge.plan.results, &bridge.areas, Context::Value(context));
        bridge.close(e, env);
        prologue_bytes
    })
}

/// What all stubs share that leave JIT code for a native function on the goroutine's stack.
pub(super) struct NativeCall {
    convention: Convention,
    pub(super) plan: Plan,
    pub(super) areas: Areas,
    /// Two registers that hold nothing when the stub is entered.
    free: [Gpr; 2],
}

impl NativeCall {
    pub(super) fn plan(
        convention: Convention,
        entry: &Assignment,
        callee: &Assignment,
        bound_param: Option<usize>,
    ) -> Result<Self, JitError> {
        let (scratch, free): (RegSet, _) = match convention {
            Convention::GoAbiInternal => (GO_INTERNAL_SCRATCH, [Gpr::R12, Gpr::R13]),
            Convention::SystemV => (SYSTEM_V_SCRATCH, [Gpr::R10, Gpr::R11]),
            _ => {
                let rule = "JIT code calls native functions in SystemV or in GoAbiInternal";
                let stub = "goroutine function";
                return Err(JitError::Signature { stub, rule });
            }
        };
        let plan = Plan::new(&PlanRequest {
            entry,
            target: callee,
            bound_param,
            arg_scratch: scratch,
            result_scratch: scratch,
        })?;
        check_processor(&plan)?;
        let (caller, own) = (Base(Gpr::RBP, 16), Base(Gpr::RSP, 0));
        let areas = Areas {
            entry: caller,
            target: own,
            entry_result: caller,
            target_result: own,
            stage: Base(Gpr::RSP, plan.staging_off() as i32),
        };
        Ok(Self { convention, plan, areas, free })
    }

    /// Frame, anchor, outgoing area. Returns the length of the prologue.
    pub(super) fn open(&self, e: &mut Emitter<'_>, env: &StubEnv) -> usize {
        let [a, b] = self.free;
        let anchor = env.g_anchor_off;
        let prologue_bytes = e.prologue();
        // The goroutine is in its pinned register, or in thread-local storage.
        let pinned = pinned_to(self.convention, Pinned::Goroutine);
        let g = match pinned {
            Some(Reg::Gpr(g)) => g,
            _ => {
                dynasm!(e.ops; .arch x64; fs mov Rq(a), QWORD [env.tls_g_off]);
                e.require_goroutine(a);
                a
            }
        };
        dynasm!(e.ops
            ; .arch x64
            ; lea Rq(b), [rip]
            ; mov [Rq(g) + anchor], rbp
            ; mov [Rq(g) + anchor + ANCHOR_PC], Rq(b)
        );
        e.outgoing_area(&self.plan, self.convention.spec().stack_align_bytes);
        prologue_bytes
    }

    /// Pinned registers, return, and what is out of line.
    pub(super) fn close(&self, mut e: Emitter<'_>, env: &StubEnv) {
        // The goroutine's register is preserved by System V; the zero register is not.
        restore_zero(&mut e, self.convention);
        // Results are in their places; a poll changes none of them.
        let pending = poll::emit(e.ops, env, self.convention);
        e.epilogue();
        poll::emit_slow_path(e.ops, env, pending);
        e.no_goroutine(env.no_goroutine);
        e.finish();
    }
}

/// The register that the convention pins to something.
pub(super) fn pinned_to(convention: Convention, what: Pinned) -> Option<Reg> {
    let pinned = convention.spec().pinned.iter().find(|(_, value)| *value == what);
    pinned.map(|(register, _)| *register)
}

/// Makes the zero register zero, where the convention has one.
pub(super) fn restore_zero(e: &mut Emitter<'_>, convention: Convention) {
    if let Some(Reg::Xmm(zero)) = pinned_to(convention, Pinned::Zero) {
        dynasm!(e.ops; .arch x64; xorps Rx(zero), Rx(zero));
    }
}
