//! What a convention says, as data.
//!
//! A [`ConvSpec`] says everything but how a convention counts, which is the classifier's work.
//! Assignments, plans and stubs read it. This file needs no convention.

use std::fmt;

use crate::abi::reg::{Arch, Gpr, Reg, RegSet};
use crate::abi::types::Language;

/// The facts of a convention, without the rules that assign places.
///
/// In every convention a callee returns with the stack pointer just above the return address that
/// it was entered with, or, where that address is in a register, with the stack pointer unchanged.
/// No set of registers here contains the stack pointer.
///
/// ```
/// use footbridge::abi::{Convention, Gpr, Narrow, Reg};
///
/// let spec = Convention::SystemV.spec();
/// assert_eq!(spec.int_args[0], Reg::Gpr(Gpr::RDI));
/// assert_eq!(spec.preserved.to_string(), "{rbx, rbp, r12, r13, r14, r15}");
/// assert_eq!((spec.red_zone_bytes, spec.narrow), (128, Narrow::ExtendedTo32));
/// assert!(spec.volatile().contains(Gpr::R11));
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct ConvSpec {
    /// The name, as in [`Convention`](super::Convention). No other convention has it.
    pub name: &'static str,
    /// The machine.
    pub arch: Arch,
    /// The language whose types it carries, and whose rules lay them out.
    pub language: Language,
    /// The registers of integer and pointer parameters, in the order of their use.
    pub int_args: &'static [Reg],
    /// The registers of floating-point and vector parameters, in the order of their use.
    pub float_args: &'static [Reg],
    /// The registers of integer and pointer results, in the order of their use.
    pub int_results: &'static [Reg],
    /// The registers of floating-point and vector results, in the order of their use.
    pub float_results: &'static [Reg],
    /// The registers that a callee leaves as it found them.
    pub preserved: RegSet,
    /// The vector registers of which a callee leaves only the low 64 bits as it found them.
    pub preserved_low64: RegSet,
    /// The registers that hold a given value at every call and at every return. Between those two
    /// points they are ordinary scratch registers.
    pub pinned: &'static [(Reg, Pinned)],
    /// The registers that belong to the system. No code of a program ever writes them.
    pub reserved: RegSet,
    /// The register in which a call through a function value passes the address of the closure: in
    /// C, the static chain of compilers that have one. No parameter uses it. `None` where function
    /// values are always bare code addresses.
    pub context: Option<Reg>,
    /// The alignment of the stack pointer at every call instruction, in bytes.
    pub stack_align_bytes: u32,
    /// The distance from the stack pointer at the callee's first instruction up to the argument
    /// base.
    pub base_off_bytes: u32,
    /// The bytes below the stack pointer that belong to the running function. No signal handler
    /// writes them.
    pub red_zone_bytes: u32,
    /// The bytes below the stack pointer at its first instruction that a callee must not write,
    /// because they are the caller's.
    pub caller_below_bytes: u32,
    /// The least alignment of the copy of a value that is passed by reference.
    pub copy_align_bytes: u32,
    /// What the bits above a narrow integer hold.
    pub narrow: Narrow,
    /// What the bytes beside an integer on the stack hold.
    pub slots: Slots,
}

impl ConvSpec {
    /// The registers that hold anything after a call: all that are not preserved, pinned, reserved
    /// or the stack pointer. Registers of results are among them, and so are those of which only
    /// the low half is preserved.
    pub fn volatile(&self) -> RegSet {
        let pinned = self.pinned.iter().map(|(register, _)| *register).collect();
        self.arch
            .registers()
            .minus(RegSet::of_gprs(&[Gpr::RSP]))
            .minus(self.preserved)
            .minus(self.reserved)
            .minus(pinned)
    }
}

/// By address: each convention has one static, and no code can make another `ConvSpec`.
impl PartialEq for ConvSpec {
    fn eq(&self, other: &ConvSpec) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for ConvSpec {}

impl fmt::Display for ConvSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name)
    }
}

/// The value that a register is pinned to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Pinned {
    /// The address of the current goroutine's `g`.
    Goroutine,
    /// Zero in the low 128 bits. The bits above them are unspecified.
    Zero,
}

/// What the bits above an integer of fewer than 32 bits hold.
///
/// The bits above 32 are unspecified in every convention.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Narrow {
    /// The caller extends an argument to 32 bits, by sign or zero as its type says, and the callee
    /// relies on it. Results are different: compilers do not extend what they return. A plan
    /// therefore takes a result for garbage above its own size, and extends it for a caller of this
    /// kind, because some compilers let the caller rely on it.
    ExtendedTo32,
    /// Compilers differ: some rely on the extension, others do not make it. So the side that passes
    /// the value extends it, and the side that reads it extends it again.
    Distrusted,
    /// Anything. The side that reads the value extends it.
    Garbage,
}

/// What the bytes beside an integer on the stack hold.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Slots {
    /// Each integer has an 8-byte word to itself. Readers may load more of the word than the value,
    /// so the writer stores all of it.
    Whole,
    /// Only the bytes of the value are its own. Neither side reads or writes others for it.
    Exact,
}

/// A static list of registers of one type: `registers![Gpr: RDI, RSI]`.
macro_rules! registers {
    ($type:ident: $($name:ident),* $(,)?) => {
        &[$($crate::abi::reg::Reg::$type($crate::abi::reg::$type::$name)),*]
    };
}
pub(super) use registers;
