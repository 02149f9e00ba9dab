//! Instructions that the walks recognise in code that users emit: the only place of the crate where
//! emitted code is decoded.
//!
//! The crate's own stubs are not decoded, since their emitter has reported what there is to know.
//! Users' emitters write the same sequences by hand: `ret`, and the slow paths of polls and checks
//! of the stack, as the documentation of `PollLayout` has them. The bytes of those sequences are a
//! part of the public interface.

mod aarch64;
#[cfg(feature = "runtime")]
mod poll;
mod x86_64;

use super::rules::FrameState;
use crate::abi::Arch;
use crate::jit::frame::{FrameClass, HOST};

#[cfg(feature = "runtime")]
pub(crate) use poll::{is_rax_pushed, resumes_at};

/// The state of the frame at an instruction of code of a class.
pub(crate) fn state(class: FrameClass, code: &[u8], offset_bytes: usize) -> FrameState {
    match HOST {
        Arch::Amd64 => x86_64::state(class, code, offset_bytes),
        _ => aarch64::state(class, code, offset_bytes),
    }
}
