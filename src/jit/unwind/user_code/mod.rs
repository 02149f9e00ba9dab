//! Instructions that the walks recognise in code that users emit: the only place of the crate where
//! emitted code is decoded.
//!
//! The crate's own stubs are not decoded, since their emitter has reported what there is to know.
//! Users' emitters write the same sequences by hand: `ret`, and the slow paths of polls and checks
//! of the stack, as the documentation of `PollLayout` has them. The bytes of those sequences are a
//! part of the public interface.

mod aarch64;
mod x86_64;

use super::rules::FrameState;
use crate::abi::Arch;
use crate::jit::frame::{FrameClass, HOST};

/// The state of the frame at an instruction of code of a class.
pub(crate) fn state(class: FrameClass, code: &[u8], offset_bytes: usize) -> FrameState {
    match HOST {
        Arch::Amd64 => x86_64::state(class, code, offset_bytes),
        _ => aarch64::state(class, code, offset_bytes),
    }
}

/// Where code at this offset resumes, if it is in the slow path of a poll or of a check of the
/// stack: at the instruction after the branch. All registers hold there what they hold in the slow
/// path, the stack pointer apart. Elsewhere, that is where the code is.
///
/// `stubs_from_fs`: where the addresses of the two stubs are, from the base of `fs`.
pub(crate) fn resumes_at(code: &[u8], offset_bytes: usize, stubs_from_fs: [i32; 2]) -> usize {
    match HOST {
        Arch::Amd64 => x86_64::resumes_at(code, offset_bytes, stubs_from_fs),
        _ => offset_bytes,
    }
}

/// Whether rax is not in its register but where rsp points to: between the two ends of the compare
/// of a large frame. There rax holds an address of the stack, and gets its value back afterwards.
pub(crate) fn is_rax_pushed(code: &[u8], offset_bytes: usize) -> bool {
    HOST == Arch::Amd64 && x86_64::is_rax_pushed(code, offset_bytes)
}
