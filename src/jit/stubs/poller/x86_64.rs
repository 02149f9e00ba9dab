//! Polls and checks of the stack in x86-64 code.

use crate::abi::Convention;
use crate::jit::emit::x86_64::Ops;
use crate::jit::error::JitError;
use crate::jit::stubs::env::StubEnv;
use crate::jit::stubs::{poll, stack_check};

/// Emits polls and checks into one piece of code of a convention.
pub(crate) struct Poller {
    env: &'static StubEnv,
    convention: Convention,
    pending: Vec<poll::Pending>,
    pending_checks: Vec<stack_check::Pending>,
}

impl Poller {
    /// Refuses conventions whose code cannot poll.
    pub(crate) fn new(convention: Convention, env: &'static StubEnv) -> Result<Self, JitError> {
        poll::check(convention)?;
        Ok(Self { env, convention, pending: Vec::new(), pending_checks: Vec::new() })
    }

    /// The convention of the code.
    pub(crate) fn convention(&self) -> Convention {
        self.convention
    }

    /// Emits a poll, but for its slow path.
    pub(crate) fn poll(&mut self, ops: &mut Ops) {
        self.pending.push(poll::emit(ops, self.env, self.convention));
    }

    /// Emits a check of the stack for a frame of `frame_bytes`, but for its slow path.
    pub(crate) fn check_stack(&mut self, ops: &mut Ops, frame_bytes: i32) {
        let check = stack_check::emit_check(ops, self.env, self.convention, frame_bytes);
        self.pending_checks.push(check);
    }

    /// Emits the slow paths that are still to come.
    pub(crate) fn finish(&mut self, ops: &mut Ops) {
        for pending in self.pending.drain(..) {
            poll::emit_slow_path(ops, self.env, pending);
        }
        for pending in self.pending_checks.drain(..) {
            stack_check::emit_slow_path(ops, self.env, pending);
        }
    }
}
