//! How native code enters JIT code, without a word about instructions.

use crate::abi::{Assignment, Convention, Gpr, Plan, PlanRequest, RegSet, Signature, Xmm};
use crate::jit::error::JitError;

/// How the stub itself is called.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntrySide {
    /// As a System V function of the signature.
    Typed,
    /// As `fn(arguments: *const u64, results: *mut u64)`: two packed buffers, in which each value
    /// has a word of its own.
    Packed,
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
            EntrySide::Packed => Assignment::packed(signature),
        };
        // The frame saves rbx, r12, r13 and r15. r14 is the goroutine. With packed buffers rbx is
        // the address of the anchor, r12 that of the arguments and r13 that of the results.
        let free = match side {
            EntrySide::Typed => RegSet::of_gprs(&[Gpr::RBX, Gpr::R12, Gpr::R13]),
            EntrySide::Packed => RegSet::of_gprs(&[Gpr::R15]),
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
