//! What would be saved of a goroutine that is interrupted at any instruction: nothing here yet.
//!
//! No preemption stub saves v0 to v31, FPCR, FPSR and the SVE state of this machine. So goroutines
//! are not preempted in JIT code: a goroutine yields where it parks, in `gosched` and in
//! `checkpoint`.

use crate::jit::stubs::preempt::SaveArea;
use crate::runtime::arch::vector_state::VectorState;

/// Whether goroutines can be preempted in JIT code, by polls or by a signal.
pub(crate) const PREEMPTS_JIT_CODE: bool = false;

/// How the state that `wanted` names is saved: there is no way.
pub(crate) fn save_area(_wanted: VectorState) -> Option<SaveArea> {
    None
}

/// What is saved here by default, in one sentence.
pub(crate) fn saved_state() -> String {
    "none: on AArch64 goroutines yield where they park, in gosched and in checkpoint only".into()
}
