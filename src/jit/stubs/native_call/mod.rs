//! What all stubs share that leave JIT code for a native function on the goroutine's stack.
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
//! the native frames. It does not restore the previous anchor: while JIT code runs nothing reads
//! it, and the next stub that leaves JIT code overwrites it. Frame class Standard: a panic of the
//! native function passes through.
//!
//! When the function has returned, the stub polls: the time slice may have ended in native code,
//! which is not interrupted.

pub(crate) mod x86_64;

use crate::abi::{Assignment, Convention, Gpr, Plan, PlanRequest, RegSet, Xmm};
use crate::jit::arena::{Arena, intern};
use crate::jit::error::JitError;
use crate::jit::stubs::pinned::goroutine_of;

/// Registers that a stub entered in System V may lose and that carry no argument of it.
const SYSTEM_V_SCRATCH: RegSet =
    RegSet::of_gprs(&[Gpr::R10, Gpr::R11]).union(RegSet::of_xmms(&[Xmm::XMM15]));

/// The same for ABIInternal. xmm15 is made zero again afterwards.
const GO_INTERNAL_SCRATCH: RegSet =
    RegSet::of_gprs(&[Gpr::R12, Gpr::R13]).union(RegSet::of_xmms(&[Xmm::XMM15]));

/// A call from JIT code of a convention to a native function.
pub(crate) struct NativeCall {
    pub(crate) convention: Convention,
    pub(crate) plan: Plan,
    /// Two registers that hold nothing when the stub is entered.
    pub(crate) free: [Gpr; 2],
}

/// Checks at the entry of a stub of a checked `Jit`.
#[derive(Clone, Copy)]
pub(crate) struct EntryChecks {
    /// Of the stub, for the message.
    pub(crate) name: &'static str,
    /// rsp is 16-aligned where the stub is called.
    pub(crate) stack: bool,
    /// This register holds the goroutine that runs.
    pub(crate) goroutine: Option<Gpr>,
}

impl NativeCall {
    /// What is checked when the stub is entered; `None`: nothing.
    pub(crate) fn checks(&self, arena: &Arena, name: &str) -> Option<EntryChecks> {
        arena.is_checked().then(|| EntryChecks {
            name: intern(name),
            stack: self.convention.spec().stack_align_bytes >= 16,
            goroutine: goroutine_of(self.convention),
        })
    }

    pub(crate) fn plan(
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
        Ok(Self { convention, plan, free })
    }
}
