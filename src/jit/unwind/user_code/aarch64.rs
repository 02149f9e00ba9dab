//! The sequences on AArch64, where code does not poll yet: `ret`.

use crate::jit::frame::FrameClass;
use crate::jit::unwind::rules::FrameState;

const RET: [u8; 4] = [0xc0, 0x03, 0x5f, 0xd6];

/// The state of the frame at an instruction of code of a class.
pub(super) fn state(class: FrameClass, code: &[u8], offset_bytes: usize) -> FrameState {
    let rest = code.get(offset_bytes..).unwrap_or_default();
    match class {
        FrameClass::Leaf => FrameState::Bare,
        _ if offset_bytes == 0 || rest.starts_with(&RET) => FrameState::Bare,
        _ if offset_bytes < class.prologue_bytes() => FrameState::Pushed,
        _ => FrameState::Complete,
    }
}
