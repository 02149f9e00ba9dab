//! Places: where the parts of a value are.
//!
//! A [`Place`] is a register, an offset in the argument area, or a slot of the x87 stack. A
//! [`Part`] is a piece of a value in a place, and [`Parts`] is the list of a value's pieces.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;

use super::reg::{Reg, RegClass};

/// Where a part of a value is.
///
/// ```
/// use footbridge::abi::{Gpr, Place, Reg};
///
/// assert_eq!(Place::Reg(Gpr::RDI.into()).reg(), Some(Reg::Gpr(Gpr::RDI)));
/// assert_eq!(Place::Area(8).reg(), None);
/// assert_eq!(Place::Area(8).to_string(), "[arg+8]");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Place {
    /// In a register, in the low bits.
    Reg(Reg),
    /// In memory, `n` bytes above the argument base. The base is the lowest address of the caller's
    /// outgoing area, [`ConvSpec::base_off_bytes`](super::ConvSpec::base_off_bytes) above the stack
    /// pointer at the callee's first instruction. In a packed buffer it is the start of the buffer.
    Area(u32),
    /// On the x87 stack, where 0 is the top. Only results are there.
    X87(u8),
}

impl Place {
    /// The register, if this is one.
    pub const fn reg(self) -> Option<Reg> {
        match self {
            Place::Reg(register) => Some(register),
            _ => None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Reg(register) => register.fmt(f),
            Place::Area(offset) => write!(f, "[arg+{offset}]"),
            Place::X87(position) => write!(f, "st{position}"),
        }
    }
}

/// A piece of a value, in a place of its own.
///
/// ```
/// use footbridge::abi::{Convention, RegClass};
///
/// let assignment = Convention::SystemV.assign(&"fn(struct { f64, i32 })".parse()?)?;
/// let [float, int] = assignment.params()[0].parts() else { unreachable!() };
/// assert_eq!((float.off, float.size, float.class()), (0, 8, Some(RegClass::Vector)));
/// assert_eq!((int.off, int.size, int.class()), (8, 8, Some(RegClass::General)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub struct Part {
    /// A register or a slot of the x87 stack. The part is in its low bytes. The other bytes are
    /// unspecified, apart from what [`Assignment::narrow`](super::Assignment::narrow) says.
    pub place: Place,
    /// The offset of the part in the value's memory layout, in bytes.
    pub off: u32,
    /// The size of the part, in bytes. The part never ends after the value.
    pub size: u32,
}

impl Part {
    pub(super) fn new(register: Reg, off: u32, size: u32) -> Part {
        Part { place: Place::Reg(register), off, size }
    }

    /// The class of the register; `None` on the x87 stack. The class of a value can be another one:
    /// a convention may pass a float in a general-purpose register.
    pub const fn class(&self) -> Option<RegClass> {
        match self.place {
            Place::Reg(register) => Some(register.class()),
            Place::Area(_) | Place::X87(_) => None,
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Place::Reg(register) => register.named(self.size).fmt(f),
            place => place.fmt(f),
        }
    }
}

/// The parts of a value in the order of their offsets, read as a slice.
///
/// Nearly every value has one or two parts, which need no allocation.
///
/// ```
/// use footbridge::abi::{Convention, Passing};
///
/// let assignment = Convention::GoAbiInternal.assign(&"fn(slice)".parse()?)?;
/// let Passing::Parts(parts) = assignment.params()[0].passing() else { unreachable!() };
/// let registers: Vec<String> = parts.iter().map(|part| part.to_string()).collect();
/// assert_eq!(registers, ["rax", "rbx", "rcx"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Parts(List);

#[derive(Clone)]
enum List {
    One(Part),
    Two([Part; 2]),
    Other(Vec<Part>),
}

impl Parts {
    /// No part yet.
    pub(super) const fn new() -> Parts {
        Parts(List::Other(Vec::new()))
    }

    pub(super) fn push(&mut self, part: Part) {
        match &mut self.0 {
            List::Other(parts) if parts.is_empty() => self.0 = List::One(part),
            List::One(first) => self.0 = List::Two([*first, part]),
            List::Two([first, second]) => self.0 = List::Other(vec![*first, *second, part]),
            List::Other(parts) => parts.push(part),
        }
    }

    pub(super) fn last_mut(&mut self) -> Option<&mut Part> {
        match &mut self.0 {
            List::One(part) => Some(part),
            List::Two([_, last]) => Some(last),
            List::Other(parts) => parts.last_mut(),
        }
    }
}

impl Deref for Parts {
    type Target = [Part];

    fn deref(&self) -> &[Part] {
        match &self.0 {
            List::One(part) => std::slice::from_ref(part),
            List::Two(parts) => parts,
            List::Other(parts) => parts,
        }
    }
}

impl From<Part> for Parts {
    fn from(part: Part) -> Parts {
        Parts(List::One(part))
    }
}

impl FromIterator<Part> for Parts {
    fn from_iter<I: IntoIterator<Item = Part>>(parts: I) -> Parts {
        let mut list = Parts::new();
        parts.into_iter().for_each(|part| list.push(part));
        list
    }
}

impl<'a> IntoIterator for &'a Parts {
    type Item = &'a Part;
    type IntoIter = std::slice::Iter<'a, Part>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl PartialEq for Parts {
    fn eq(&self, other: &Parts) -> bool {
        **self == **other
    }
}

impl Eq for Parts {}

impl Hash for Parts {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::reg::Gpr;

    #[test]
    fn any_number_of_parts_is_the_slice_of_them() {
        let parts: Vec<Part> =
            Gpr::ALL.iter().zip(0..).map(|(gpr, i)| Part::new((*gpr).into(), i * 8, 8)).collect();
        for n in 0..parts.len() {
            let mut list: Parts = parts[..n].iter().copied().collect();
            assert_eq!(*list, parts[..n]);
            assert_eq!(list.last_mut().copied(), parts[..n].last().copied());
            list.push(parts[n]);
            assert_eq!(*list, parts[..=n]);
        }
        assert_eq!(Parts::from(parts[3]), parts[3..4].iter().copied().collect());
    }
}
