//! Registers and sets of registers.
//!
//! This file names the registers of the machine. It never says what a register is for: the
//! conventions do that.

use std::fmt;

/// The class of a register, and of the values that it can hold.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum RegClass {
    /// General-purpose registers: integers, truth values and pointers.
    Gpr,
    /// Vector registers: floating-point values, in the low bits.
    Xmm,
}

impl fmt::Display for RegClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RegClass::Gpr => "general-purpose",
            RegClass::Xmm => "xmm",
        })
    }
}

/// A 64-bit general-purpose register of amd64.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gpr(u8);

/// A 128-bit vector register of amd64, the low part of the register of the same number in AVX
/// and AVX-512.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Xmm(u8);

/// The names of the general-purpose registers by hardware number.
const GPR_NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// Declares one constant for each register, with the hardware number that the instruction
/// encodings use (Intel SDM volume 2, section 3.1.1.1, and REX extension).
macro_rules! registers {
    ($type:ident: $($name:ident = $number:literal),* $(,)?) => {
        #[expect(missing_docs, reason = "the names are those of the manual")]
        impl $type {
            $(pub const $name: $type = $type($number);)*
        }

        impl $type {
            /// Every register of this class, by hardware number.
            pub const ALL: [$type; 16] = [$($type::$name),*];

            /// The register with hardware number `index`.
            ///
            /// # Panics
            ///
            /// If `index` is 16 or more.
            pub const fn new(index: u8) -> $type {
                assert!(index < 16, "amd64 has 16 registers of a class");
                $type(index)
            }

            /// The hardware number, 0 to 15.
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

registers!(Gpr:
    RAX = 0, RCX = 1, RDX = 2, RBX = 3, RSP = 4, RBP = 5, RSI = 6, RDI = 7, R8 = 8, R9 = 9,
    R10 = 10, R11 = 11, R12 = 12, R13 = 13, R14 = 14, R15 = 15,
);

registers!(Xmm:
    XMM0 = 0, XMM1 = 1, XMM2 = 2, XMM3 = 3, XMM4 = 4, XMM5 = 5, XMM6 = 6, XMM7 = 7, XMM8 = 8,
    XMM9 = 9, XMM10 = 10, XMM11 = 11, XMM12 = 12, XMM13 = 13, XMM14 = 14, XMM15 = 15,
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

/// A register of any class.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reg {
    /// A general-purpose register.
    Gpr(Gpr),
    /// A vector register.
    Xmm(Xmm),
}

impl Reg {
    /// The class of the register.
    pub const fn class(self) -> RegClass {
        match self {
            Reg::Gpr(_) => RegClass::Gpr,
            Reg::Xmm(_) => RegClass::Xmm,
        }
    }
}

impl fmt::Display for Reg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reg::Gpr(gpr) => gpr.fmt(f),
            Reg::Xmm(xmm) => xmm.fmt(f),
        }
    }
}

impl fmt::Debug for Reg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A set of registers: bit n of a mask is the register with hardware number n.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct RegSet {
    gprs: u16,
    xmms: u16,
}

impl RegSet {
    /// No register.
    pub const EMPTY: RegSet = RegSet { gprs: 0, xmms: 0 };

    /// Every register, `rsp` included.
    pub const ALL: RegSet = RegSet {
        gprs: u16::MAX,
        xmms: u16::MAX,
    };

    /// Every vector register.
    pub const ALL_XMMS: RegSet = RegSet {
        gprs: 0,
        xmms: u16::MAX,
    };

    /// The set of these general-purpose registers.
    pub const fn of_gprs(registers: &[Gpr]) -> RegSet {
        let mut set = RegSet::EMPTY;
        let mut i = 0;
        while i < registers.len() {
            set.gprs |= 1 << registers[i].0;
            i += 1;
        }
        set
    }

    /// The set of these vector registers.
    pub const fn of_xmms(registers: &[Xmm]) -> RegSet {
        let mut set = RegSet::EMPTY;
        let mut i = 0;
        while i < registers.len() {
            set.xmms |= 1 << registers[i].0;
            i += 1;
        }
        set
    }

    /// The registers that are in either set.
    #[must_use]
    pub const fn union(self, other: RegSet) -> RegSet {
        RegSet {
            gprs: self.gprs | other.gprs,
            xmms: self.xmms | other.xmms,
        }
    }

    /// The registers that are in both sets.
    #[must_use]
    pub const fn intersection(self, other: RegSet) -> RegSet {
        RegSet {
            gprs: self.gprs & other.gprs,
            xmms: self.xmms & other.xmms,
        }
    }

    /// The registers of this set that are not in `other`.
    #[must_use]
    pub const fn minus(self, other: RegSet) -> RegSet {
        RegSet {
            gprs: self.gprs & !other.gprs,
            xmms: self.xmms & !other.xmms,
        }
    }

    /// This set with one more register.
    #[must_use]
    pub fn with(self, register: impl Into<Reg>) -> RegSet {
        self.union(match register.into() {
            Reg::Gpr(gpr) => RegSet::of_gprs(&[gpr]),
            Reg::Xmm(xmm) => RegSet::of_xmms(&[xmm]),
        })
    }

    /// Whether the register is in the set.
    pub fn contains(self, register: impl Into<Reg>) -> bool {
        let one = RegSet::EMPTY.with(register);
        self.intersection(one) == one
    }

    /// Whether there is no register in the set.
    pub const fn is_empty(self) -> bool {
        self.gprs == 0 && self.xmms == 0
    }

    /// The number of registers in the set.
    pub const fn len(self) -> usize {
        (self.gprs.count_ones() + self.xmms.count_ones()) as usize
    }

    /// The general-purpose registers of the set, by hardware number.
    pub fn gprs(self) -> impl Iterator<Item = Gpr> {
        Gpr::ALL.into_iter().filter(move |gpr| self.contains(*gpr))
    }

    /// The vector registers of the set, by hardware number.
    pub fn xmms(self) -> impl Iterator<Item = Xmm> {
        Xmm::ALL.into_iter().filter(move |xmm| self.contains(*xmm))
    }

    /// The registers of the set: the general-purpose ones, then the vector ones, each by
    /// hardware number.
    pub fn iter(self) -> impl Iterator<Item = Reg> {
        let gprs = self.gprs().map(Reg::Gpr);
        gprs.chain(self.xmms().map(Reg::Xmm))
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
        assert!(SET.minus(RegSet::ALL).is_empty());
    }
}
