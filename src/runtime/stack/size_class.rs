//! The size classes of stacks, and of the guards below them.
//!
//! Sizes only: nothing here allocates.

use crate::jit::PAGE_BYTES;
use crate::runtime::stack::error::StackError;

/// Bytes of the classes, smallest first. Each is a power of two, and the largest one is what
/// `StackError` and the documentation of `Config` name.
const CLASS_BYTES: [usize; 5] = [16 << 10, 64 << 10, 256 << 10, 1 << 20, 8 << 20];

/// Bytes of the largest class.
pub(crate) const LARGEST_BYTES: usize = CLASS_BYTES[CLASS_BYTES.len() - 1];

/// The least that a guard has. A C function whose frame is smaller cannot step over it.
pub(crate) const GUARD_BYTES: usize = 64 << 10;

/// A size class, by its position among all of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SizeClass(pub(crate) u8);

impl SizeClass {
    pub(crate) const COUNT: usize = CLASS_BYTES.len();

    /// All classes, smallest first.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT as u8).map(Self)
    }

    /// The smallest class that holds `bytes`. `None`: none does.
    #[inline]
    pub(crate) fn for_bytes(bytes: usize) -> Option<Self> {
        let index = CLASS_BYTES.iter().position(|&class| class >= bytes)?;
        Some(Self(index as u8))
    }

    /// The smallest class that holds the bytes that a user requested.
    pub(crate) fn for_request(bytes: usize) -> Result<Self, StackError> {
        Self::for_bytes(bytes).ok_or(StackError::TooLarge { requested: bytes })
    }

    /// The next larger class. `None`: this is the largest.
    pub(crate) fn next(self) -> Option<Self> {
        Self::for_bytes(self.bytes() + 1)
    }

    /// Usable bytes of a stack.
    #[inline]
    pub(crate) fn bytes(self) -> usize {
        CLASS_BYTES[self.index()]
    }

    /// Bytes of the guard below a stack: the same for every class, since std itself calls C
    /// functions with large frames (8 to 33 KiB in resolver, glob and printf), which C compilers do
    /// not probe page by page. A frame of up to [`GUARD_BYTES`] cannot step over the guard.
    ///
    /// Where stack and guard together would be a power of two, the guard has one page more
    /// (`slots.rs` says why).
    #[inline]
    pub(crate) fn guard_bytes(self) -> usize {
        let stride = self.bytes() + GUARD_BYTES;
        GUARD_BYTES + if stride.is_power_of_two() { PAGE_BYTES } else { 0 }
    }

    /// Its place in tables of all classes.
    #[inline]
    pub(crate) fn index(self) -> usize {
        usize::from(self.0)
    }
}
