//! Assignments: the place of every value of a call.
//!
//! A classifier in `conv` fills an [`Assignment`] with the two counters at the end of this
//! file, which all conventions share: the registers still free, and the stack area so far.
//! This file never knows a rule of a particular convention.

use std::fmt;

use super::conv::{Convention, Narrow, Slots};
use super::error::{AssignError, ValueIndex};
use super::loc::{Gpr, Reg, RegClass, Xmm};
use super::plan::Spot;
use super::sig::Signature;
use super::ty::Type;

/// The most bytes that the values of one call may take on the stack: 512 words.
///
/// A stub lives on small stacks and reserves this area at once, without probing for guard
/// pages; a page is the most that it can reserve so.
pub const MAX_AREA_BYTES: u32 = 4096;

/// Where a value is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Place {
    /// In a register, in the low bits.
    Reg(Reg),
    /// In memory, so many bytes from the argument base: the lowest address of the caller's
    /// outgoing area, which on amd64 is `rsp + 8` at the callee's first instruction. In
    /// [`Assignment::words`] from the start of the record.
    Area(u32),
}

impl Place {
    /// The place as a spot of a plan, where `area` makes the spot of a byte offset:
    /// `place.spot(Spot::Entry)`.
    pub fn spot(self, area: fn(u32) -> Spot) -> Spot {
        match self {
            Place::Reg(register) => register.into(),
            Place::Area(offset) => area(offset),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Reg(register) => register.fmt(f),
            Place::Area(offset) => write!(f, "[arg+{offset}]"),
        }
    }
}

/// A parameter or result and where it is.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Value {
    ty: Type,
    place: Place,
    home_off: Option<u32>,
}

impl Value {
    pub(super) fn in_reg(ty: Type, register: Reg) -> Value {
        Value {
            ty,
            place: Place::Reg(register),
            home_off: None,
        }
    }

    pub(super) fn in_reg_with_home(ty: Type, register: Reg, home_off: u32) -> Value {
        Value {
            home_off: Some(home_off),
            ..Value::in_reg(ty, register)
        }
    }

    pub(super) fn in_area(ty: Type, offset: u32) -> Value {
        Value {
            ty,
            place: Place::Area(offset),
            home_off: None,
        }
    }

    /// The type.
    pub fn ty(&self) -> &Type {
        &self.ty
    }

    /// Where the value is.
    pub const fn place(&self) -> Place {
        self.place
    }

    /// For a parameter that arrives in a register and has a home in the caller's area where the
    /// callee may spill it: the home's byte offset in the spill area
    /// (`cmd/compile/abi-internal.md`, "Function call argument and result passing").
    pub const fn home_off(&self) -> Option<u32> {
        self.home_off
    }
}

/// The place of every parameter and result of a call.
///
/// The caller's outgoing area, from its lowest address up:
///
/// ```text
/// 0             parameters on the stack, args_bytes
/// results_off   results on the stack, results_bytes
/// spill_off     homes of register parameters, spill_bytes
/// total_bytes   the caller's own
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Assignment {
    /// `None`: records of words.
    pub(super) convention: Option<Convention>,
    pub(super) params: Vec<Value>,
    pub(super) results: Vec<Value>,
    pub(super) args_bytes: u32,
    pub(super) results_off: u32,
    pub(super) results_bytes: u32,
    pub(super) spill_off: u32,
    pub(super) spill_bytes: u32,
}

impl Assignment {
    /// Not a convention: every value in an 8-byte word of its own, in memory.
    ///
    /// Parameter i is at byte 8 * i of one record, result j at byte 8 * j of another one, each in
    /// the low bytes of its word; the other bytes are unspecified. Arguments and results travel
    /// through memory in this form.
    ///
    /// # Panics
    ///
    /// If a record is larger than 4 GiB.
    pub fn words(signature: &Signature) -> Assignment {
        let record = |types: &[Type]| -> (Vec<Value>, u32) {
            let bytes = u32::try_from(types.len() * 8).expect("a record is smaller than 4 GiB");
            let offsets = (0..bytes).step_by(8);
            let values = types.iter().zip(offsets);
            let values = values.map(|(ty, offset)| Value::in_area(ty.clone(), offset));
            (values.collect(), bytes)
        };
        let (params, args_bytes) = record(signature.params());
        let (results, results_bytes) = record(signature.results());
        Assignment {
            convention: None,
            params,
            results,
            args_bytes,
            results_off: 0,
            results_bytes,
            spill_off: args_bytes,
            spill_bytes: 0,
        }
    }

    /// The convention; `None` for [`Assignment::words`].
    pub const fn convention(&self) -> Option<Convention> {
        self.convention
    }

    /// Whether this is [`Assignment::words`]: records instead of a convention.
    pub const fn is_words(&self) -> bool {
        self.convention.is_none()
    }

    /// The parameters, in order.
    pub fn params(&self) -> &[Value] {
        &self.params
    }

    /// The results, in order.
    pub fn results(&self) -> &[Value] {
        &self.results
    }

    /// The end of the parameters in memory, in bytes from the base. Not rounded.
    pub const fn args_bytes(&self) -> u32 {
        self.args_bytes
    }

    /// The start of the results in memory, in bytes from the base. For words it is 0, the start of
    /// the record of results.
    pub const fn results_off(&self) -> u32 {
        self.results_off
    }

    /// The size of the results in memory, in bytes. Not rounded.
    pub const fn results_bytes(&self) -> u32 {
        self.results_bytes
    }

    /// The start of the spill area, in bytes from the base.
    pub const fn spill_off(&self) -> u32 {
        self.spill_off
    }

    /// The size of the spill area, in bytes: a multiple of 8.
    pub const fn spill_bytes(&self) -> u32 {
        self.spill_bytes
    }

    /// The bytes that the caller reserves at the base: a multiple of 8. For words it is the size
    /// of the record of parameters.
    pub const fn total_bytes(&self) -> u32 {
        self.spill_off + self.spill_bytes
    }

    /// What the bits above a narrow value hold.
    pub const fn narrow(&self) -> Narrow {
        match self.convention {
            Some(convention) => convention.spec().narrow,
            None => Narrow::Garbage,
        }
    }

    /// What the bytes beside a value in memory hold.
    pub const fn slots(&self) -> Slots {
        match self.convention {
            Some(convention) => convention.spec().slots,
            None => Slots::Exact,
        }
    }
}

/// Shows every place on one line: `p0: rdi  p1: [arg+8]  r0: rax`. A result in the separate
/// record of [`Assignment::words`] is `[res+8]`.
impl fmt::Display for Assignment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.params.is_empty() && self.results.is_empty() {
            return f.write_str("no values");
        }
        let mut separator = "";
        for (i, value) in self.params.iter().enumerate() {
            write!(f, "{separator}p{i}: {}", value.place)?;
            separator = "  ";
        }
        for (i, value) in self.results.iter().enumerate() {
            match value.place {
                Place::Area(offset) if self.is_words() => {
                    write!(f, "{separator}r{i}: [res+{offset}]")?;
                }
                place => write!(f, "{separator}r{i}: {place}")?,
            }
            separator = "  ";
        }
        Ok(())
    }
}

/// The registers of a convention that are still free, in the order of their use.
pub(super) struct RegQueue {
    gprs: &'static [Gpr],
    xmms: &'static [Xmm],
}

impl RegQueue {
    pub(super) fn new(gprs: &'static [Gpr], xmms: &'static [Xmm]) -> RegQueue {
        RegQueue { gprs, xmms }
    }

    /// The next register of a class, if one is left.
    pub(super) fn take(&mut self, class: RegClass) -> Option<Reg> {
        fn next<R: Copy + Into<Reg>>(queue: &mut &'static [R]) -> Option<Reg> {
            let (&first, rest) = queue.split_first()?;
            *queue = rest;
            Some(first.into())
        }
        match class {
            RegClass::Gpr => next(&mut self.gprs),
            RegClass::Xmm => next(&mut self.xmms),
        }
    }
}

/// A part of the caller's area while it fills up.
pub(super) struct Area {
    convention: Convention,
    end: u32,
}

impl Area {
    pub(super) fn new(convention: Convention) -> Area {
        Area { convention, end: 0 }
    }

    /// The first byte after what is in the area.
    pub(super) fn end(&self) -> u32 {
        self.end
    }

    /// Rounds the end up to a multiple of `align` bytes.
    pub(super) fn align_to(&mut self, align: u32) {
        self.end = self.end.next_multiple_of(align);
    }

    /// Appends a value of `size` bytes and gives its offset. `value` and `ty` are for the error.
    pub(super) fn push(
        &mut self,
        value: ValueIndex,
        ty: &Type,
        size: u32,
        align: u32,
    ) -> Result<u32, AssignError> {
        self.align_to(align);
        let offset = self.end;
        // No sum overflows: the area ends within the limit before, and a value is small.
        self.end += size;
        if self.end > MAX_AREA_BYTES {
            return Err(AssignError::AreaTooLarge {
                convention: self.convention,
                value,
                ty: ty.clone(),
                limit_bytes: MAX_AREA_BYTES,
            });
        }
        Ok(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_two_records() {
        let signature = "fn(i8, f64, ptr) -> (bool, f32)";
        let words = Assignment::words(&signature.parse().expect("a signature"));
        assert_eq!(
            words.to_string(),
            "p0: [arg+0]  p1: [arg+8]  p2: [arg+16]  r0: [res+0]  r1: [res+8]"
        );
        assert_eq!((words.args_bytes(), words.total_bytes()), (24, 24));
        assert_eq!((words.results_off(), words.results_bytes()), (0, 16));
        assert_eq!(words.narrow(), Narrow::Garbage);
        assert_eq!(words.convention(), None);
    }
}
