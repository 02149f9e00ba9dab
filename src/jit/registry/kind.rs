//! What a piece of code is for, and the flags of its words.

use crate::jit::frame::FrameClass;

/// What a piece of code is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum StubKind {
    /// Code that a user emitted with `Jit::install`.
    User = 0,
    /// A goroutine switch: gogo, gosave, mcall.
    Switch = 1,
    /// Runs a function on the system stack.
    Systemstack = 2,
    /// First frame of a goroutine.
    GoroutineEntry = 3,
    /// JIT code calls a Rust function.
    GoroutineFn = 4,
    /// Rust calls JIT code.
    Enter = 5,
    /// JIT code starts a goroutine.
    Spawn = 6,
    /// Code in memory that the program owns.
    Foreign = 7,
    /// Puts one calling convention in front of another.
    Adapter = 8,
    /// Deschedules a goroutine that was interrupted, or that yields at a poll, with all of its
    /// machine state.
    Preempt = 9,
    /// Finds out why a check of the stack has failed: too little stack, or a request to yield.
    StackCheck = 10,
}

const KINDS: [StubKind; 11] = [
    StubKind::User,
    StubKind::Switch,
    StubKind::Systemstack,
    StubKind::GoroutineEntry,
    StubKind::GoroutineFn,
    StubKind::Enter,
    StubKind::Spawn,
    StubKind::Foreign,
    StubKind::Adapter,
    StubKind::Preempt,
    StubKind::StackCheck,
];

impl StubKind {
    /// The kind in words, as tracebacks print it.
    ///
    /// ```
    /// assert_eq!(footbridge::jit::StubKind::GoroutineFn.name(), "goroutine function");
    /// ```
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "user code",
            Self::Switch => "switch",
            Self::Systemstack => "systemstack",
            Self::GoroutineEntry => "goroutine entry",
            Self::GoroutineFn => "goroutine function",
            Self::Enter => "enter",
            Self::Spawn => "spawn",
            Self::Foreign => "foreign code",
            Self::Adapter => "adapter",
            Self::Preempt => "preempt",
            Self::StackCheck => "stack check",
        }
    }
}

// Flag word, 18 bits: kind in 0..4, frame class in 4..7, then single bits; RETIRED is bit 17.
const KIND_MASK: u64 = 15;
const CLASS_SHIFT: u32 = 4;
/// The code may be interrupted for another goroutine.
pub(super) const PREEMPTIBLE: u64 = 1 << 7;
/// Not everywhere: the descriptor says where.
pub(super) const HAS_UNSAFE_POINTS: u64 = 1 << 8;
/// The descriptor has a stack map.
pub(super) const HAS_STACK_MAP: u64 = 1 << 9;

/// The flags of a piece of code.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flags(pub(super) u64);

impl Flags {
    pub(crate) const fn new(kind: StubKind, class: FrameClass) -> Self {
        Self(kind as u64 | (class as u64) << CLASS_SHIFT)
    }

    #[inline]
    pub(super) fn kind(self) -> StubKind {
        KINDS[((self.0 & KIND_MASK) as usize).min(KINDS.len() - 1)]
    }

    #[inline]
    pub(super) fn class(self) -> FrameClass {
        FrameClass::ALL[((self.0 >> CLASS_SHIFT & 7) as usize).min(FrameClass::ALL.len() - 1)]
    }
}
