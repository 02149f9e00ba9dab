//! AArch64, where code does not poll yet.

use crate::abi::Convention;
use crate::jit::emit::aarch64::Ops;
use crate::jit::error::JitError;
use crate::jit::stubs::env::StubEnv;
use crate::jit::stubs::host::unsupported;

/// There is none.
pub(crate) enum Poller {}

impl Poller {
    /// Refuses.
    pub(crate) fn new(_convention: Convention, _env: &'static StubEnv) -> Result<Self, JitError> {
        Err(unsupported("polls"))
    }

    pub(crate) fn convention(&self) -> Convention {
        match *self {}
    }

    pub(crate) fn poll(&mut self, _ops: &mut Ops) {
        match *self {}
    }

    pub(crate) fn check_stack(&mut self, _ops: &mut Ops, _frame_bytes: i32) {
        match *self {}
    }

    pub(crate) fn finish(&mut self, _ops: &mut Ops) {
        match *self {}
    }
}
