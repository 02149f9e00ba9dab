//! What stubs of the runtime need of the emitter: they are emitted at their final address, for this
//! processor. Adapters run at any address and need none of it.

use std::ops::Range;

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};

use super::{Emitter, Ops};
use crate::abi::{Plan, Step, Width, Xmm};
use crate::jit::error::JitError;

impl<'a> Emitter<'a> {
    /// An emitter of code that will be somewhere in `memory`.
    pub(crate) fn new(ops: &'a mut Ops, memory: Range<usize>) -> Self {
        Self { memory: Some(memory), ..Self::position_independent(ops) }
    }

    /// Reports that at the next instruction nothing of the stub is left on the stack.
    pub(crate) fn stack_is_left(&mut self) {
        self.report.left_at = self.ops.offset().0 as u32;
    }

    /// Makes a vector register zero.
    pub(crate) fn clear(&mut self, xmm: Xmm) {
        dynasm!(self.ops; .arch x64; xorps Rx(xmm), Rx(xmm));
    }

    /// Makes room for the areas of a plan, and aligns rsp to what they need if it may not be so:
    /// it is a multiple of `entry_align_bytes` before.
    pub(crate) fn outgoing_area(&mut self, plan: &Plan, entry_align_bytes: u32) {
        self.reserve(plan.frame_bytes(), plan.frame_align_bytes(), entry_align_bytes);
    }

    /// Jumps to a fixed address.
    pub(crate) fn jump(&mut self, target: usize) {
        match self.cell_for(target) {
            None => dynasm!(self.ops; .arch x64; jmp extern target),
            Some(cell) => dynasm!(self.ops; .arch x64; jmp QWORD [=>cell]),
        }
    }
}

/// The widest move of a plan.
fn widest(plan: &Plan) -> Option<Width> {
    let steps = plan.args.iter().chain(&plan.results);
    let widths = steps.filter_map(|step| match step {
        Step::Move { width, .. } => Some(*width),
        _ => None,
    });
    widths.max()
}

/// Refuses a plan that this processor cannot execute.
pub(crate) fn check_processor(plan: &Plan) -> Result<(), JitError> {
    let refuse = |rule| Err(JitError::Signature { stub: "x86-64", rule });
    let (has_avx, has_avx512) = vectors_of_processor();
    match widest(plan) {
        Some(Width::B64) if !has_avx512 => {
            refuse("it moves 512-bit vectors, and this processor has no AVX-512")
        }
        Some(Width::B32) if !has_avx => {
            refuse("it moves 256-bit vectors, and this processor has no AVX")
        }
        _ => Ok(()),
    }
}

/// Whether this processor has AVX, and AVX-512.
#[cfg(target_arch = "x86_64")]
fn vectors_of_processor() -> (bool, bool) {
    (std::arch::is_x86_feature_detected!("avx"), std::arch::is_x86_feature_detected!("avx512f"))
}

/// This processor executes no code of this file.
#[cfg(not(target_arch = "x86_64"))]
fn vectors_of_processor() -> (bool, bool) {
    (false, false)
}

/// Room that the moves of a plan take at most, in bytes: no instruction is longer than 15.
pub(crate) fn plan_bytes(plan: &Plan) -> usize {
    (plan.args.len() + plan.results.len() + 4) * 16
}
