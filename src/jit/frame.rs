//! The frame contract: what every frame of emitted code looks like, so that one unwind rule serves
//! a whole range of code. Also the constants that emission, memory, unwinding and stack maps share.
//!
//! The rules that unwinders derive from the contract are in `unwind/`.

use super::error::JitError;
use crate::abi::Arch;

/// The machine whose code this process executes.
pub(crate) const HOST: Arch =
    if cfg!(target_arch = "aarch64") { Arch::Aarch64 } else { Arch::Amd64 };

/// Code is placed and registered in units of this many bytes.
pub const GRANULE_BYTES: usize = 64;

/// Bytes below rsp that belong to the code that runs: System V psABI x86-64, section 3.2.2.
pub(crate) const RED_ZONE_BYTES: usize = 128;

/// The smallest page of any host, and so the smallest guard page. Code that lowers the stack
/// pointer further than this touches each page on the way.
pub(crate) const PAGE_BYTES: usize = 4096;

/// The reach of a `rel32` operand of x86-64, less room for a reservation's last piece of code.
pub(crate) const REL32_REACH_BYTES: usize = (1 << 31) - (2 << 20);

/// The reach of a direct call on this host: on AArch64 that of `bl`, with the same room.
pub(crate) const CALL_REACH_BYTES: usize = match HOST {
    Arch::Amd64 => REL32_REACH_BYTES,
    _ => (1 << 27) - (2 << 20),
};

/// The contract that a frame of some code keeps, so that one unwind rule serves a whole sub-arena.
///
/// Offsets are from rbp, and addresses grow upwards. `CFA`, the canonical frame address of DWARF,
/// is the caller's rsp before the call.
///
/// A frame is dropped by `pop rbp` or `leave`, and `ret`, `ret imm16`, `rep ret` or `bnd ret`
/// follows directly: code that jumps elsewhere from there (a tail call) is walked wrongly at that
/// jump. So unwinders are right at every instruction, and a profiler may unwind in its signal
/// handler: see the module's documentation.
///
/// On AArch64 x29 takes the place of rbp and `stp x29, x30, [sp, #-16]!; mov x29, sp` that of the
/// prologue: the two saved words lie in the same order. `Saved` and `Entry` frames do not exist
/// there.
///
/// ```
/// use footbridge::jit::FrameClass;
///
/// assert_eq!(FrameClass::Standard.name(), "standard");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum FrameClass {
    /// `push rbp; mov rbp, rsp` first; callee-saved registers are not changed.
    /// Rule: CFA = rbp+16, return address at CFA-8, rbp at CFA-16.
    Standard = 0,
    /// As `Standard`, and rbx, r12, r13, r14, r15 are kept at rbp-8, -16, -24, -32, -40: all five
    /// are pushed in this order after the prologue, whichever of them the code changes, and loaded
    /// from there before `leave; ret`. Five pushes leave rsp 8 bytes off a multiple of 16.
    Saved = 1,
    /// As `Saved`, where native code enters JIT code: the previous anchor is kept at rbp-56 (fp)
    /// and rbp-48 (pc), the address of the anchor at rbp-64, and a panic that passes restores it.
    Entry = 2,
    /// The root of a stack: it has no caller.
    Root = 3,
    /// No frame: rsp points to the return address throughout. Such code makes no call, except in
    /// the slow path of a poll. It may end in a jump.
    Leaf = 4,
    /// As `Standard`, and registers are changed that the caller expects back but that no unwinder
    /// on this host restores (rsi, rdi and the vector registers that Win64 preserves). The walks
    /// of this crate continue. To the process's unwinder the frame has no caller: `std::backtrace`
    /// ends here, and a panic that gets here ends the process with a message.
    Barrier = 5,
    /// As `Saved`, where Win64 code calls code of another convention: rsi and rdi are kept at
    /// rbp-48 and rbp-56, xmm6 to xmm15 at rbp-80 to rbp-224. A panic that passes stops in the code
    /// itself, which restores all of it. Only the crate's own stubs have such frames.
    Win64 = 6,
}

/// Where a frame of class [`FrameClass::Entry`] keeps the anchor, as offsets from rbp.
pub(crate) mod entry_frame {
    /// fp of the previous anchor.
    pub(crate) const PREVIOUS_FP: i32 = -56;
    /// pc of the previous anchor.
    pub(crate) const PREVIOUS_PC: i32 = -48;
    /// Address of the anchor.
    pub(crate) const ANCHOR: i32 = -64;
}

/// Where a frame of class [`FrameClass::Win64`] keeps what Win64 preserves besides the registers of
/// [`FrameClass::Saved`], as offsets from rbp.
pub(crate) mod win64_frame {
    pub(crate) const RSI: i32 = -48;
    pub(crate) const RDI: i32 = -56;
    /// xmm6; each further one is 16 bytes below.
    pub(crate) const XMM6: i32 = -80;
}

/// Where a panic that was stopped in a frame of class [`FrameClass::Win64`] continues: the landing
/// pad of a caller, and the registers that it finds.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct Landing {
    pub(crate) pc: usize,
    pub(crate) sp: usize,
    pub(crate) rax: usize,
    pub(crate) rdx: usize,
    /// rbx, r12 to r15. rbp is where the frame below keeps it.
    pub(crate) saved: [usize; 5],
    pub(crate) padding: usize,
}

/// `push rbp; mov rbp, rsp`, in both encodings of the `mov`.
const AMD64_PROLOGUES: [&[u8]; 2] = [&[0x55, 0x48, 0x89, 0xe5], &[0x55, 0x48, 0x8b, 0xec]];
/// The pushes of `Saved` that follow: rbx, which may have a REX prefix without effect, r12, r13,
/// r14, r15.
const AMD64_SAVED_PUSHES: [&[u8]; 2] = [
    &[0x53, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57],
    &[0x40, 0x53, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57],
];
/// `stp x29, x30, [sp, #-16]!; mov x29, sp`.
const AARCH64_PROLOGUES: [&[u8]; 1] = [&[0xfd, 0x7b, 0xbf, 0xa9, 0xfd, 0x03, 0x00, 0x91]];

fn prologues(machine: Arch) -> &'static [&'static [u8]] {
    match machine {
        Arch::Amd64 => &AMD64_PROLOGUES,
        _ => &AARCH64_PROLOGUES,
    }
}

fn starts_with_any(code: &[u8], beginnings: &[&[u8]]) -> bool {
    beginnings.iter().any(|beginning| code.starts_with(beginning))
}

impl FrameClass {
    pub(crate) const ALL: [Self; 7] = [
        Self::Standard,
        Self::Saved,
        Self::Entry,
        Self::Root,
        Self::Leaf,
        Self::Barrier,
        Self::Win64,
    ];

    /// Whether only the crate's own stubs have such frames.
    pub(crate) fn is_internal(self) -> bool {
        matches!(self, Self::Entry | Self::Root | Self::Win64)
    }

    /// Whether the five registers of `Saved` frames are kept, in the same slots.
    pub(crate) fn saves_five(self) -> bool {
        matches!(self, Self::Saved | Self::Entry | Self::Win64)
    }

    /// Whether code of this class starts with a prologue.
    pub(crate) fn has_prologue(self) -> bool {
        match self {
            Self::Standard | Self::Saved | Self::Entry | Self::Barrier | Self::Win64 => true,
            Self::Root | Self::Leaf => false,
        }
    }

    /// Bytes of `push rbp; mov rbp, rsp`, where the class starts with that.
    pub(crate) fn prologue_bytes(self) -> usize {
        if self.has_prologue() { prologues(HOST)[0].len() } else { 0 }
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
            Self::Win64 => "win64",
        }
    }

    /// Refuses code that does not start as the class demands: walks and unwinds rely on it.
    pub(crate) fn check(self, name: &str, code: &[u8]) -> Result<(), JitError> {
        self.broken_rule(HOST, code)
            .map_or(Ok(()), |rule| Err(JitError::FrameContract { name: name.into(), rule }))
    }

    fn broken_rule(self, machine: Arch, code: &[u8]) -> Option<&'static str> {
        if !self.has_prologue() {
            return None;
        }
        let Some(prologue) = prologues(machine).iter().find(|p| code.starts_with(p)) else {
            return Some(match machine {
                Arch::Amd64 => {
                    "its frame class starts with `push rbp; mov rbp, rsp` before anything else; \
                     code that makes no call may be FrameClass::Leaf"
                }
                _ => {
                    "its frame class starts with `stp x29, x30, [sp, #-16]!; mov x29, sp` before \
                     anything else; code that makes no call may be FrameClass::Leaf"
                }
            });
        };
        let is_saved = self.saves_five();
        let pushes = &code[prologue.len()..];
        match machine {
            Arch::Amd64 if is_saved && !starts_with_any(pushes, &AMD64_SAVED_PUSHES) => Some(
                "a saved frame continues with `push rbx; push r12; push r13; push r14; push r15`, \
                 whichever of them it changes: unwinders restore all five; code that changes none \
                 may be FrameClass::Standard",
            ),
            Arch::Aarch64 if is_saved => {
                Some("saved and entry frames exist on x86-64 only; use FrameClass::Standard")
            }
            _ => None,
        }
    }
}

/// What the emitter of a stub reports of its frame, in bytes from the start of the code. With it
/// the walks are right at each instruction of the crate's own stubs, without decoding them.
///
/// In a class with a prologue, the frame is half made at its instructions. From `complete_at` on it
/// is complete, but at the instructions of `dropped_at` and `left_at`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FrameReport {
    /// Where everything is in its place that the class keeps in the frame: the first instruction
    /// after the prologue, or after the slots of an entry frame are written.
    pub(crate) complete_at: u32,
    /// The instructions at which rbp is the caller's again, and rsp leads to the return address.
    dropped_at: [u32; 2],
    /// The instruction at which rsp is the interrupted code's, too: the last one of the stub that
    /// preempts.
    pub(crate) left_at: u32,
    /// Where a panic that passes the frame stops, in class `Win64`.
    pub(crate) lands_at: u32,
}

impl FrameReport {
    const NOWHERE: u32 = u32::MAX;

    /// No frame at all.
    pub(crate) const NONE: Self = Self {
        complete_at: 0,
        dropped_at: [Self::NOWHERE; 2],
        left_at: Self::NOWHERE,
        lands_at: Self::NOWHERE,
    };

    /// The frame is complete from the instruction at this offset on.
    pub(crate) fn complete_at(&mut self, offset_bytes: usize) {
        self.complete_at = offset_bytes as u32;
    }

    /// The frame is dropped at the instruction at this offset.
    pub(crate) fn dropped_at(&mut self, offset_bytes: usize) {
        let free = self.dropped_at.iter_mut().find(|at| **at == Self::NOWHERE);
        *free.expect("no stub of the crate has three such instructions") = offset_bytes as u32;
    }

    /// Whether the frame is dropped at an instruction.
    pub(crate) fn is_dropped_at(&self, offset_bytes: usize) -> bool {
        self.dropped_at.iter().any(|&at| at as usize == offset_bytes)
    }

    /// The landing pad, if there is one.
    #[cfg(feature = "runtime")]
    pub(crate) fn landing(&self) -> Option<usize> {
        (self.lands_at != Self::NOWHERE).then_some(self.lands_at as usize)
    }

    /// Whether nothing of the stub is left on the stack at an instruction.
    pub(crate) fn is_left_at(&self, offset_bytes: usize) -> bool {
        self.left_at as usize == offset_bytes
    }
}
