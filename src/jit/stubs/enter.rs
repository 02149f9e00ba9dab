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
//!     |  (results pointer, pad)   |  rbp-72, rbp-80: word entries only
//!     |  arguments of the target  |  <- rsp at the call, 16-aligned
//! ```
//!
//! The previous anchor is kept in the frame: a walk that reaches this frame continues there,
//! and the stub puts it back when it returns. When a panic passes, the personality of the frame
//! class does that (`eh_frame.rs`).

use dynasmrt::{DynasmApi, dynasm};

use super::goroutine_fn::{pinned_to, restore_zero};
use super::{ANCHOR_PC, Shapes, StubEnv};
use crate::abi::{
    Assignment, Convention, Gpr, Pinned, Plan, PlanRequest, Reg, RegSet, Signature, Xmm,
};
use crate::jit::emit::x86_64::{Areas, Base, Context, Emitter, check_processor, plan_bytes};
use crate::jit::{
    Arena, FrameClass, JitError, STUB_BYTES, StubId, StubKind, StubSpec, entry_frame,
};

/// How the stub itself is called.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntrySide {
    /// As a System V function of the signature.
    Typed,
    /// As `fn(arguments: *const u64, results: *mut u64)`, each value in a word of its own.
    Words,
}

const RESULTS_POINTER: i32 = -72;

/// A stub that calls `target`, which is code of `convention`.
pub(crate) fn emit(
    arena: &'static Arena,
    env: &StubEnv,
    name: &str,
    side: EntrySide,
    convention: Convention,
    signature: &'static Signature,
    target: usize,
) -> Result<StubId, JitError> {
    if !matches!(convention, Convention::SystemV | Convention::GoAbiInternal) {
        let rule = "JIT code is entered in SystemV or in GoAbiInternal";
        return Err(JitError::Signature { stub: "enter", rule });
    }
    static TYPED: Shapes<Convention, Plan> = Shapes::new();
    static WORDS: Shapes<Convention, Plan> = Shapes::new();
    let shapes = match side {
        EntrySide::Typed => &TYPED,
        EntrySide::Words => &WORDS,
    };
    let plan = shapes.get_or_plan(convention, signature, || plan(side, convention, signature))?;
    let own = Base(Gpr::RSP, 0);
    let stage = Base(Gpr::RSP, plan.staging_off() as i32);
    let areas = match side {
        EntrySide::Typed => {
            let caller = Base(Gpr::RBP, 16);
            Areas { entry: caller, target: own, entry_result: caller, target_result: own, stage }
        }
        EntrySide::Words => Areas {
            entry: Base(Gpr::R12, 0),
            target: own,
            entry_result: Base(Gpr::R13, 0),
            target_result: own,
            stage,
        },
    };
    let spec = StubSpec {
        name,
        kind: StubKind::Enter,
        class: FrameClass::Entry,
        signature: Some(signature),
        user_data: target as u64,
    };
    arena.emit(&spec, STUB_BYTES + plan_bytes(&plan), |ops| {
        let mut e = Emitter::new(ops, arena.range());
        let anchor = env.g_anchor_off;
        e.prologue();
        // r14 = the goroutine, which is also where ABIInternal wants it. rbx = its anchor.
        dynasm!(e.ops
            ; .arch x64
            ; push rbx
            ; push r12
            ; push r13
            ; push r14
            ; push r15
            ; fs mov r14, QWORD [env.tls_g_off]
        );
        e.require_goroutine(Gpr::R14);
        dynasm!(e.ops
            ; .arch x64
            ; lea rbx, [r14 + anchor]
            ; push QWORD [rbx + ANCHOR_PC]
            ; push QWORD [rbx]
            ; push rbx
        );
        // From here on a walk finds the previous anchor in the frame.
        let prologue_bytes = e.ops.offset().0;
        if side == EntrySide::Words {
            // The target may destroy every register: the results pointer is kept in the frame.
            dynasm!(e.ops; .arch x64; push rsi; push rsi; mov r12, rdi);
        }
        // rsp is 16-aligned: System V, and an even number of pushes.
        e.outgoing_area(&plan, 16);
        e.steps(&plan.args, &areas, Context::Value(0));
        restore_zero(&mut e, convention);
        debug_assert!(matches!(
            pinned_to(convention, Pinned::Goroutine),
            None | Some(Reg::Gpr(Gpr::R14))
        ));
        e.call(target);
        if side == EntrySide::Words {
            dynasm!(e.ops; .arch x64; mov r13, [rbp + RESULTS_POINTER]);
        }
        e.steps(&plan.results, &areas, Context::Value(0));
        // Results are where they belong, in rax, rdx, xmm0, xmm1 or memory.
        dynasm!(e.ops
            ; .arch x64
            ; mov rbx, [rbp + entry_frame::ANCHOR]
            ; mov r12, [rbp + entry_frame::PREVIOUS_FP]
            ; mov r13, [rbp + entry_frame::PREVIOUS_PC]
            ; mov [rbx], r12
            ; mov [rbx + ANCHOR_PC], r13
            ; mov rbx, [rbp - 8]
            ; mov r12, [rbp - 16]
            ; mov r13, [rbp - 24]
            ; mov r14, [rbp - 32]
            ; mov r15, [rbp - 40]
        );
        e.epilogue();
        e.no_goroutine(env.no_goroutine);
        e.finish();
        prologue_bytes
    })
}

fn plan(side: EntrySide, convention: Convention, signature: &Signature) -> Result<Plan, JitError> {
    let callee = convention.assign(signature)?;
    let entry = match side {
        EntrySide::Typed => Convention::SystemV.assign(signature)?,
        EntrySide::Words => Assignment::packed(signature),
    };
    // rbx and r13 (and r12, where it holds no record) are saved by the frame and hold nothing;
    // r14 is the goroutine. r12 and r13 are where the records are.
    let free = match side {
        EntrySide::Typed => RegSet::of_gprs(&[Gpr::RBX, Gpr::R12, Gpr::R13]),
        EntrySide::Words => RegSet::of_gprs(&[Gpr::R15]),
    };
    let scratch = free.union(RegSet::of_xmms(&[Xmm::XMM15]));
    let plan = Plan::new(&PlanRequest {
        entry: &entry,
        target: &callee,
        bound_param: None,
        arg_scratch: scratch,
        result_scratch: scratch,
    })?;
    check_processor(&plan)?;
    Ok(plan)
}
