//! Entries to JIT code on x86-64.

use std::ops::Range;

use dynasmrt::{DynasmApi, dynasm};

use super::plan::{EnterPlan, EntrySide};
use crate::abi::Gpr;
use crate::jit::emit::x86_64::{Areas, Base, Context, Emitter, Ops};
use crate::jit::frame::{FrameReport, entry_frame};
use crate::jit::stubs::env::{ANCHOR_PC, StubEnv};
use crate::jit::stubs::pinned::{goroutine_of, zero_of};

const RESULTS_POINTER: i32 = -72;

/// `memory`: where the code will be.
pub(super) fn emit(
    ops: &mut Ops,
    memory: Range<usize>,
    env: &StubEnv,
    enter: &EnterPlan,
    target: usize,
) -> FrameReport {
    let EnterPlan { side, convention, ref plan } = *enter;
    let own = Base(Gpr::RSP, 0);
    let stage = Base(Gpr::RSP, plan.staging_off() as i32);
    let areas = match side {
        EntrySide::Typed => {
            let caller = Base(Gpr::RBP, 16);
            Areas { entry: caller, target: own, entry_result: caller, target_result: own, stage }
        }
        EntrySide::Packed => Areas {
            entry: Base(Gpr::R12, 0),
            target: own,
            entry_result: Base(Gpr::R13, 0),
            target_result: own,
            stage,
        },
    };
    let mut e = Emitter::new(ops, memory);
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
    e.frame_is_complete();
    if side == EntrySide::Packed {
        // The target may destroy every register: the results pointer is kept in the frame.
        dynasm!(e.ops; .arch x64; push rsi; push rsi; mov r12, rdi);
    }
    // rsp is 16-aligned: System V, and an even number of pushes.
    e.outgoing_area(plan, 16);
    e.steps(&plan.args, &areas, Context::Value(0));
    if let Some(zero) = zero_of(convention) {
        e.clear(zero);
    }
    debug_assert!(matches!(goroutine_of(convention), None | Some(Gpr::R14)));
    e.call(target);
    if side == EntrySide::Packed {
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
    e.finish().report
}
