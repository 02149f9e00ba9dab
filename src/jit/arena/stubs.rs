//! Emission of the crate's own stubs, which belong to the runtime.

use std::ops::Range;

use dynasmrt::VecAssembler;
use dynasmrt::relocations::Relocation;

use super::{Arena, StubSpec};
use crate::jit::annotations::{Annotations, Checked};
use crate::jit::error::JitError;
use crate::jit::frame::FrameReport;
use crate::jit::mem;
use crate::jit::registry::StubId;

/// Room that every stub of the crate itself fits in, apart from its moves.
pub(crate) const STUB_BYTES: usize = 1024;

impl Arena {
    /// All of the memory.
    pub(crate) fn range(&self) -> Range<usize> {
        self.memory.base()..self.memory.base() + self.memory.size()
    }

    /// Whether contracts are checked that cost time to check.
    pub(crate) fn is_checked(&self) -> bool {
        self.checked
    }

    /// Emits at most `bound_bytes` of code of a stub of the crate, and publishes them.
    ///
    /// `body` emits, and reports its frame; it runs without any lock held, so it may emit other
    /// stubs.
    pub(crate) fn emit<R: Relocation>(
        &'static self,
        spec: &StubSpec<'_>,
        bound_bytes: usize,
        body: impl FnOnce(&mut VecAssembler<R>) -> FrameReport,
    ) -> Result<StubId, JitError> {
        self.emit_code(spec, bound_bytes, |ops| (body(ops), Annotations::default()))
    }

    /// Publishes code that runs at any address, under a name that lives as long.
    pub(crate) fn emit_ready(
        &'static self,
        spec: &StubSpec<'static>,
        code: &[u8],
        report: FrameReport,
    ) -> Result<StubId, JitError> {
        if mem::is_forked_child() {
            return Err(JitError::ForkedChild);
        }
        spec.class.check(spec.name, code)?;
        let mut lease = self.lease(spec.class, code.len())?;
        if code.len() > lease.window().room() {
            return Err(self.classes[spec.class as usize].full(spec.class, code.len()));
        }
        let nothing = Checked::default();
        self.publish(lease.window(), spec, code, report, spec.name, nothing)
    }
}
