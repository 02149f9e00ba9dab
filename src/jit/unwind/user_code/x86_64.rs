//! The sequences on x86-64. What the functions answer is said in `mod.rs`.

use crate::jit::frame::{FrameClass, RED_ZONE_BYTES};
use crate::jit::unwind::rules::{FrameState, in_prologue};

/// The opcode of `call QWORD PTR fs:[disp32]`.
const CALL: [u8; 4] = [0x64, 0xff, 0x14, 0x25];
const CALL_BYTES: usize = 8;

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

pub(super) fn resumes_at(code: &[u8], offset_bytes: usize, stubs_from_fs: [i32; 2]) -> usize {
    // lea rsp, [rsp - 128], as this crate has it and in its short form
    const LEA_DOWN: [&[u8]; 2] =
        [&[0x48, 0x8d, 0xa4, 0x24, 0x80, 0xff, 0xff, 0xff], &[0x48, 0x8d, 0x64, 0x24, 0x80]];
    const LEA_UP: [u8; 8] = [0x48, 0x8d, 0xa4, 0x24, 136, 0, 0, 0]; // lea rsp, [rsp + 136]
    const { assert!(RED_ZONE_BYTES == 128) };
    // push imm32; push imm8
    const PUSH: [(&[u8], usize); 2] = [(&[0x68], 5), (&[0x6a], 2)];
    let at = offset_bytes;
    let has = |at: usize, bytes: &[u8]| code.get(at..).is_some_and(|c| c.starts_with(bytes));
    let disp32 = |at: usize| {
        let bytes = code.get(at..at.checked_add(4)?)?;
        bytes.try_into().ok().map(i32::from_le_bytes)
    };
    let is_call = |at: usize| {
        has(at, &CALL) && disp32(at + CALL.len()).is_some_and(|off| stubs_from_fs.contains(&off))
    };
    let is_call_before = |at: usize, bytes: usize| at.checked_sub(bytes).is_some_and(is_call);
    // The call, if it is still to come.
    let mut call = at;
    if let Some(lea) = LEA_DOWN.iter().find(|lea| has(call, lea)) {
        call += lea.len();
    }
    if let Some((_, bytes)) = PUSH.iter().find(|(push, _)| has(call, push)) {
        call += bytes;
    }
    let mut next = if is_call(call) {
        call + CALL_BYTES
    } else if is_call_before(at, CALL_BYTES)
        || is_call_before(at, CALL_BYTES + LEA_UP.len()) && has(at - LEA_UP.len(), &LEA_UP)
    {
        at
    } else {
        return at;
    };
    if has(next, &LEA_UP) {
        next += LEA_UP.len();
    }
    match code.get(next) {
        // jmp rel32, jmp rel8
        Some(0xe9) => {
            disp32(next + 1).map_or(next, |rel| (next + 5).wrapping_add_signed(rel as isize))
        }
        Some(0xeb) => code
            .get(next + 1)
            .map_or(next, |&rel| (next + 2).wrapping_add_signed(rel as i8 as isize)),
        _ => next,
    }
}

pub(super) fn is_rax_pushed(code: &[u8], offset_bytes: usize) -> bool {
    let at = offset_bytes;
    // lea rsp, [rsp - 128]; push rax; lea rax, [rsp + disp32]
    const BEGINNING: [u8; 13] =
        [0x48, 0x8d, 0xa4, 0x24, 0x80, 0xff, 0xff, 0xff, 0x50, 0x48, 0x8d, 0x84, 0x24];
    const LEA: usize = 9;
    const COMPARE: usize = BEGINNING.len() + 4;
    const POP_RAX: u8 = 0x58;
    // cmp rax, fs:[disp32]; cmp rax, [register + disp32], where the register may be any
    let compare_bytes = |compare: &[u8]| match compare {
        [0x64, 0x48, 0x3b, 0x04, 0x25, ..] => Some(9),
        [0x48 | 0x49, 0x3b, 0x84, ..] => Some(8),
        _ => None,
    };
    [LEA, COMPARE, COMPARE + 8, COMPARE + 9].into_iter().any(|into| {
        let Some(code) = at.checked_sub(into).and_then(|start| code.get(start..)) else {
            return false;
        };
        let compare = code.get(COMPARE..).unwrap_or_default();
        let Some(pop) = compare_bytes(compare).map(|bytes| COMPARE + bytes) else {
            return false;
        };
        code.starts_with(&BEGINNING)
            && code.get(pop) == Some(&POP_RAX)
            && [LEA, COMPARE, pop].contains(&into)
    })
}
