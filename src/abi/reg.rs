//! Registers and sets of registers.
//!
//! This file names the registers of each machine. It never says what a register is for; the
//! conventions do.

use std::fmt;

/// A machine architecture.
///
/// ```
/// use footbridge::abi::{Arch, Gpr, Vreg};
///
/// assert!(Arch::Amd64.registers().contains(Gpr::RSP));
/// assert!(!Arch::Amd64.registers().contains(Vreg::V0));
/// assert_eq!(Arch::Aarch64.to_string(), "aarch64");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Arch {
    /// x86-64, with names as Intel spells them.
    Amd64,
    /// AArch64, the 64-bit state of Armv8 and later.
    Aarch64,
}

impl Arch {
    /// Every register that a convention or a plan can name. The set contains the stack pointer of
    /// amd64, but not that of AArch64.
    pub const fn registers(self) -> RegSet {
        match self {
            Arch::Amd64 => RegSet::ALL_AMD64,
            Arch::Aarch64 => RegSet::ALL_AARCH64,
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Arch::Amd64 => "amd64",
            Arch::Aarch64 => "aarch64",
        })
    }
}

/// The class of a register, and of the values that it can hold.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum RegClass {
    /// General-purpose registers: integers, truth values and pointers.
    General,
    /// Vector registers: floating-point values, in the low bits, and vectors.
    Vector,
}

impl fmt::Display for RegClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RegClass::General => "general-purpose",
            RegClass::Vector => "vector",
        })
    }
}

/// A 64-bit general-purpose register of amd64.
///
/// ```
/// use footbridge::abi::Gpr;
///
/// assert_eq!(Gpr::new(7), Gpr::RDI);
/// assert_eq!(u8::from(Gpr::R8), 8);
/// assert_eq!(Gpr::R13.to_string(), "r13");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gpr(u8);

/// A vector register of amd64: the 128 bits of an xmm register, which are the low part of the ymm
/// (AVX) and zmm (AVX-512) register of the same number.
///
/// ```
/// use footbridge::abi::Xmm;
///
/// assert_eq!(Xmm::new(15), Xmm::XMM15);
/// assert_eq!(Xmm::XMM15.index(), 15);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Xmm(u8);

/// A 64-bit general-purpose register of AArch64, without sp and xzr.
///
/// ```
/// use footbridge::abi::Xreg;
///
/// assert_eq!(Xreg::new(8), Xreg::X8);
/// assert_eq!(Xreg::ALL.len(), 31);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Xreg(u8);

/// A 128-bit vector register of AArch64.
///
/// ```
/// use footbridge::abi::Vreg;
///
/// assert_eq!(Vreg::new(31).to_string(), "v31");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vreg(u8);

/// The names of the general-purpose registers by hardware number.
const GPR_NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// Declares a constant for each register, with the hardware number of the instruction encodings
/// (Intel SDM volume 2, section 3.1.1.1, and REX extension; Arm ARM, C1.2.5).
macro_rules! registers {
    ($type:ident[$count:literal]: $($name:ident = $number:literal),* $(,)?) => {
        #[expect(missing_docs, reason = "the names are those of the manual")]
        impl $type {
            $(pub const $name: $type = $type($number);)*
        }

        impl $type {
            /// Every register of this class, by hardware number.
            pub const ALL: [$type; $count] = [$($type::$name),*];

            /// The register with hardware number `index`.
            ///
            /// # Panics
            ///
            /// If the machine has no such register.
            pub const fn new(index: u8) -> $type {
                assert!(index < $count, "there is no register with this number");
                $type(index)
            }

            /// The hardware number.
            ///
            /// ```
            #[doc = concat!("use footbridge::abi::", stringify!($type), ";")]
            ///
            #[doc = concat!("assert_eq!(", stringify!($type), "::new(7).index(), 7);")]
            /// ```
            pub const fn index(self) -> u8 {
                self.0
            }
        }

        impl From<$type> for u8 {
            fn from(register: $type) -> u8 {
                register.0
            }
        }

        impl From<$type> for Reg {
            fn from(register: $type) -> Reg {
                Reg::$type(register)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

registers!(Gpr[16]:
    RAX = 0, RCX = 1, RDX = 2, RBX = 3, RSP = 4, RBP = 5, RSI = 6, RDI = 7, R8 = 8, R9 = 9,
    R10 = 10, R11 = 11, R12 = 12, R13 = 13, R14 = 14, R15 = 15,
);

registers!(Xmm[16]:
    XMM0 = 0, XMM1 = 1, XMM2 = 2, XMM3 = 3, XMM4 = 4, XMM5 = 5, XMM6 = 6, XMM7 = 7, XMM8 = 8,
    XMM9 = 9, XMM10 = 10, XMM11 = 11, XMM12 = 12, XMM13 = 13, XMM14 = 14, XMM15 = 15,
);

registers!(Xreg[31]:
    X0 = 0, X1 = 1, X2 = 2, X3 = 3, X4 = 4, X5 = 5, X6 = 6, X7 = 7, X8 = 8, X9 = 9, X10 = 10,
    X11 = 11, X12 = 12, X13 = 13, X14 = 14, X15 = 15, X16 = 16, X17 = 17, X18 = 18, X19 = 19,
    X20 = 20, X21 = 21, X22 = 22, X23 = 23, X24 = 24, X25 = 25, X26 = 26, X27 = 27, X28 = 28,
    X29 = 29, X30 = 30,
);

registers!(Vreg[32]:
    V0 = 0, V1 = 1, V2 = 2, V3 = 3, V4 = 4, V5 = 5, V6 = 6, V7 = 7, V8 = 8, V9 = 9, V10 = 10,
    V11 = 11, V12 = 12, V13 = 13, V14 = 14, V15 = 15, V16 = 16, V17 = 17, V18 = 18, V19 = 19,
    V20 = 20, V21 = 21, V22 = 22, V23 = 23, V24 = 24, V25 = 25, V26 = 26, V27 = 27, V28 = 28,
    V29 = 29, V30 = 30, V31 = 31,
);

impl fmt::Display for Gpr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(GPR_NAMES[usize::from(self.0)])
    }
}

impl fmt::Display for Xmm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "xmm{}", self.0)
    }
}

impl fmt::Display for Xreg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "x{}", self.0)
    }
}

impl fmt::Display for Vreg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

/// A register of any class and machine.
///
/// ```
/// use footbridge::abi::{Arch, Gpr, Reg, RegClass, Vreg};
///
/// assert_eq!(Reg::from(Gpr::RAX).class(), RegClass::General);
/// assert_eq!(Reg::from(Vreg::V3).class(), RegClass::Vector);
/// assert_eq!(Reg::from(Vreg::V3).arch(), Arch::Aarch64);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Reg {
    /// A general-purpose register of amd64.
    Gpr(Gpr),
    /// A vector register of amd64.
    Xmm(Xmm),
    /// A general-purpose register of AArch64.
    Xreg(Xreg),
    /// A vector register of AArch64.
    Vreg(Vreg),
}

impl Reg {
    /// The class of the register.
    pub const fn class(self) -> RegClass {
        match self {
            Reg::Gpr(_) | Reg::Xreg(_) => RegClass::General,
            Reg::Xmm(_) | Reg::Vreg(_) => RegClass::Vector,
        }
    }

    /// The machine that has the register.
    pub const fn arch(self) -> Arch {
        match self {
            Reg::Gpr(_) | Reg::Xmm(_) => Arch::Amd64,
            Reg::Xreg(_) | Reg::Vreg(_) => Arch::Aarch64,
        }
    }

    /// Prints the register under the name that it has at this size: `ymm0` for 32 bytes of xmm0.
    pub(super) const fn named(self, bytes: u32) -> SizedReg {
        SizedReg(self, bytes)
    }

    /// The bit of the register in a [`RegSet`].
    const fn bit(self) -> u32 {
        match self {
            Reg::Gpr(Gpr(index)) => index as u32,
            Reg::Xmm(Xmm(index)) => 16 + index as u32,
            Reg::Xreg(Xreg(index)) => 32 + index as u32,
            Reg::Vreg(Vreg(index)) => 64 + index as u32,
        }
    }
}

impl fmt::Display for Reg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reg::Gpr(gpr) => gpr.fmt(f),
            Reg::Xmm(xmm) => xmm.fmt(f),
            Reg::Xreg(xreg) => xreg.fmt(f),
            Reg::Vreg(vreg) => vreg.fmt(f),
        }
    }
}

impl fmt::Debug for Reg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The low bytes of a register, for printing.
#[derive(Clone, Copy)]
pub(super) struct SizedReg(Reg, u32);

impl fmt::Display for SizedReg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            SizedReg(Reg::Xmm(xmm), 32) => write!(f, "ymm{}", xmm.0),
            SizedReg(Reg::Xmm(xmm), 64) => write!(f, "zmm{}", xmm.0),
            SizedReg(register, _) => register.fmt(f),
        }
    }
}

/// A set of registers, of any machine.
///
/// ```
/// use footbridge::abi::{Gpr, Reg, RegClass, RegSet, Xmm};
///
/// const SAVED: RegSet = RegSet::of_gprs(&[Gpr::RBX, Gpr::R12]);
/// let set = SAVED.union(RegSet::of_xmms(&[Xmm::XMM6])).with(Gpr::RBP);
/// assert_eq!(set.to_string(), "{rbx, rbp, r12, xmm6}");
/// assert_eq!(set.minus(SAVED), RegSet::of(&[Reg::Gpr(Gpr::RBP), Reg::Xmm(Xmm::XMM6)]));
/// assert_eq!(set.intersection(SAVED), SAVED);
/// assert!(set.contains(Gpr::RBP) && !set.is_empty());
/// assert_eq!((set.len(), set.gprs().count(), set.xmms().count()), (4, 3, 1));
/// assert_eq!(set.of_class(RegClass::Vector).next(), Some(Reg::Xmm(Xmm::XMM6)));
/// assert_eq!(set.iter().collect::<RegSet>(), set);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct RegSet(u128);

impl RegSet {
    /// No register.
    pub const EMPTY: RegSet = RegSet(0);

    /// Every register of amd64, `rsp` included.
    pub const ALL_AMD64: RegSet = RegSet(0xffff_ffff);

    /// Every vector register of amd64.
    pub const ALL_XMMS: RegSet = RegSet(0xffff_0000);

    /// Every register of AArch64.
    pub const ALL_AARCH64: RegSet = RegSet(0xffff_ffff_7fff_ffff << 32);

    /// Every vector register of AArch64.
    pub const ALL_VREGS: RegSet = RegSet(0xffff_ffff << 64);

    /// The set of these registers.
    pub const fn of(registers: &[Reg]) -> RegSet {
        let mut set = RegSet::EMPTY;
        let mut i = 0;
        while i < registers.len() {
            set.0 |= 1 << registers[i].bit();
            i += 1;
        }
        set
    }

    /// The set of these general-purpose registers.
    pub const fn of_gprs(registers: &[Gpr]) -> RegSet {
        let mut set = RegSet::EMPTY;
        let mut i = 0;
        while i < registers.len() {
            set.0 |= 1 << Reg::Gpr(registers[i]).bit();
            i += 1;
        }
        set
    }

    /// The set of these vector registers.
    pub const fn of_xmms(registers: &[Xmm]) -> RegSet {
        let mut set = RegSet::EMPTY;
        let mut i = 0;
        while i < registers.len() {
            set.0 |= 1 << Reg::Xmm(registers[i]).bit();
            i += 1;
        }
        set
    }

    /// The registers that are in either set.
    #[must_use]
    pub const fn union(self, other: RegSet) -> RegSet {
        RegSet(self.0 | other.0)
    }

    /// The registers that are in both sets.
    #[must_use]
    pub const fn intersection(self, other: RegSet) -> RegSet {
        RegSet(self.0 & other.0)
    }

    /// The registers of this set that are not in `other`.
    #[must_use]
    pub const fn minus(self, other: RegSet) -> RegSet {
        RegSet(self.0 & !other.0)
    }

    /// This set and one more register.
    #[must_use]
    pub fn with(self, register: impl Into<Reg>) -> RegSet {
        self.union(RegSet::of(&[register.into()]))
    }

    /// Whether the register is in the set.
    pub fn contains(self, register: impl Into<Reg>) -> bool {
        self.0 >> register.into().bit() & 1 == 1
    }

    /// Whether the set is empty.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The number of registers in the set.
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// The general-purpose registers of amd64 in the set, by hardware number.
    pub fn gprs(self) -> impl Iterator<Item = Gpr> {
        Gpr::ALL.into_iter().filter(move |gpr| self.contains(*gpr))
    }

    /// The vector registers of amd64 in the set, by hardware number.
    pub fn xmms(self) -> impl Iterator<Item = Xmm> {
        Xmm::ALL.into_iter().filter(move |xmm| self.contains(*xmm))
    }

    /// The registers of a class in the set, in the order of [`RegSet::iter`].
    pub fn of_class(self, class: RegClass) -> impl Iterator<Item = Reg> {
        self.iter().filter(move |register| register.class() == class)
    }

    /// The registers of the set, amd64 before AArch64, general-purpose before vector, and then by
    /// hardware number.
    pub fn iter(self) -> impl Iterator<Item = Reg> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            let lowest = left.trailing_zeros();
            left &= left.wrapping_sub(1);
            match lowest as u8 {
                index @ 0..16 => Some(Reg::Gpr(Gpr(index))),
                index @ 16..32 => Some(Reg::Xmm(Xmm(index - 16))),
                index @ 32..63 => Some(Reg::Xreg(Xreg(index - 32))),
                // There is no x31.
                63 => None,
                index @ 64..96 => Some(Reg::Vreg(Vreg(index - 64))),
                _ => None,
            }
        })
    }
}

impl<R: Into<Reg>> FromIterator<R> for RegSet {
    fn from_iter<I: IntoIterator<Item = R>>(registers: I) -> RegSet {
        registers.into_iter().fold(RegSet::EMPTY, RegSet::with)
    }
}

impl fmt::Display for RegSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (i, register) in self.iter().enumerate() {
            let separator = if i == 0 { "" } else { ", " };
            write!(f, "{separator}{register}")?;
        }
        f.write_str("}")
    }
}

impl fmt::Debug for RegSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_the_manuals() {
        for (number, gpr) in Gpr::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(gpr.index()), number);
            assert_eq!(gpr, Gpr::new(gpr.index()));
        }
        assert_eq!(Gpr::RDI.to_string(), "rdi");
        assert_eq!(u8::from(Gpr::RSP), 4);
        assert_eq!(Gpr::R13.to_string(), "r13");
        assert_eq!(Xmm::XMM11.to_string(), "xmm11");
        assert_eq!(Reg::Xmm(Xmm::XMM11).named(32).to_string(), "ymm11");
        assert_eq!(Reg::Xmm(Xmm::XMM11).named(8).to_string(), "xmm11");
        assert_eq!(Xreg::X17.to_string(), "x17");
        assert_eq!(Vreg::V31.to_string(), "v31");
        assert_eq!(Xmm::ALL.map(u8::from), Gpr::ALL.map(u8::from));
    }

    #[test]
    fn sets() {
        const SET: RegSet =
            RegSet::of_gprs(&[Gpr::R15, Gpr::RAX]).union(RegSet::of_xmms(&[Xmm::XMM15]));
        assert_eq!(SET.to_string(), "{rax, r15, xmm15}");
        assert_eq!(SET.len(), 3);
        assert!(SET.contains(Gpr::R15) && !SET.contains(Xmm::XMM0));
        let less = SET.minus(RegSet::of_gprs(&[Gpr::RAX, Gpr::RCX]));
        assert_eq!(less.iter().collect::<RegSet>(), less);
        assert_eq!(less.to_string(), "{r15, xmm15}");
        assert_eq!(SET.intersection(RegSet::ALL_XMMS).len(), 1);
        assert!(SET.minus(RegSet::ALL_AMD64).is_empty());
        let mixed = SET.with(Xreg::X30).with(Vreg::V31);
        assert_eq!(mixed.minus(SET).to_string(), "{x30, v31}");
        assert_eq!(Arch::Aarch64.registers().len(), 31 + 32);
        assert_eq!(RegSet::ALL_VREGS.len(), 32);
        let all = Arch::Amd64.registers().union(Arch::Aarch64.registers());
        assert_eq!(all.iter().count(), all.len());
    }
}
