//! Assignments: the place of every value of a call.
//!
//! The classifier of a convention fills an [`Assignment`] with the help of two counters that all
//! conventions share: [`RegQueue`], the registers that are still free, and [`AreaBuilder`], the
//! stack area so far. This file knows no rule of a particular convention.

use std::error::Error;
use std::fmt;

use super::conv::spec::{ConvSpec, Narrow, Slots};
use super::place::{Part, Parts, Place};
use super::reg::{Arch, Reg, RegClass};
use super::types::{Language, Layout, Signature, Type, ValueIndex};

/// The most bytes that the values of one call may take on the stack: a page.
///
/// Stubs run on small stacks, so the limit is far below what C compilers allow.
pub const MAX_AREA_BYTES: u32 = 4096;

/// How a value is passed or returned.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Passing {
    /// Not at all: the value has no bytes.
    Nothing,
    /// In pieces, in the order of their offsets. A byte in no part is padding. A byte in two parts
    /// is in both places: the sender writes both, and the receiver may read either.
    Parts(Parts),
    /// In one piece in memory, at this offset from the argument base.
    Area(u32),
    /// In memory, at the address that is in this place.
    ///
    /// For a parameter the caller makes a copy there for this call, which the callee may change.
    /// For a result it is the memory that the callee writes; see [`Assignment::result_pointer`].
    Reference(Place),
}

/// A parameter or result, with its place.
///
/// ```
/// use footbridge::abi::{Convention, Language, Passing, Type};
///
/// let assignment = Convention::Win64.assign(&"fn(i32, [i64; 2])".parse()?)?;
/// let [int, array] = assignment.params() else { unreachable!() };
/// assert_eq!((int.ty(), int.layout().size_bytes), (&Type::I32, 4));
/// assert_eq!((int.language(), int.home_off()), (Language::C, Some(0)));
/// assert_eq!(int.parts()[0].to_string(), "rcx");
/// assert!(matches!(array.passing(), Passing::Reference(_)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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

    /// The size and alignment of the value in memory, in its [`language`](Value::language).
    pub const fn layout(&self) -> Layout {
        self.layout
    }

    /// The language whose rules lay out the value.
    pub const fn language(&self) -> Language {
        self.language
    }

    /// How the value is passed.
    pub const fn passing(&self) -> &Passing {
        &self.passing
    }

    /// The parts of a value in registers or on the x87 stack. Any other value has none.
    pub fn parts(&self) -> &[Part] {
        match &self.passing {
            Passing::Parts(parts) => parts,
            _ => &[],
        }
    }

    /// The byte offset of the parameter's home in the spill area. A home is memory in the caller's
    /// area where the callee may spill a parameter that arrived in registers. It has the layout of
    /// the value. `None` for a value without one.
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
#[non_exhaustive]
pub struct ResultPointer {
    /// Where the callee finds the address.
    pub place: Place,
    /// The register in which the callee returns the address, if the convention says so.
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
/// total_bytes   the end of the area; the rest of the frame is the caller's own
/// ```
///
/// ```
/// use footbridge::abi::{Arch, Convention, Language, Narrow, Slots};
///
/// // Go returns several results, in the registers of parameters or after the parameters on the
/// // stack, and reserves homes for the parameters in registers.
/// let go = Convention::GoAbiInternal.assign(&"fn(i64, [i32; 3]) -> (bool, [i32; 2])".parse()?)?;
/// assert_eq!(go.to_string(), "p0: rax  p1: [arg+0]  r0: rax  r1: [arg+16]");
/// assert_eq!((go.convention(), go.arch()), (Some(Convention::GoAbiInternal), Some(Arch::Amd64)));
/// assert_eq!((go.language(), go.params().len(), go.results().len()), (Language::Go, 2, 2));
/// assert_eq!((go.args_bytes(), go.results_off(), go.results_bytes()), (12, 16, 8));
/// assert_eq!((go.spill_off(), go.spill_bytes(), go.total_bytes()), (24, 8, 32));
/// assert_eq!((go.narrow(), go.slots()), (Narrow::Garbage, Slots::Exact));
///
/// // The caller of a C function passes the address of memory for a large result, and a variadic
/// // call counts its vector registers.
/// let c = Convention::SystemV.assign(&"fn(ptr, ..., f64) -> [i64; 3]".parse()?)?;
/// assert_eq!(c.to_string(), "p0: rsi  p1: xmm0  r0: [rdi] at rax");
/// let pointer = c.result_pointer().expect("a result in memory");
/// assert_eq!(pointer.place.to_string(), "rdi");
/// let (register, count) = c.vector_count().expect("a variadic call");
/// assert_eq!((register.to_string(), count), ("rax".to_owned(), 1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Assignment {
    /// `None`: a packed buffer.
    pub(super) spec: Option<&'static ConvSpec>,
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
    /// Packed buffers instead of a convention: one for the parameters and one for the results.
    ///
    /// Each value starts at a multiple of 8 bytes, in order, and takes whole 8-byte words, at least
    /// one. It is laid out as in C. The bytes between its end and the next word are unspecified. A
    /// value that needs more alignment than 8 bytes does not get it. Arguments and results travel
    /// through memory in this form.
    ///
    /// # Panics
    ///
    /// If a buffer is larger than 4 GiB.
    ///
    /// ```
    /// use footbridge::abi::Assignment;
    ///
    /// let buffers = Assignment::packed(&"fn(i8, [i32; 3], f64) -> bool".parse()?);
    /// assert_eq!(buffers.to_string(), "p0: [arg+0]  p1: [arg+8]  p2: [arg+24]  r0: [res+0]");
    /// assert_eq!((buffers.args_bytes(), buffers.results_bytes()), (32, 8));
    /// assert!(buffers.is_packed());
    /// # Ok::<(), footbridge::abi::ParseError>(())
    /// ```
    pub fn packed(signature: &Signature) -> Assignment {
        Assignment::packed_in(signature, Language::C)
    }

    /// [`Assignment::packed`] with values laid out as in `language`.
    ///
    /// # Panics
    ///
    /// If a buffer is larger than 4 GiB.
    ///
    /// ```
    /// use footbridge::abi::{Assignment, Language};
    ///
    /// let signature = "fn(struct { i64, struct {} }, i8)".parse()?;
    /// let buffers = Assignment::packed_in(&signature, Language::Go);
    /// assert_eq!(buffers.to_string(), "p0: [arg+0]  p1: [arg+16]");
    /// # Ok::<(), footbridge::abi::ParseError>(())
    /// ```
    pub fn packed_in(signature: &Signature, language: Language) -> Assignment {
        let buffer = |types: &[Type]| -> (Vec<Value>, u32) {
            let mut end: u32 = 0;
            let values = types.iter().map(|ty| {
                let value = Value::new(ty, language, Passing::Area(end));
                let size = ty.layout(language).size_bytes.next_multiple_of(8).max(8);
                end = end.checked_add(size).expect("a packed buffer is smaller than 4 GiB");
                value
            });
            (values.collect(), end)
        };
        let (params, args_bytes) = buffer(signature.params());
        let (results, results_bytes) = buffer(signature.results());
        Assignment {
            spec: None,
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

    /// The facts of the convention; `None` for a packed buffer.
    ///
    /// ```
    /// use footbridge::abi::{Assignment, Convention};
    ///
    /// let signature = "fn(i64)".parse()?;
    /// let win64 = Convention::Win64.assign(&signature)?;
    /// assert_eq!(win64.spec().map(|spec| spec.name), Some(Convention::Win64.spec().name));
    /// assert!(Assignment::packed(&signature).spec().is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub const fn spec(&self) -> Option<&'static ConvSpec> {
        self.spec
    }

    /// The machine; `None` for a packed buffer, which suits all.
    pub fn arch(&self) -> Option<Arch> {
        self.spec.map(|spec| spec.arch)
    }

    /// The language whose rules lay out the values.
    pub const fn language(&self) -> Language {
        self.language
    }

    /// Whether this is [`Assignment::packed`]: buffers instead of a convention.
    pub const fn is_packed(&self) -> bool {
        self.spec.is_none()
    }

    /// The parameters, in order.
    pub fn params(&self) -> &[Value] {
        &self.params
    }

    /// The results, in order.
    pub fn results(&self) -> &[Value] {
        &self.results
    }

    /// Where the callee finds the address of the memory for its result, if the caller provides
    /// that memory. The result is then [`Passing::Reference`] to the same place.
    pub const fn result_pointer(&self) -> Option<ResultPointer> {
        self.result_pointer
    }

    /// In a variadic call of System V, the number of vector registers that carry parameters, and
    /// the register that holds this number at the call (psABI 3.2.3: `al`).
    pub const fn vector_count(&self) -> Option<(Reg, u8)> {
        self.vector_count
    }

    /// The end of the parameters in memory, in bytes from the base. Not rounded.
    pub const fn args_bytes(&self) -> u32 {
        self.args_bytes
    }

    /// The start of the results in memory, in bytes from the base. In a packed buffer it is 0, the
    /// start of the buffer of results.
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

    /// The bytes that the caller reserves from the base up: a multiple of 8. Of a packed buffer it
    /// is the size of the buffer of parameters.
    pub const fn total_bytes(&self) -> u32 {
        self.total_bytes
    }

    /// The alignment of the base, in bytes: the convention's stack alignment, or that of the most
    /// aligned parameter on the stack if it is larger.
    ///
    /// ```
    /// use footbridge::abi::Convention;
    ///
    /// let c = Convention::SystemV.assign(&"fn(f64)".parse()?)?;
    /// assert_eq!(c.area_align_bytes(), 16);
    /// let go = Convention::GoAbi0.assign(&"fn(f64)".parse()?)?;
    /// assert_eq!(go.area_align_bytes(), 8);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub const fn area_align_bytes(&self) -> u32 {
        self.area_align_bytes
    }

    /// What the bits above a narrow value hold.
    pub const fn narrow(&self) -> Narrow {
        match self.spec {
            Some(spec) => spec.narrow,
            None => Narrow::Garbage,
        }
    }

    /// What the bytes beside a value in memory hold.
    pub const fn slots(&self) -> Slots {
        match self.spec {
            Some(spec) => spec.slots,
            None => Slots::Exact,
        }
    }
}

/// Shows every place on one line: `p0: rdi  p1.0: xmm0  p1.8: rsi  p2: [arg+8]  r0: rax`. The
/// number after a point is a part's byte offset in its value. `[rdi]` is the memory that rdi
/// points to. A result in the separate buffer of [`Assignment::packed`] is `[res+8]`.
impl fmt::Display for Assignment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.params.is_empty() && self.results.is_empty() {
            return f.write_str("no values");
        }
        let result_area = if self.is_packed() { "res" } else { "arg" };
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

    /// The number of registers of a class that are left.
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

/// The caller's area, or a section of it, while it fills up.
pub(super) struct AreaBuilder {
    spec: &'static ConvSpec,
    end: u32,
    align: u32,
}

impl AreaBuilder {
    pub(super) fn new(spec: &'static ConvSpec) -> AreaBuilder {
        AreaBuilder { spec, end: 0, align: spec.stack_align_bytes }
    }

    /// The first byte after the values so far.
    pub(super) fn end(&self) -> u32 {
        self.end
    }

    /// The alignment of the area: the stack's, or that of its most aligned value if it is larger.
    pub(super) fn align(&self) -> u32 {
        self.align
    }

    /// Ticks the end up to a multiple of `align` bytes.
    pub(super) fn align_to(&mut self, align: u32) {
        self.end = self.end.next_multiple_of(align);
    }

    /// Appends a value of `size` bytes and returns its offset. The error names `value` and `ty`.
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
                convention: self.spec,
                value,
                ty: ty.clone(),
                limit_bytes: MAX_AREA_BYTES,
            });
        }
        Ok(offset)
    }
}

/// Why a convention cannot carry a signature.
///
/// ```
/// use footbridge::abi::{AssignError, Convention};
///
/// let error = Convention::Win64.assign(&"fn() -> (i64, i64)".parse()?).expect_err("two results");
/// let AssignError::OneResult { convention, index: 1, .. } = error else { unreachable!() };
/// assert_eq!(Convention::from(convention), Convention::Win64);
/// # Ok::<(), footbridge::abi::ParseError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum AssignError {
    /// The convention has no place for a second result.
    OneResult {
        /// The convention.
        convention: &'static ConvSpec,
        /// Index of the first result that has no place, counted from 0.
        index: usize,
        /// Its type.
        ty: Type,
    },
    /// The convention has no rule for the type.
    Unsupported {
        /// The convention.
        convention: &'static ConvSpec,
        /// The value.
        value: ValueIndex,
        /// Its type.
        ty: Type,
        /// The rule that it breaks, and what to do.
        rule: &'static str,
    },
    /// The language of the convention has no variadic functions like C's.
    NoVariadics {
        /// The convention.
        convention: &'static ConvSpec,
    },
    /// The values on the stack take more than [`MAX_AREA_BYTES`](super::MAX_AREA_BYTES).
    AreaTooLarge {
        /// The convention.
        convention: &'static ConvSpec,
        /// The first value that ends beyond the limit.
        value: ValueIndex,
        /// Its type.
        ty: Type,
        /// The limit, in bytes.
        limit_bytes: u32,
    },
}

impl AssignError {
    pub(super) fn unsupported(
        convention: &'static ConvSpec,
        value: ValueIndex,
        ty: &Type,
        rule: &'static str,
    ) -> AssignError {
        AssignError::Unsupported { convention, value, ty: ty.clone(), rule }
    }
}

impl fmt::Display for AssignError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AssignError::OneResult { convention, index, ty } => write!(
                f,
                "{convention}, result {index} ({ty}): the convention returns one value; \
                 return the others through a pointer parameter"
            ),
            AssignError::Unsupported { convention, value, ty, rule } => {
                write!(f, "{convention}, {value} ({ty}): {rule}")
            }
            AssignError::NoVariadics { convention } => {
                write!(f, "{convention}: Go has no `...` parameters like C's; pass a slice")
            }
            AssignError::AreaTooLarge { convention, value, ty, limit_bytes } => write!(
                f,
                "{convention}, {value} ({ty}): it ends more than {limit_bytes} bytes into the \
                 stack area; pass a pointer to a record instead"
            ),
        }
    }
}

impl Error for AssignError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_values_are_in_two_buffers() {
        let signature = "fn(i8, f64, ptr) -> (bool, f32)";
        let packed = Assignment::packed(&signature.parse().expect("a signature"));
        assert_eq!(
            packed.to_string(),
            "p0: [arg+0]  p1: [arg+8]  p2: [arg+16]  r0: [res+0]  r1: [res+8]"
        );
        assert_eq!((packed.args_bytes(), packed.total_bytes()), (24, 24));
        assert_eq!((packed.results_off(), packed.results_bytes()), (0, 16));
        assert_eq!(packed.narrow(), Narrow::Garbage);
        assert_eq!(packed.spec(), None);
    }

    #[test]
    fn large_values_take_several_words() {
        let signature = "fn([i8; 9], struct {}, i128, i8) -> struct { i64, struct {} }";
        let signature = signature.parse().expect("a signature");
        let packed = Assignment::packed(&signature);
        assert_eq!(
            packed.to_string(),
            "p0: [arg+0]  p1: [arg+16]  p2: [arg+24]  p3: [arg+40]  r0: [res+0]"
        );
        assert_eq!((packed.args_bytes(), packed.results_bytes()), (48, 8));
        let go = Assignment::packed_in(&signature, Language::Go);
        assert_eq!(go.results_bytes(), 16);
    }
}
