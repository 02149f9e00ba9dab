//! Adapters on x86-64.
//!
//! Registers that this file writes besides those of the plan: rsp and rbp, what the target's
//! convention pins, the register of a bound closure, and what the frame saved.

use std::mem::offset_of;

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};

use super::code::AdapterCode;
use super::plan::{AdapterPlan, Binding};
use crate::abi::{Gpr, Pinned, Reg, Xmm};
use crate::jit::emit::x86_64::{Areas, Base, Context, Emitter, Finished, Ops};
use crate::jit::error::JitError;
use crate::jit::frame::{FrameClass, Landing, win64_frame};

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

/// Functions of the process that the adapter runs in.
#[derive(Clone, Copy)]
pub(super) struct HostFunctions {
    /// Is called, and does not return, where `g` is null.
    pub(super) no_goroutine: usize,
    /// `arena/landing.rs`.
    pub(super) continue_panic: usize,
}

pub(super) fn emit(
    adapter: &AdapterPlan,
    g_tls_off: i32,
    host: Option<HostFunctions>,
) -> Result<AdapterCode, JitError> {
    let mut ops = Ops::new_with_capacity(0, 256, 0, 0, 4, 0, 4);
    let mut e = Emitter::position_independent(&mut ops);
    let target = e.cell(0);
    let context = e.cell_if(adapter.binding != Binding::None);
    let bound = context.map_or(Context::Value(0), Context::Cell);
    let plan = &adapter.plan;
    let no_goroutine = host.map(|host| host.no_goroutine);
    // What a panic is to find is of the process, too.
    let class = match (adapter.class, host) {
        (FrameClass::Win64, None) => FrameClass::Barrier,
        (class, _) => class,
    };

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
        if let (FrameClass::Win64, Some(host)) = (class, host) {
            land(&mut e, &slots, host.continue_panic);
        }
    }
    if let Some(no_goroutine) = no_goroutine {
        e.no_goroutine(no_goroutine);
    }
    let Finished { cells, report } = e.finish();
    let bytes = ops.finalize().map_err(|error| JitError::assemble("adapter", error))?;
    Ok(AdapterCode {
        bytes,
        target_off: cells[0],
        context_off: context.map(|_| cells[1]),
        report,
        class,
        is_tail_jump: plan.in_place,
    })
}

/// Where a panic stops that passes the frame: rax is the exception, and rbp the frame's. The
/// function that is called finds the landing pad in a caller, or resumes the panic itself.
fn land(e: &mut Emitter<'_>, slots: &Slots, continue_panic: usize) {
    debug_assert_eq!(slots.vector[0], (Xmm::XMM6, win64_frame::XMM6));
    let saved = |index: i32| offset_of!(Landing, saved) as i32 + 8 * index;
    let pc = offset_of!(Landing, pc) as i32;
    let end = offset_of!(Landing, sp) as i32;
    let [first, second] = [offset_of!(Landing, rax), offset_of!(Landing, rdx)].map(|o| o as i32);
    const { assert!(size_of::<Landing>().is_multiple_of(16)) };
    let landing_bytes = size_of::<Landing>() as i32;
    e.panics_land();
    dynasm!(e.ops
        ; .arch x64
        ; mov rdi, rax
        ; mov rsi, rbp
        ; and rsp, -16
        ; sub rsp, landing_bytes
        ; mov rdx, rsp
    );
    e.call(continue_panic);
    // The caller's frame ends at r10. Below are its return address and its rbp, by the frame
    // contract, whether this frame is next to it or another one of emitted code.
    dynasm!(e.ops; .arch x64; mov r11, rsp; mov r10, [r11 + end]);
    for (xmm, off) in &slots.vector {
        dynasm!(e.ops; .arch x64; movups Rx(*xmm), [rbp + *off]);
    }
    dynasm!(e.ops
        ; .arch x64
        ; mov rsi, [rbp + win64_frame::RSI]
        ; mov rdi, [rbp + win64_frame::RDI]
        ; mov rbx, [r11 + saved(0)]
        ; mov r12, [r11 + saved(1)]
        ; mov r13, [r11 + saved(2)]
        ; mov r14, [r11 + saved(3)]
        ; mov r15, [r11 + saved(4)]
        ; mov rax, [r11 + first]
        ; mov rdx, [r11 + second]
        ; mov rcx, [r11 + pc]
        ; lea rbp, [r10 - 16]
        // Last: unwinders take it for a return address, and look for the call before it.
        ; mov [rbp + 8], rcx
    );
    e.epilogue();
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
