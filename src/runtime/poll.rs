//! Polls for those who emit code.

use super::bridge::stub_env;
use crate::abi::Convention;
use crate::jit::stubs::poll::{self, Pending};
use crate::jit::{Jit, JitError, Ops};

/// Emits polls: places at which code gives way to other goroutines if its time slice is over. Made
/// by [`Jit::polls`], for one piece of code.
///
/// A poll is one compare and a branch that is not taken. It changes flags and nothing else: no
/// register, not the red zone. Code that loops should poll at its back-edges, and code that
/// recurses behind its prologue, even if it is preemptible: a poll costs less than a signal.
///
/// ```
/// use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
/// use footbridge::abi::Convention;
/// use footbridge::jit::{FrameClass, Jit};
/// use footbridge::runtime;
///
/// let jit = Jit::new()?;
/// let mut polls = jit.polls(Convention::SystemV)?;
/// // SAFETY: a System V leaf that changes rax only, apart from polls.
/// let count = unsafe {
///     jit.install("count", FrameClass::Leaf, |ops| {
///         dynasm!(ops; .arch x64; xor eax, eax; again: ; inc rax);
///         polls.poll(ops);
///         dynasm!(ops; .arch x64; cmp rax, rdi; jb <again; ret);
///         polls.finish(ops);
///     })?
/// };
/// // SAFETY: that is its convention and type.
/// let count = unsafe { count.enter::<fn(u64) -> u64>(Convention::SystemV)? };
/// // SAFETY: on a goroutine.
/// assert_eq!(runtime::run(|| unsafe { count.call(1000) }), 1000);
/// # Ok::<(), footbridge::jit::JitError>(())
/// ```
#[must_use = "polls whose slow paths are not emitted do not assemble"]
pub struct Polls {
    convention: Convention,
    pending: Vec<Pending>,
}

impl Polls {
    /// Emits a poll. In code with a frame that is behind `mov rbp, rsp` and before the frame is
    /// dropped; in a leaf it may be anywhere.
    ///
    /// In `GoAbiInternal` r14 is the goroutine here, as everywhere.
    pub fn poll(&mut self, ops: &mut Ops) {
        self.pending.push(poll::emit(ops, stub_env(), self.convention));
    }

    /// Emits the slow paths of all polls so far. Execution must not come here by itself: behind the
    /// last `ret`, for example. Without this the code does not assemble.
    pub fn finish(&mut self, ops: &mut Ops) {
        for pending in self.pending.drain(..) {
            poll::emit_slow_path(ops, stub_env(), pending);
        }
    }
}

/// Where polls find their words, for those who do not emit with dynasm. Displacements in bytes.
///
/// ```text
///         cmp rsp, fs:[guard_from_fs]         or, where a register is the goroutine,
///         jbe slow                            cmp rsp, [g + guard_in_goroutine]
///     back:
///         ...
///     slow:
///         lea rsp, [rsp - 128]
///         call QWORD PTR fs:[stub_from_fs]    returns with rsp as it was before the lea
///         jmp back
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PollLayout {
    /// Of the guard, in the goroutine that r14 points to in `GoAbiInternal`.
    pub guard_in_goroutine: i32,
    /// Of the guard of the goroutine that runs, from the base of `fs`.
    pub guard_from_fs: i32,
    /// Of the address of the poll stub, from the base of `fs`.
    pub stub_from_fs: i32,
}

/// The layout in this process.
pub fn poll_layout() -> PollLayout {
    let env = stub_env();
    PollLayout {
        guard_in_goroutine: env.g_guard_off,
        guard_from_fs: env.tls_guard_off,
        stub_from_fs: env.tls_poll_off,
    }
}

impl Jit {
    /// What emits polls into code of this convention.
    ///
    /// # Errors
    /// The convention is one of another machine.
    pub fn polls(&self, convention: Convention) -> Result<Polls, JitError> {
        use Convention::{GoAbi0, GoAbiInternal, SystemV, Win64};
        match convention {
            SystemV | GoAbiInternal | GoAbi0 | Win64 => {
                Ok(Polls { convention, pending: Vec::new() })
            }
            _ => {
                let rule = "polls are emitted into code of x86-64 conventions";
                Err(JitError::Signature { stub: "poll", rule })
            }
        }
    }
}
