//! How far a frame is made at an instruction. With a return address the answer is always the same,
//! since the contract holds whenever code calls. At the pc of an interruption it depends.
//!
//! For the crate's own stubs the emitter has reported it. For the code of users see `user_code/`.

use crate::jit::frame::FrameReport;

/// How far the frame of some code is made, and with that where its caller is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FrameState {
    /// There is no frame, or not yet, or no longer: rsp leads to the return address, and rbp is the
    /// caller's. (On AArch64 the return address is in x30.)
    Bare,
    /// `push rbp` is done and `mov rbp, rsp` is not: rsp leads to the caller's rbp.
    Pushed,
    /// rbp is the frame's own. What the class keeps below it is not in its place yet.
    Linked,
    /// The frame is as its class demands.
    Complete,
    /// A leaf in the slow path of a poll, at the call: as `Bare`, but rsp is below the red zone.
    Lowered,
    /// The last instruction of the stub that preempts: rsp is the interrupted code's own.
    Left,
}

impl FrameState {
    /// Whether rbp is the frame's own.
    pub(crate) fn has_frame(self) -> bool {
        matches!(self, Self::Linked | Self::Complete)
    }
}

/// Bytes of `push rbp`, and of that and `mov rbp, rsp`.
const PUSH_BYTES: usize = 1;
pub(super) const PROLOGUE_BYTES: usize = 4;

/// The state in a prologue; `None` after it.
pub(super) fn in_prologue(offset_bytes: usize) -> Option<FrameState> {
    match offset_bytes {
        0..PUSH_BYTES => Some(FrameState::Bare),
        PUSH_BYTES..PROLOGUE_BYTES => Some(FrameState::Pushed),
        _ => None,
    }
}

/// The state at an instruction of one of the crate's own stubs.
pub(crate) fn stub_state(report: &FrameReport, offset_bytes: usize) -> FrameState {
    let complete_at = report.complete_at as usize;
    if complete_at == 0 || report.is_dropped_at(offset_bytes) {
        return FrameState::Bare;
    }
    if report.is_left_at(offset_bytes) {
        return FrameState::Left;
    }
    let linked = if offset_bytes < complete_at { FrameState::Linked } else { FrameState::Complete };
    in_prologue(offset_bytes).unwrap_or(linked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_follows_the_report() {
        let mut report = FrameReport::NONE;
        report.complete_at(20);
        report.dropped_at(50);
        report.dropped_at(60);
        report.left_at = 70;
        use FrameState::{Bare, Complete, Left, Linked, Pushed};
        for (at, expected) in [
            (0, Bare),
            (1, Pushed),
            (3, Pushed),
            (4, Linked),
            (19, Linked),
            (20, Complete),
            (49, Complete),
            (50, Bare),
            (51, Complete),
            (60, Bare),
            (70, Left),
            (71, Complete),
        ] {
            assert_eq!(stub_state(&report, at), expected, "{at}");
        }
        assert_eq!(stub_state(&FrameReport::NONE, 7), Bare);
    }
}
