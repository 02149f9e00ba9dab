//! The slow paths of polls and of checks of the stack, as users write them: where the code resumes
//! that a goroutine was descheduled in.

use super::x86_64::CALL;
use crate::abi::Arch;
use crate::jit::frame::{HOST, RED_ZONE_BYTES};

/// Bytes of the call whose opcode is [`CALL`].
const CALL_BYTES: usize = 8;

/// Where code at this offset resumes, if it is in the slow path of a poll or of a check of the
/// stack: at the instruction after the branch. All registers hold there what they hold in the slow
/// path, the stack pointer apart. Elsewhere, that is where the code is.
///
/// `stubs_from_fs`: where the addresses of the two stubs are, from the base of `fs`.
pub(crate) fn resumes_at(code: &[u8], offset_bytes: usize, stubs_from_fs: [i32; 2]) -> usize {
    match HOST {
        Arch::Amd64 => amd64_resumes_at(code, offset_bytes, stubs_from_fs),
        _ => offset_bytes,
    }
}

/// Whether rax is not in its register but where rsp points to: between the two ends of the compare
/// of a large frame. There rax holds an address of the stack, and gets its value back afterwards.
pub(crate) fn is_rax_pushed(code: &[u8], offset_bytes: usize) -> bool {
    HOST == Arch::Amd64 && amd64_is_rax_pushed(code, offset_bytes)
}

fn amd64_resumes_at(code: &[u8], offset_bytes: usize, stubs_from_fs: [i32; 2]) -> usize {
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

fn amd64_is_rax_pushed(code: &[u8], offset_bytes: usize) -> bool {
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
