//! Adapters on x86-64.
//!
//! Registers that this file writes besides those of the plan: rsp and rbp, what the target's
//! convention pins, the register of a bound closure, and what the frame saved.

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};

use super::code::AdapterCode;
use super::plan::{AdapterPlan, Binding};
use crate::abi::{Gpr, Pinned, Reg, Xmm};
use crate::jit::emit::x86_64::{Areas, Base, Context, Emitter, Finished, Ops};
use crate::jit::error::JitError;

const WORD_BYTES: u32 = 8;
const VECTOR_BYTES: u32 = 16;

/// Where a frame keeps its saved registers.
struct Slots {
    general: Vec<Gpr>,
    /// Each with its offset from rbp.
    vector: Vec<(Xmm, i32)>,
    /// From rbp down to the last of them.
    bytes: u32,
}

impl Slots {
    fn new(saved: &[Reg]) -> Slots {
        let mut general = Vec::new();
        let mut vectors = Vec::new();
        for register in saved {
            match *register {
                Reg::Gpr(gpr) => general.push(gpr),
                Reg::Xmm(xmm) => vectors.push(xmm),
                other => unreachable!("{other} is a register of another machine"),
            }
        }
        let mut bytes = general.len() as u32 * WORD_BYTES;
        if !vectors.is_empty() {
            bytes = bytes.next_multiple_of(VECTOR_BYTES);
        }
        let mut vector = Vec::new();
        for xmm in vectors {
            bytes += VECTOR_BYTES;
            vector.push((xmm, -(bytes as i32)));
        }
        Slots { general, vector, bytes }
    }
}

pub(super) fn emit(
    adapter: &AdapterPlan,
    g_tls_off: i32,
    no_goroutine: Option<usize>,
) -> Result<AdapterCode, JitError> {
    let mut ops = Ops::new_with_capacity(0, 256, 0, 0, 4, 0, 4);
    let mut e = Emitter::position_independent(&mut ops);
    let target = e.cell(0);
    let context = e.cell_if(adapter.binding != Binding::None);
    let bound = context.map_or(Context::Value(0), Context::Cell);
    let plan = &adapter.plan;

    if plan.in_place {
        // rsp points to the return address.
        let area = Base(Gpr::RSP, 8);
        let areas = Areas {
            entry: area,
            target: area,
            entry_result: area,
            target_result: area,
            stage: area,
        };
        e.steps(&plan.args, &areas, bound);
        set_before(&mut e, adapter, g_tls_off, no_goroutine, bound);
        dynasm!(e.ops; .arch x64; jmp QWORD [=>target]);
    } else {
        e.prologue();
        let slots = Slots::new(&adapter.saved);
        for &gpr in &slots.general {
            dynasm!(e.ops; .arch x64; push Rq(gpr));
        }
        // rbp is as aligned as the entry's convention keeps its stack: a return address and rbp
        // were pushed. What is below the pushes makes up for what they took.
        let entry_align = adapter.entry.spec().stack_align_bytes;
        let pushed = slots.general.len() as u32 * WORD_BYTES;
        let below = (slots.bytes + plan.frame_bytes()).next_multiple_of(16);
        let needs_align = plan.frame_align_bytes();
        e.reserve(below - pushed, needs_align, entry_align);
        for (xmm, off) in &slots.vector {
            dynasm!(e.ops; .arch x64; movups [rbp + *off], Rx(*xmm));
        }
        let caller = Base(Gpr::RBP, 16);
        let own = Base(Gpr::RSP, 0);
        let areas = Areas {
            entry: caller,
            target: own,
            entry_result: caller,
            target_result: own,
            stage: Base(Gpr::RSP, plan.staging_off() as i32),
        };
        e.steps(&plan.args, &areas, bound);
        set_before(&mut e, adapter, g_tls_off, no_goroutine, bound);
        dynasm!(e.ops; .arch x64; call QWORD [=>target]);
        e.steps(&plan.results, &areas, bound);
        // Results are in their registers, which are none of those that were saved.
        for (xmm, off) in &slots.vector {
            dynasm!(e.ops; .arch x64; movups Rx(*xmm), [rbp + *off]);
        }
        for (i, gpr) in slots.general.iter().enumerate() {
            let off = -((i as i32 + 1) * WORD_BYTES as i32);
            dynasm!(e.ops; .arch x64; mov Rq(*gpr), [rbp + off]);
        }
        if let Some(Reg::Xmm(zero)) = adapter.zero_after {
            dynasm!(e.ops; .arch x64; xorps Rx(zero), Rx(zero));
        }
        e.epilogue();
    }
    match no_goroutine {
        Some(no_goroutine) if plan.in_place => e.no_goroutine_unframed(no_goroutine),
        Some(no_goroutine) => e.no_goroutine(no_goroutine),
        None => {}
    }
    let Finished { cells, report } = e.finish();
    let bytes = ops.finalize().map_err(|error| JitError::assemble("adapter", error))?;
    Ok(AdapterCode {
        bytes,
        target_off: cells[0],
        context_off: context.map(|_| cells[1]),
        report,
        class: adapter.class,
        is_tail_jump: plan.in_place,
    })
}

/// What must hold when the target starts, apart from its arguments. The moves are done.
fn set_before(
    e: &mut Emitter<'_>,
    adapter: &AdapterPlan,
    g_tls_off: i32,
    no_goroutine: Option<usize>,
    bound: Context,
) {
    for (register, what) in &adapter.set_before {
        match (register, what) {
            (Reg::Gpr(g), Pinned::Goroutine) => {
                dynasm!(e.ops; .arch x64; fs mov Rq(*g), QWORD [g_tls_off]);
                if no_goroutine.is_some() {
                    e.require_goroutine(*g);
                }
            }
            (Reg::Xmm(zero), Pinned::Zero) => {
                dynasm!(e.ops; .arch x64; xorps Rx(*zero), Rx(*zero));
            }
            other => unreachable!("{other:?} is not pinned on this machine"),
        }
    }
    if let Some(Reg::Gpr(closure)) = adapter.closure {
        e.context(closure, bound);
    }
}
