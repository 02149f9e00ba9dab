//! Assignments: the place of every value of a call.
//!
//! A classifier in `conv` fills an [`Assignment`] with the counters at the end of this file,
//! which all conventions share: the registers still free, and the stack area so far. This file
//! never knows a rule of a particular convention.

use std::fmt;

use super::conv::{Convention, Narrow, Slots};
use super::error::{AssignError, ValueIndex};
use super::layout::{Language, Layout};
use super::loc::{Arch, Reg, RegClass};
use super::parts::Parts;
use super::sig::Signature;
use super::ty::Type;

/// The most bytes that the values of one call may take on the stack: 512 words.
///
/// A stub lives on small stacks; a page is much for one call.
pub const MAX_AREA_BYTES: u32 = 4096;

/// Where a part of a value is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Place {
    /// In a register, in the low bits.
    Reg(Reg),
    /// In memory, so many bytes from the argument base: the lowest address of the caller's
    /// outgoing area, which is [`ConvSpec::base_off_bytes`](super::ConvSpec::base_off_bytes) above
    /// the stack pointer at the callee's first instruction. In [`Assignment::words`] from the
    /// start of the record.
    Area(u32),
    /// On the x87 stack: 0 is its top. Only results are there.
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
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Part {
    /// A register or a place on the x87 stack. The part is in the low bytes; the others are
    /// unspecified, apart from [`Assignment::narrow`].
    pub place: Place,
    /// Where the part is in the value as it is laid out in memory, in bytes.
    pub off: u32,
    /// The size of the part, in bytes. It never ends behind the value.
    pub size: u32,
}

impl Part {
    pub(super) fn new(register: Reg, off: u32, size: u32) -> Part {
        Part { place: Place::Reg(register), off, size }
    }

    /// The class of the register; `None` on the x87 stack. It is that of the place, not of the
    /// value: a convention may have a float in a general-purpose register.
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

/// How a value is passed or returned.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Passing {
    /// Not at all: the value has no bytes.
    Nothing,
    /// In pieces, in the order of their offsets. A byte that is in no part is padding. Bytes that
    /// are in two parts are in both places: the sender writes both, the receiver may read any.
    Parts(Parts),
    /// In one piece on the stack, at this offset from the argument base.
    Area(u32),
    /// In memory, at the address that is in this place.
    ///
    /// Of a parameter, the caller makes a copy there for this call, which the callee may change.
    /// Of a result, it is where the callee shall write it; see [`Assignment::result_pointer`].
    Reference(Place),
}

/// A parameter or result and where it is.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Value {
    ty: Type,
    layout: Layout,
    language: Language,
    passing: Passing,
    home_off: Option<u32>,
}

impl Value {
    pub(super) fn new(ty: &Type, language: Language, passing: Passing) -> Value {
        Value { ty: ty.clone(), layout: ty.layout(language), language, passing, home_off: None }
    }

    pub(super) fn with_home(self, home_off: u32) -> Value {
        Value { home_off: Some(home_off), ..self }
    }

    /// The type.
    pub fn ty(&self) -> &Type {
        &self.ty
    }

    /// Size and alignment of the value in memory, in the convention's language.
    pub const fn layout(&self) -> Layout {
        self.layout
    }

    /// Whose rules lay out the value.
    pub const fn language(&self) -> Language {
        self.language
    }

    /// How the value is passed.
    pub const fn passing(&self) -> &Passing {
        &self.passing
    }

    /// The parts of a value that is in registers; of any other, none.
    pub fn parts(&self) -> &[Part] {
        match &self.passing {
            Passing::Parts(parts) => parts,
            _ => &[],
        }
    }

    /// For a parameter that arrives in a register and has a home in the caller's area where the
    /// callee may spill it: the home's byte offset in the spill area. The home has the layout of
    /// the value.
    pub const fn home_off(&self) -> Option<u32> {
        self.home_off
    }

    /// Writes `p0: rdi`, or `p1.0: xmm0  p1.8: rsi` with byte offsets, or `p2: [arg+0]`, or
    /// `p3: [rcx]` of a reference. `area` is the name of the area.
    fn write(&self, name: &str, area: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.passing {
            Passing::Nothing => write!(f, "{name}: nothing"),
            Passing::Area(offset) => write!(f, "{name}: [{area}+{offset}]"),
            Passing::Reference(place) => write!(f, "{name}: [{place}]"),
            Passing::Parts(parts) => {
                let whole = parts.len() == 1;
                for (i, part) in parts.iter().enumerate() {
                    let separator = if i == 0 { "" } else { "  " };
                    match part.off {
                        0 if whole => write!(f, "{separator}{name}: {part}")?,
                        off => write!(f, "{separator}{name}.{off}: {part}")?,
                    }
                }
                Ok(())
            }
        }
    }
}

/// Where the address of the memory for the result is passed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ResultPointer {
    /// Where the callee finds it.
    pub place: Place,
    /// The register in which the callee returns it, if the convention says so.
    pub returned: Option<Reg>,
}

/// The place of every parameter and result of a call.
///
/// The caller's outgoing area, from its lowest address up:
///
/// ```text
/// 0             homes of register parameters where they come first, then
///               parameters on the stack, up to args_bytes
/// results_off   results on the stack, results_bytes
/// spill_off     homes of register parameters where they come last, spill_bytes
/// total_bytes   the caller's own
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Assignment {
    /// `None`: records of words.
    pub(super) convention: Option<Convention>,
    pub(super) language: Language,
    pub(super) params: Vec<Value>,
    pub(super) results: Vec<Value>,
    pub(super) result_pointer: Option<ResultPointer>,
    pub(super) vector_count: Option<(Reg, u8)>,
    pub(super) args_bytes: u32,
    pub(super) results_off: u32,
    pub(super) results_bytes: u32,
    pub(super) spill_off: u32,
    pub(super) spill_bytes: u32,
    pub(super) total_bytes: u32,
    pub(super) area_align_bytes: u32,
}

impl Assignment {
    /// Not a convention: every value in memory, starting at an 8-byte word of its own.
    ///
    /// Parameters are in one record, results in another one, in order. A value that is
    /// larger than a word, as C lays it out, takes as many words as it needs; the other bytes of
    /// its last word are unspecified. Every value starts at a multiple of 8 bytes and may need
    /// more alignment than it gets. Arguments and results travel through memory in this form.
    ///
    /// # Panics
    ///
    /// If a record is larger than 4 GiB.
    pub fn words(signature: &Signature) -> Assignment {
        Assignment::words_of(signature, Language::C)
    }

    /// [`Assignment::words`] with values laid out as in `language`.
    ///
    /// # Panics
    ///
    /// If a record is larger than 4 GiB.
    pub fn words_of(signature: &Signature, language: Language) -> Assignment {
        let record = |types: &[Type]| -> (Vec<Value>, u32) {
            let mut end: u32 = 0;
            let values = types.iter().map(|ty| {
                let value = Value::new(ty, language, Passing::Area(end));
                let words = ty.layout(language).size_bytes.next_multiple_of(8).max(8);
                end = end.checked_add(words).expect("a record is smaller than 4 GiB");
                value
            });
            (values.collect(), end)
        };
        let (params, args_bytes) = record(signature.params());
        let (results, results_bytes) = record(signature.results());
        Assignment {
            convention: None,
            language,
            params,
            results,
            result_pointer: None,
            vector_count: None,
            args_bytes,
            results_off: 0,
            results_bytes,
            spill_off: args_bytes,
            spill_bytes: 0,
            total_bytes: args_bytes,
            area_align_bytes: 16,
        }
    }

    /// The convention; `None` for [`Assignment::words`].
    pub const fn convention(&self) -> Option<Convention> {
        self.convention
    }

    /// The machine; `None` for [`Assignment::words`], which suit all.
    pub fn arch(&self) -> Option<Arch> {
        self.convention.map(|convention| convention.spec().arch)
    }

    /// Whose rules lay out the values.
    pub const fn language(&self) -> Language {
        self.language
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

    /// For a result that the callee writes to memory of the caller's choice: where it finds the
    /// address. The result is then [`Passing::Reference`] to the same place.
    pub const fn result_pointer(&self) -> Option<ResultPointer> {
        self.result_pointer
    }

    /// In a call of a variadic function, the register that holds a number at the call, and that
    /// number: how many vector registers carry parameters (psABI 3.2.3: `al`).
    pub const fn vector_count(&self) -> Option<(Reg, u8)> {
        self.vector_count
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
        self.total_bytes
    }

    /// The base is a multiple of this many bytes: what the convention says, or more where a
    /// parameter on the stack is aligned to more.
    pub const fn area_align_bytes(&self) -> u32 {
        self.area_align_bytes
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

/// Shows every place on one line: `p0: rdi  p1.0: xmm0  p1.8: rsi  p2: [arg+8]  r0: rax`. The
/// number behind a point is a part's byte offset in its value. `[rdi]` is the memory that rdi
/// points to. A result in the separate record of [`Assignment::words`] is `[res+8]`.
impl fmt::Display for Assignment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.params.is_empty() && self.results.is_empty() {
            return f.write_str("no values");
        }
        let result_area = if self.is_words() { "res" } else { "arg" };
        let mut separator = "";
        for (i, value) in self.params.iter().enumerate() {
            f.write_str(separator)?;
            value.write(&format!("p{i}"), "arg", f)?;
            separator = "  ";
        }
        for (i, value) in self.results.iter().enumerate() {
            f.write_str(separator)?;
            value.write(&format!("r{i}"), result_area, f)?;
            separator = "  ";
        }
        if let Some(ResultPointer { returned: Some(register), .. }) = self.result_pointer {
            write!(f, " at {register}")?;
        }
        Ok(())
    }
}

/// The registers of a convention that are still free, in the order of their use.
#[derive(Clone)]
pub(super) struct RegQueue {
    general: &'static [Reg],
    vector: &'static [Reg],
}

impl RegQueue {
    pub(super) fn new(general: &'static [Reg], vector: &'static [Reg]) -> RegQueue {
        RegQueue { general, vector }
    }

    fn of(&mut self, class: RegClass) -> &mut &'static [Reg] {
        match class {
            RegClass::General => &mut self.general,
            RegClass::Vector => &mut self.vector,
        }
    }

    /// How many registers of a class are left.
    pub(super) fn left(&mut self, class: RegClass) -> usize {
        self.of(class).len()
    }

    /// The next register of a class, if one is left.
    pub(super) fn take(&mut self, class: RegClass) -> Option<Reg> {
        let queue = self.of(class);
        let (&first, rest) = queue.split_first()?;
        *queue = rest;
        Some(first)
    }

    /// Leaves no register of a class.
    pub(super) fn exhaust(&mut self, class: RegClass) {
        *self.of(class) = &[];
    }
}

/// A part of the caller's area while it fills up.
pub(super) struct Area {
    convention: Convention,
    end: u32,
    align: u32,
}

impl Area {
    pub(super) fn new(convention: Convention) -> Area {
        Area { convention, end: 0, align: convention.spec().stack_align_bytes }
    }

    /// The first byte after what is in the area.
    pub(super) fn end(&self) -> u32 {
        self.end
    }

    /// The alignment of the area: what the convention says, or more where a value needs it.
    pub(super) fn align(&self) -> u32 {
        self.align
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
        self.align = self.align.max(align);
        let offset = self.end;
        // No sum overflows: the area ends within the limit before, and a type is at most 1 GiB.
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

    #[test]
    fn large_values_take_several_words() {
        let signature = "fn([i8; 9], struct {}, i128, i8) -> struct { i64, struct {} }";
        let signature = signature.parse().expect("a signature");
        let words = Assignment::words(&signature);
        assert_eq!(
            words.to_string(),
            "p0: [arg+0]  p1: [arg+16]  p2: [arg+24]  p3: [arg+40]  r0: [res+0]"
        );
        assert_eq!((words.args_bytes(), words.results_bytes()), (48, 8));
        let go = Assignment::words_of(&signature, Language::Go);
        assert_eq!(go.results_bytes(), 16);
    }
}
