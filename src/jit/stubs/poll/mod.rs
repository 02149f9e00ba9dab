//! A poll: one compare by which code finds out whether its time slice is over.
//!
//! ```text
//!         cmp rsp, [stack limit]
//!         jbe slow              not taken
//!     back:
//!         ...
//!     slow:                     out of line, after the code
//!         lea rsp, [rsp - 128]
//!         call fs:[poll stub]   saves and restores everything, and drops the 128 bytes
//!         jmp back
//! ```
//!
//! The word compared with is the limit of the goroutine's stack, or, when the goroutine is to
//! yield, larger than any address: the check of the stack and the poll are one, like `stackguard0`
//! in Go's prologues. In ABIInternal r14 is the goroutine, and the limit is a field of it. In the
//! other conventions no register is known, and the limit is a thread-local word that the scheduler
//! keeps equal to that field.
//!
//! A poll changes nothing but flags. The stub that it calls is in `preempt/`.

pub(crate) mod x86_64;

use super::env::StubEnv;
use super::pinned::StackLimit;
use crate::abi::Convention;
use crate::jit::emit::x86_64::Ops;
use crate::jit::error::JitError;

pub(crate) use x86_64::{Pending, emit_slow_path};

/// Refuses conventions whose code is none of x86-64.
pub(crate) fn check(convention: Convention) -> Result<(), JitError> {
    use Convention::{GoAbi0, GoAbiInternal, SystemV, Win64};
    match convention {
        SystemV | GoAbiInternal | GoAbi0 | Win64 => Ok(()),
        _ => {
            let rule = "polls are emitted into code of x86-64 conventions";
            Err(JitError::Signature { stub: "poll", rule })
        }
    }
}

/// The compare and the branch of a poll in code of the convention.
pub(crate) fn emit(ops: &mut Ops, env: &StubEnv, convention: Convention) -> Pending {
    x86_64::emit(ops, StackLimit::of(convention, env))
}
