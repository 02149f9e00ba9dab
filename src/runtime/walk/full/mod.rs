//! The full walk: the frames of a stack, JIT and native, innermost first. For people to read;
//! nothing may be decided by it.
//!
//! There are two of them, with the same functions. `native.rs` decodes native frames, by the unwind
//! tables of the loaded modules. `jit_only.rs` is for builds without the feature `traceback`: it
//! goes from anchor to anchor, and of native code it has single addresses.

#[cfg(any(test, not(feature = "traceback")))]
pub(super) mod jit_only;
#[cfg(feature = "traceback")]
mod native;
#[cfg(feature = "traceback")]
mod search;

use crate::jit::StubInfo;
#[cfg(not(feature = "traceback"))]
use crate::runtime::arch::Registers;

#[cfg(not(feature = "traceback"))]
pub(super) use jit_only::FullWalker;
#[cfg(feature = "traceback")]
pub(super) use native::FullWalker;
#[cfg(feature = "traceback")]
pub(super) use search::caller_by_search;

/// The registers in the caller of a frame whose frame pointer is not known: without the feature
/// `traceback` there is no such frame, as native frames are not decoded.
#[cfg(not(feature = "traceback"))]
pub(super) fn caller_by_search(
    _at: Registers,
    _bounds: &super::exact::Bounds,
) -> Option<Registers> {
    None
}

/// A traceback has no more frames than this: a broken stack may lead in a circle.
const MAX_TRACED_FRAMES: usize = 10_000;

/// A frame of the full walk.
pub(super) struct Frame {
    /// Where the code is.
    pub(super) pc: usize,
    /// Whether the pc is a return address: then the call is the instruction before it.
    pub(super) is_return_address: bool,
    /// What the registry knows of the pc. `None`: the frame is one of native code.
    pub(super) stub: Option<StubInfo>,
}
