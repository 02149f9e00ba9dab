//! The sequences on x86-64. What the functions answer is said in `mod.rs`.

use crate::jit::frame::FrameClass;
use crate::jit::unwind::rules::{FrameState, in_prologue};

/// The opcode of `call QWORD PTR fs:[disp32]`.
pub(super) const CALL: [u8; 4] = [0x64, 0xff, 0x14, 0x25];

pub(super) fn state(class: FrameClass, code: &[u8], offset_bytes: usize) -> FrameState {
    let rest = code.get(offset_bytes..).unwrap_or_default();
    match class {
        // The one call of a leaf is that of a poll's slow path.
        FrameClass::Leaf if rest.starts_with(&CALL) => FrameState::Lowered,
        FrameClass::Leaf => FrameState::Bare,
        _ if is_ret(rest) => FrameState::Bare,
        _ => in_prologue(offset_bytes).unwrap_or(FrameState::Complete),
    }
}

/// Whether the next instruction is `ret`, `ret imm16`, `rep ret` or `bnd ret`.
fn is_ret(code: &[u8]) -> bool {
    matches!(code, [0xc2 | 0xc3, ..] | [0xf2 | 0xf3, 0xc3, ..])
}
