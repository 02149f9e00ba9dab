//! What unwind tables are made from: ranges of code, and where their parts are told apart.

use std::ops::Range;

use crate::jit::frame::FrameClass;

/// A range of code whose frames are all of one class.
pub(crate) struct Covered {
    pub(crate) range: Range<usize>,
    pub(crate) class: FrameClass,
    pub(crate) words: Words,
    /// Address of the personality routine of the frames, where it is not this room's own.
    pub(crate) personality: Option<usize>,
}

/// Where the registry's words for a range are, and what the rules read of them. Those of published
/// code are readable for ever.
#[derive(Clone)]
pub(crate) struct Words {
    /// Address of the word for the first granule. The words of the others follow it.
    pub(crate) address: usize,
    /// The bits that lead back to the first granule of the code: 0 in the first one only.
    pub(crate) back_bits: Range<u32>,
}
