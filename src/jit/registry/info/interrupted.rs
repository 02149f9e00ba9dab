//! What the scheduler and the walks of the runtime ask about a program counter: whether a goroutine
//! may be interrupted there, and where it resumes. Callable in a signal handler.

use super::{StubInfo, lookup_as};
use crate::jit::registry::kind::HAS_UNSAFE_POINTS;
use crate::jit::safe_point::{SafePoint, UnsafePointRange};
use crate::jit::unwind::user_code;

impl StubInfo {
    /// Whether a goroutine may be interrupted at the pc that was looked up.
    #[inline]
    pub(crate) fn safe_point(&self) -> SafePoint {
        if !self.is_preemptible() {
            SafePoint::NotPreemptible
        } else if self.word & HAS_UNSAFE_POINTS == 0 {
            SafePoint::ResumeAt(self.offset_bytes())
        } else {
            SafePoint::find(self.unsafe_points(), self.offset_bytes())
        }
    }

    /// Where the code resumes, as bytes from its start, if the pc that was looked up is in the slow
    /// path of a poll: after the branch. `stubs_from_fs`: where the addresses of the poll stub and
    /// the stack check stub are.
    pub(crate) fn resumes_at(&self, stubs_from_fs: [i32; 2]) -> usize {
        if self.is_users() {
            user_code::resumes_at(self.code(), self.offset_bytes(), stubs_from_fs)
        } else {
            self.offset_bytes()
        }
    }

    /// Whether the code keeps rax where rsp points to at the pc that was looked up.
    pub(crate) fn is_rax_pushed(&self) -> bool {
        self.is_users() && user_code::is_rax_pushed(self.code(), self.offset_bytes())
    }

    /// Where a panic that passes a frame of the stub stops, if it does.
    pub(crate) fn landing(&self) -> Option<usize> {
        self.descriptor().report.landing().map(|offset_bytes| self.start + offset_bytes)
    }

    fn unsafe_points(&self) -> &'static [UnsafePointRange] {
        let annotations = self.descriptor().annotations;
        annotations.and_then(|said| said.preemptible.as_deref()).unwrap_or_default()
    }
}

/// What code a return address returns to: that of the call before it. A call may be the last
/// instruction of its code.
#[inline]
pub(crate) fn lookup_return(pc: usize) -> Option<StubInfo> {
    lookup_as(pc.wrapping_sub(1), pc)
}
