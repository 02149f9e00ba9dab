//! The laws that frames of emitted code keep. What unwinds and walks them is elsewhere.

/// The law that a frame of some code keeps, so that one unwind rule serves a whole sub-arena.
///
/// Offsets are from rbp, addresses grow upwards. `CFA` is the caller's rsp before the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameClass {
    /// `push rbp; mov rbp, rsp` first; callee-saved registers are not changed.
    /// Rule: CFA = rbp+16, return address at CFA-8, rbp at CFA-16.
    Standard = 0,
    /// As `Standard`, and rbx, r12, r13, r14, r15 are kept at rbp-8, -16, -24, -32, -40: all five
    /// are pushed in this order behind the prologue, whichever of them the code changes, and
    /// loaded from there before `leave; ret`. Five pushes leave rsp 8 bytes off a multiple of 16.
    Saved = 1,
    /// As `Saved`, where native code enters JIT code: the previous anchor is kept at rbp-56 (fp)
    /// and rbp-48 (pc), the address of the anchor at rbp-64, and a panic that passes puts it back.
    Entry = 2,
    /// The root of a stack: nothing is above it.
    Root = 3,
    /// No frame: rsp points to the return address throughout. Such code makes no call.
    Leaf = 4,
    /// As `Standard`, and registers are changed that the caller expects back but that no unwinder
    /// on this host restores (the vector registers that Win64 preserves). The walks of this crate go
    /// on. To the process's unwinder nothing is above: `std::backtrace` ends here, and a panic that
    /// gets here ends the process with Rust's message.
    Barrier = 5,
}

impl FrameClass {
    pub(crate) const ALL: [Self; 6] =
        [Self::Standard, Self::Saved, Self::Entry, Self::Root, Self::Leaf, Self::Barrier];

    /// Bytes of `push rbp; mov rbp, rsp`, where the class starts with that.
    pub(crate) fn prologue_bytes(self) -> usize {
        match self {
            Self::Standard | Self::Saved | Self::Entry | Self::Barrier => 4,
            Self::Root | Self::Leaf => 0,
        }
    }

    /// The class as one lower-case word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Saved => "saved",
            Self::Entry => "entry",
            Self::Root => "root",
            Self::Leaf => "leaf",
            Self::Barrier => "barrier",
        }
    }
}
