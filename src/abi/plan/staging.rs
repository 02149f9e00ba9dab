//! The staging area: the stub's own memory for one call.
//!
//! It holds the images of values that the two sides cut into different parts, the copies of values
//! that the target takes by reference, the memory for the target's result, and the address at which
//! the entry's caller wants the result.

use super::step::Operand;
use crate::abi::assign::Assignment;
use crate::abi::types::Layout;

/// The most bytes that a stub's frame may take for the target's area and the staging area together:
/// two pages. A stub reserves them at once.
pub const MAX_FRAME_BYTES: u32 = 8192;

/// The staging area while it fills up.
#[derive(Default)]
pub(super) struct Staging {
    pub(super) bytes: u32,
    pub(super) align: u32,
}

impl Staging {
    /// Reserves `size` bytes and the rest of their last word. A value without bytes gets a word
    /// too, because it has an address of the given alignment.
    pub(super) fn reserve(&mut self, size: u32, align: u32) -> Operand {
        let align = align.max(8);
        let offset = self.bytes.saturating_add(align - 1) & !(align - 1);
        // A saturated sum is over the limit on frames.
        self.bytes = offset.saturating_add(size.max(1).next_multiple_of(8));
        self.align = self.align.max(align);
        Operand::Staging(offset)
    }

    /// Reserves memory for a value that the convention of `side` passes by reference.
    pub(super) fn reserve_copy(&mut self, layout: Layout, side: &Assignment) -> Operand {
        let least = side.spec().map_or(8, |spec| spec.copy_align_bytes);
        self.reserve(layout.size_bytes, layout.align_bytes.max(least))
    }
}
