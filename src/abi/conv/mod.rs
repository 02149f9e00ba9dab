//! Calling conventions: data, and one classifier for each.
//!
//! A convention is a [`ConvSpec`]: registers, alignments, and what both sides may rely on, with
//! a function that assigns places. Each has its own file. To add one: write the file, add the
//! variant, and give the row in [`Convention::spec`] that the compiler then asks for.
//!
//! A convention is never a flag in the classifier of another one.

mod go_abi_internal;
mod sysv;

use std::fmt;

use super::assign::Assignment;
use super::error::{AssignError, ValueIndex};
use super::loc::{Gpr, Reg, RegSet, Xmm};
use super::sig::Signature;
use super::ty::Type;

/// A calling convention.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Convention {
    /// C on amd64, everywhere but on Windows: System V ABI, AMD64 Architecture Processor
    /// Supplement, chapter 3.
    SystemV,
    /// Compiled Go on amd64: `cmd/compile/abi-internal.md` of the Go toolchain. Go calls it
    /// unstable by declaration; this is that of Go 1.27.
    GoAbiInternal,
}

impl Convention {
    /// The facts of the convention.
    pub const fn spec(self) -> &'static ConvSpec {
        match self {
            Convention::SystemV => &sysv::SPEC,
            Convention::GoAbiInternal => &go_abi_internal::SPEC,
        }
    }

    /// The place of every parameter and result of a function with this signature.
    ///
    /// # Errors
    ///
    /// The convention has no place for a value, or the values on the stack take more than
    /// [`MAX_AREA_BYTES`](super::MAX_AREA_BYTES).
    pub fn assign(self, signature: &Signature) -> Result<Assignment, AssignError> {
        let params = (0..).map(ValueIndex::Param).zip(signature.params());
        let results = (0..).map(ValueIndex::Result).zip(signature.results());
        for (value, ty) in params.chain(results) {
            if !Type::SCALARS.contains(ty) {
                return Err(AssignError::Unsupported {
                    convention: self,
                    value,
                    ty: ty.clone(),
                });
            }
        }
        (self.spec().classify)(self, signature)
    }
}

impl fmt::Display for Convention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.spec().name)
    }
}

/// What a convention says, apart from how it counts.
///
/// In all of them a callee returns with `rsp` just above the return address that it was
/// entered with. `rsp` is therefore in none of the sets.
#[derive(Debug)]
#[non_exhaustive]
pub struct ConvSpec {
    /// The name, as in [`Convention`].
    pub name: &'static str,
    /// The registers of integer and pointer parameters, in the order of their use.
    pub int_args: &'static [Gpr],
    /// The registers of floating-point parameters, in the order of their use.
    pub float_args: &'static [Xmm],
    /// The registers of integer and pointer results, in the order of their use.
    pub int_results: &'static [Gpr],
    /// The registers of floating-point results, in the order of their use.
    pub float_results: &'static [Xmm],
    /// The registers that a callee leaves as it found them.
    pub preserved: RegSet,
    /// The registers that hold a given value at every call and at every return.
    ///
    /// Between those two points they are ordinary scratch registers.
    pub pinned: &'static [(Reg, Pinned)],
    /// The register in which a call through a function value passes the address of the closure.
    /// `None` where function values are bare code addresses.
    pub context: Option<Gpr>,
    /// `rsp` is a multiple of this many bytes at every call instruction.
    pub stack_align_bytes: u32,
    /// So many bytes below `rsp` belong to the running function: no signal handler writes them.
    pub red_zone_bytes: u32,
    /// What the bits above a narrow value hold.
    pub narrow: Narrow,
    /// What the bytes beside a value on the stack hold.
    pub slots: Slots,
    /// Assigns places; called with the convention that this is the specification of.
    classify: fn(Convention, &Signature) -> Result<Assignment, AssignError>,
}

impl ConvSpec {
    /// The registers that hold anything after a call: neither preserved nor pinned nor `rsp`.
    /// Those that hold results are among them.
    pub fn volatile(&self) -> RegSet {
        let pinned = self.pinned.iter().map(|(register, _)| *register).collect();
        RegSet::ALL
            .minus(RegSet::of_gprs(&[Gpr::RSP]))
            .minus(self.preserved)
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
    /// Whoever passes or returns the value extends it to 32 bits, by sign or zero as its type
    /// says, and the other side relies on it.
    ExtendedTo32,
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
