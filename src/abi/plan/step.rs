//! The steps of a plan: moves between operands.
//!
//! A step names no instruction. The emitter turns each one into an instruction or two, and the
//! model machine executes it.

use std::fmt;

use crate::abi::reg::{Gpr, Reg, RegSet, Vreg, Xmm, Xreg};
use crate::abi::types::{Language, Type};

/// The operand of a step: what it reads or writes.
///
/// Offsets are in bytes from the base of the area, as in
/// [`Place::Area`](crate::abi::Place::Area).
///
/// ```
/// use footbridge::abi::{Gpr, Operand, Reg};
///
/// let rdi = Operand::from(Gpr::RDI);
/// assert_eq!(rdi.reg(), Some(Reg::Gpr(Gpr::RDI)));
/// assert_eq!(Operand::Staging(8).reg(), None);
/// assert_eq!(Operand::At(Gpr::R10.into(), 16).to_string(), "[r10+16]");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Operand {
    /// A general-purpose register.
    Gpr(Gpr),
    /// A vector register.
    Xmm(Xmm),
    /// A general-purpose register of AArch64.
    Xreg(Xreg),
    /// A vector register of AArch64.
    Vreg(Vreg),
    /// In the area of arguments that the stub was entered with. Only read.
    Entry(u32),
    /// In the area of arguments that the stub makes for the target: fresh memory that overlaps no
    /// other area. Only written.
    Target(u32),
    /// Where the entry's caller finds results. Only written.
    ///
    /// Of a convention this is the entry's area again, with the same base: its results lie after
    /// the arguments. Of a packed buffer it is the separate buffer of results.
    EntryResult(u32),
    /// Where the target leaves results. Only read.
    ///
    /// Of a convention this is the target's area again, with the same base. Of a packed buffer it
    /// is the separate buffer of results.
    TargetResult(u32),
    /// In the staging area: the stub's own memory, from before the first argument moves until after
    /// the last result has moved.
    Staging(u32),
    /// In memory, `n` bytes after the address that a general-purpose register holds.
    At(Reg, u32),
    /// The 64-bit constant that the stub binds to a parameter. Only read.
    ///
    /// The emitter can read it at any step: in the instruction, in a cell of memory, or in a
    /// register that the plan does not write.
    Context,
}

impl Operand {
    /// The register, if this is one.
    pub const fn reg(self) -> Option<Reg> {
        match self {
            Operand::Gpr(gpr) => Some(Reg::Gpr(gpr)),
            Operand::Xmm(xmm) => Some(Reg::Xmm(xmm)),
            Operand::Xreg(xreg) => Some(Reg::Xreg(xreg)),
            Operand::Vreg(vreg) => Some(Reg::Vreg(vreg)),
            _ => None,
        }
    }

    /// The operand `bytes` bytes further on in memory.
    pub(super) fn plus(self, bytes: u32) -> Operand {
        match self {
            Operand::Entry(offset) => Operand::Entry(offset + bytes),
            Operand::Target(offset) => Operand::Target(offset + bytes),
            Operand::EntryResult(offset) => Operand::EntryResult(offset + bytes),
            Operand::TargetResult(offset) => Operand::TargetResult(offset + bytes),
            Operand::Staging(offset) => Operand::Staging(offset + bytes),
            Operand::At(register, offset) => Operand::At(register, offset + bytes),
            Operand::Gpr(_)
            | Operand::Xmm(_)
            | Operand::Xreg(_)
            | Operand::Vreg(_)
            | Operand::Context => {
                unreachable!("{self} is not in memory")
            }
        }
    }
}

impl From<Reg> for Operand {
    fn from(register: Reg) -> Operand {
        match register {
            Reg::Gpr(gpr) => Operand::Gpr(gpr),
            Reg::Xmm(xmm) => Operand::Xmm(xmm),
            Reg::Xreg(xreg) => Operand::Xreg(xreg),
            Reg::Vreg(vreg) => Operand::Vreg(vreg),
        }
    }
}

impl From<Gpr> for Operand {
    fn from(gpr: Gpr) -> Operand {
        Operand::Gpr(gpr)
    }
}

impl From<Xmm> for Operand {
    fn from(xmm: Xmm) -> Operand {
        Operand::Xmm(xmm)
    }
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Operand::Gpr(gpr) => gpr.fmt(f),
            Operand::Xmm(xmm) => xmm.fmt(f),
            Operand::Xreg(xreg) => xreg.fmt(f),
            Operand::Vreg(vreg) => vreg.fmt(f),
            Operand::Entry(offset) => write!(f, "[entry+{offset}]"),
            Operand::Target(offset) => write!(f, "[target+{offset}]"),
            Operand::EntryResult(offset) => write!(f, "[entry result+{offset}]"),
            Operand::TargetResult(offset) => write!(f, "[target result+{offset}]"),
            Operand::Staging(offset) => write!(f, "[staging+{offset}]"),
            Operand::At(register, offset) => write!(f, "[{register}+{offset}]"),
            Operand::Context => f.write_str("context"),
        }
    }
}

/// The number of bytes that a move carries.
///
/// ```
/// use footbridge::abi::Width;
///
/// assert_eq!(Width::exact(16), Some(Width::B16));
/// assert_eq!(Width::exact(3), None);
/// assert_eq!(Width::B32.bytes(), 32);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[non_exhaustive]
pub enum Width {
    /// One byte.
    B1,
    /// Two bytes.
    B2,
    /// Four bytes.
    B4,
    /// Eight bytes.
    B8,
    /// Sixteen bytes: a vector register of either machine.
    B16,
    /// 32 bytes: a ymm register.
    B32,
    /// 64 bytes: a zmm register.
    B64,
}

impl Width {
    /// The number of bytes.
    pub const fn bytes(self) -> u32 {
        match self {
            Width::B1 => 1,
            Width::B2 => 2,
            Width::B4 => 4,
            Width::B8 => 8,
            Width::B16 => 16,
            Width::B32 => 32,
            Width::B64 => 64,
        }
    }

    /// The width of exactly this many bytes, if there is one.
    pub const fn exact(bytes: u32) -> Option<Width> {
        Some(match bytes {
            1 => Width::B1,
            2 => Width::B2,
            4 => Width::B4,
            8 => Width::B8,
            16 => Width::B16,
            32 => Width::B32,
            64 => Width::B64,
            _ => return None,
        })
    }

    /// The width in which this many bytes move from register to register: at least four bytes,
    /// and at most a register.
    pub(super) fn covering(bytes: u32) -> Width {
        Width::exact(bytes.next_power_of_two().clamp(4, 64)).expect("a power of two")
    }
}

/// How a move of one or two bytes fills the register up to 32 bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Extend {
    /// Not at all: the move carries four or more bytes, or it stores.
    None,
    /// With zeros.
    Zero,
    /// With copies of the sign bit.
    Sign,
}

impl Extend {
    /// How a value of this type is widened to 32 bits, if it is narrower. Only truth values and
    /// integers are widened.
    ///
    /// ```
    /// use footbridge::abi::{Extend, Type};
    ///
    /// assert_eq!(Extend::of(&Type::I8), Extend::Sign);
    /// assert_eq!(Extend::of(&Type::Bool), Extend::Zero);
    /// assert_eq!(Extend::of(&Type::I32), Extend::None);
    /// ```
    pub fn of(ty: &Type) -> Extend {
        match ty.layout(Language::C).size_bytes {
            1 | 2 if ty.is_signed() => Extend::Sign,
            1 | 2 if ty.is_word() => Extend::Zero,
            _ => Extend::None,
        }
    }
}

/// One step of a plan.
///
/// ```
/// use footbridge::abi::{Extend, Gpr, Operand, RegSet, Step, Width};
///
/// let step = Step::Move {
///     from: Operand::Entry(8),
///     to: Gpr::RSI.into(),
///     width: Width::B1,
///     extend: Extend::Sign,
/// };
/// assert_eq!(step.to_string(), "rsi <- sign1 [entry+8]");
/// assert_eq!(step.writes(), RegSet::of_gprs(&[Gpr::RSI]));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Step {
    /// Copies a value. At least one of the two operands is a register.
    ///
    /// * To a general-purpose register, from one or from memory: all 64 bits are written. One or
    ///   two bytes are extended to 32 bits as `extend` says, which is not [`Extend::None`], and by
    ///   zeros from there. Four bytes are extended by zeros.
    /// * To a general-purpose register from [`Operand::Context`]: eight bytes.
    /// * From a vector register to another: the bits of the width, but at least 128. The bits above
    ///   them are unspecified.
    /// * To a vector register from memory or from a general-purpose register: four or more bytes,
    ///   with zeros above them up to 128 bits. The bits from there on are unspecified.
    /// * From a vector register to a general-purpose register: four or eight bytes, with zeros
    ///   above.
    /// * To memory: exactly `width` low bytes of the register; at least four of a vector register.
    ///
    /// In all cases but the first, `extend` is [`Extend::None`]. A move from or to a
    /// general-purpose register carries at most eight bytes.
    Move {
        /// The source.
        from: Operand,
        /// The destination.
        to: Operand,
        /// The number of bytes.
        width: Width,
        /// How the bytes are extended.
        extend: Extend,
    },
    /// Exchanges two general-purpose registers, all 64 bits of each.
    SwapGpr(Gpr, Gpr),
    /// Puts the address of an operand in memory into a general-purpose register.
    Address {
        /// The operand.
        of: Operand,
        /// The register.
        to: Reg,
    },
    /// Puts a small number into a general-purpose register, all 64 bits.
    Constant {
        /// The register.
        to: Reg,
        /// The number.
        value: u32,
    },
    /// Takes the top of the x87 stack and stores its 10 bytes.
    PopX87 {
        /// The destination.
        to: Operand,
    },
    /// Loads 10 bytes and pushes them on the x87 stack.
    PushX87 {
        /// The source.
        from: Operand,
    },
}

impl Step {
    /// The registers that the step writes, without the x87 stack.
    pub fn writes(self) -> RegSet {
        match self {
            Step::Move { to, .. } => to.reg().into_iter().collect(),
            Step::SwapGpr(a, b) => RegSet::of_gprs(&[a, b]),
            Step::Address { to, .. } | Step::Constant { to, .. } => RegSet::EMPTY.with(to),
            Step::PopX87 { .. } | Step::PushX87 { .. } => RegSet::EMPTY,
        }
    }
}

/// For readers: `rdi <- rax`, `rsi <- sign1 rbx`, `[target+0] <- 8 r10`, `rdi <-> rsi`,
/// `rdx <- address [staging+0]`. The number is the width in bytes. Moves of eight bytes between
/// registers leave it out.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::SwapGpr(a, b) => write!(f, "{a} <-> {b}"),
            Step::Address { of, to } => write!(f, "{to} <- address {of}"),
            Step::Constant { to, value } => write!(f, "{to} <- {value}"),
            Step::PopX87 { to } => write!(f, "{to} <- pop x87"),
            Step::PushX87 { from } => write!(f, "push x87 <- {from}"),
            Step::Move { from, to, width, extend } => {
                let bytes = width.bytes();
                match extend {
                    Extend::Zero => write!(f, "{to} <- zero{bytes} {from}"),
                    Extend::Sign => write!(f, "{to} <- sign{bytes} {from}"),
                    Extend::None
                        if *width == Width::B8 && from.reg().is_some() == to.reg().is_some() =>
                    {
                        write!(f, "{to} <- {from}")
                    }
                    Extend::None => write!(f, "{to} <- {bytes} {from}"),
                }
            }
        }
    }
}
