//! How native code enters JIT code, without a word about instructions.

use crate::abi::{Assignment, Convention, Gpr, Plan, PlanRequest, RegSet, Signature, Xmm};
use crate::jit::error::JitError;

/// How the stub itself is called.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntrySide {
    /// As a System V function of the signature.
    Typed,
    /// As `fn(arguments: *const u64, results: *mut u64)`, each value in a word of its own.
    Words,
}

/// Moves from native code to JIT code and back.
pub(super) struct EnterPlan {
    pub(super) side: EntrySide,
    /// Of the JIT code.
    pub(super) convention: Convention,
    pub(super) plan: Plan,
}

impl EnterPlan {
    pub(super) fn new(
        side: EntrySide,
        convention: Convention,
        signature: &Signature,
    ) -> Result<Self, JitError> {
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
        Ok(Self { side, convention, plan })
    }
}
