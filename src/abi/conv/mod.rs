//! Calling conventions: data, and one classifier for each.
//!
//! A convention is a [`ConvSpec`]: registers, alignments, and what both sides may rely on, with
//! a function that assigns places. Each has its own file. To add one: write the file, add the
//! variant, and give the row in [`Convention::spec`] that the compiler then asks for.
//!
//! A convention is never a flag in the classifier of another one.

mod aapcs64;
mod go_abi0;
mod go_abi_internal;
mod sysv;
mod win64;

use std::fmt;

use super::assign::Assignment;
use super::error::{AssignError, ValueIndex};
use super::layout::Language;
use super::loc::{Arch, Reg, RegSet};
use super::sig::Signature;
use super::ty::Type;

/// A calling convention, of one machine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Convention {
    /// C on amd64, everywhere but on Windows: System V ABI, AMD64 Architecture Processor
    /// Supplement, chapter 3.
    SystemV,
    /// C on amd64 Windows: Microsoft, "x64 calling convention", and where that says nothing, GNU C
    /// (`__attribute__((ms_abi))`).
    Win64,
    /// Go assembly functions on amd64: `cmd/compile/abi-internal.md` and "A Quick Guide to Go's
    /// Assembler". Stable.
    GoAbi0,
    /// Compiled Go on amd64: `cmd/compile/abi-internal.md` of the Go toolchain. Go calls it
    /// unstable by declaration; this is that of Go 1.27.
    GoAbiInternal,
    /// C on AArch64: Procedure Call Standard for the Arm 64-bit Architecture.
    Aapcs64,
    /// C on AArch64 of Apple: "Writing ARM64 code for Apple platforms".
    AppleAarch64,
    /// [`Convention::GoAbi0`] on AArch64.
    GoAbi0Aarch64,
    /// [`Convention::GoAbiInternal`] on AArch64.
    GoAbiInternalAarch64,
}

impl Convention {
    /// Every convention.
    pub const ALL: [Convention; 8] = [
        Convention::SystemV,
        Convention::Win64,
        Convention::GoAbi0,
        Convention::GoAbiInternal,
        Convention::Aapcs64,
        Convention::AppleAarch64,
        Convention::GoAbi0Aarch64,
        Convention::GoAbiInternalAarch64,
    ];

    /// The facts of the convention.
    pub const fn spec(self) -> &'static ConvSpec {
        match self {
            Convention::SystemV => &sysv::SPEC,
            Convention::Win64 => &win64::SPEC,
            Convention::GoAbi0 => &go_abi0::AMD64,
            Convention::GoAbiInternal => &go_abi_internal::AMD64,
            Convention::Aapcs64 => &aapcs64::STANDARD,
            Convention::AppleAarch64 => &aapcs64::APPLE,
            Convention::GoAbi0Aarch64 => &go_abi0::AARCH64,
            Convention::GoAbiInternalAarch64 => &go_abi_internal::AARCH64,
        }
    }

    /// The place of every parameter and result of a function with this signature.
    ///
    /// # Errors
    ///
    /// The convention has no place or no rule for a value, or the values on the stack take more
    /// than [`MAX_AREA_BYTES`](super::MAX_AREA_BYTES).
    pub fn assign(self, signature: &Signature) -> Result<Assignment, AssignError> {
        let spec = self.spec();
        let params = (0..).map(ValueIndex::Param).zip(signature.params());
        let results = (0..).map(ValueIndex::Result).zip(signature.results());
        for (value, ty) in params.chain(results) {
            let refuse = |rule| Err(self.unsupported(value, ty, rule));
            if !ty.exists_in(spec.language) {
                return refuse(
                    "Go has no 128-bit integers, long doubles, vectors, unions, and no packed or \
                     aligned structs",
                );
            }
            let unnamed = matches!(value, ValueIndex::Param(i) if signature.is_unnamed(i));
            if unnamed && is_promoted(ty) {
                return refuse(
                    "C promotes it in the place of `...`: integers narrower than 32 bits to i32, \
                     f32 to f64",
                );
            }
        }
        match (spec.language, signature.named_params(), signature.results()) {
            (Language::Go, Some(_), _) => Err(AssignError::NoVariadics { convention: self }),
            (Language::C, _, [_, ty, ..]) => {
                Err(AssignError::OneResult { convention: self, index: 1, ty: ty.clone() })
            }
            _ => (spec.classify)(self, signature),
        }
    }

    fn unsupported(self, value: ValueIndex, ty: &Type, rule: &'static str) -> AssignError {
        AssignError::Unsupported { convention: self, value, ty: ty.clone(), rule }
    }
}

/// Whether C's default argument promotions (C11 6.5.2.2) leave no value of this type.
fn is_promoted(ty: &Type) -> bool {
    *ty == Type::F32 || ty.is_word() && ty.layout(Language::C).size_bytes < 4
}

impl fmt::Display for Convention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.spec().name)
    }
}

/// What a convention says, apart from how it counts.
///
/// In all of them a callee returns with the stack pointer just above the return address that it
/// was entered with, or, where that is in a register, as it was. It is therefore in none of the
/// sets.
#[derive(Debug)]
#[non_exhaustive]
pub struct ConvSpec {
    /// The name, as in [`Convention`].
    pub name: &'static str,
    /// The machine.
    pub arch: Arch,
    /// Whose types it carries, and whose rules lay them out.
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
    /// The registers that hold a given value at every call and at every return.
    ///
    /// Between those two points they are ordinary scratch registers.
    pub pinned: &'static [(Reg, Pinned)],
    /// The registers that belong to the system: nobody ever writes them.
    pub reserved: RegSet,
    /// The register in which a call through a function value passes the address of the closure:
    /// the static chain of C compilers that have one. It is no register of parameters. `None`
    /// where function values are always bare code addresses.
    pub context: Option<Reg>,
    /// The stack pointer is a multiple of this many bytes at every call instruction.
    pub stack_align_bytes: u32,
    /// From the stack pointer at the callee's first instruction up to the argument base.
    pub base_off_bytes: u32,
    /// So many bytes below the stack pointer belong to the running function: no signal handler
    /// writes them.
    pub red_zone_bytes: u32,
    /// So many bytes below the stack pointer at its first instruction a callee must not write:
    /// they are the caller's.
    pub caller_below_bytes: u32,
    /// The copy of a value that is passed by reference is aligned to this many bytes at least.
    pub copy_align_bytes: u32,
    /// What the bits above a narrow value hold.
    pub narrow: Narrow,
    /// What the bytes beside a value on the stack hold.
    pub slots: Slots,
    /// Assigns places; called with the convention that this is the specification of.
    classify: fn(Convention, &Signature) -> Result<Assignment, AssignError>,
}

impl ConvSpec {
    /// The registers that hold anything after a call: neither preserved nor pinned nor reserved
    /// nor the stack pointer. Those that hold results are among them, and those of which only the
    /// low half is preserved.
    pub fn volatile(&self) -> RegSet {
        let pinned = self.pinned.iter().map(|(register, _)| *register).collect();
        self.arch
            .registers()
            .minus(RegSet::of(registers![Gpr: RSP]))
            .minus(self.preserved)
            .minus(self.reserved)
            .minus(pinned)
    }
}

/// The value that a register is pinned to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Pinned {
    /// The address of the current goroutine's `g`.
    Goroutine,
    /// Zero in the low 128 bits; what is above them is unspecified.
    Zero,
}

/// What the bits above an integer hold that is narrower than 32 bits.
///
/// The bits above 32 are unspecified in every convention.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Narrow {
    /// Whoever passes an argument extends it to 32 bits, by sign or zero as its type says, and
    /// the callee relies on it. Results are different: compilers do not extend what they
    /// return, so a plan takes a result for garbage above its own size, and extends it for a
    /// caller of this kind, which may have been told otherwise.
    ExtendedTo32,
    /// Compilers differ: some rely on the extension, others do not make it. So whoever passes
    /// the value extends it, and whoever reads it extends it again.
    Distrusted,
    /// Anything. Whoever reads the value extends it for himself.
    Garbage,
}

/// What the bytes beside an integer hold that is passed on the stack.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Slots {
    /// Each has an 8-byte word to itself. Readers may load more of the word than the value, so
    /// the writer stores all of it.
    Whole,
    /// Only the bytes of the value are its own. Neither side touches others.
    Exact,
}

/// A static list of registers of one type: `registers![Gpr: RDI, RSI]`.
macro_rules! registers {
    ($type:ident: $($name:ident),* $(,)?) => {
        &[$($crate::abi::loc::Reg::$type($crate::abi::loc::$type::$name)),*]
    };
}
use registers;
