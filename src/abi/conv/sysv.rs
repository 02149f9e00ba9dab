//! System V on amd64.
//!
//! Source: System V Application Binary Interface, AMD64 Architecture Processor Supplement
//! (psABI), version 1.0; the sections are cited below. What the document leaves open and
//! compilers rely on is marked as such.
//!
//! The places of 256- and 512-bit vectors are those between functions compiled for AVX and AVX-512.
//! Without these features compilers pass them in memory, and warn.
//!
//! # Worked examples
//!
//! ```
//! use footbridge::abi::Convention;
//!
//! for (signature, places) in [
//!     // Integers and floats count separately.
//!     ("fn(i64, f64, i8) -> u8", "p0: rdi  p1: xmm0  p2: rsi  r0: rax"),
//!     // Each eightbyte of a struct has a class of its own: here SSE, then INTEGER.
//!     ("fn(struct { f32, f32, i32 })", "p0.0: xmm0  p0.8: rdi"),
//!     // More than two eightbytes are in memory, unless they are one vector.
//!     ("fn([u8; 24], v256)", "p0: [arg+0]  p1: ymm0"),
//!     // A value takes registers for all of its eightbytes or none; r9 is left for the next one.
//!     (
//!         "fn(i64, i64, i64, i64, i64, [i64; 2], i8)",
//!         "p0: rdi  p1: rsi  p2: rdx  p3: rcx  p4: r8  p5: [arg+0]  p6: r9",
//!     ),
//!     // A large result: its address is a first parameter, and comes back in rax.
//!     ("fn(ptr) -> [i64; 3]", "p0: rsi  r0: [rdi] at rax"),
//!     // The x87 stack carries results only.
//!     ("fn(longdouble) -> complex<longdouble>", "p0: [arg+0]  r0.0: st0  r0.16: st1"),
//! ] {
//!     let assignment = Convention::SystemV.assign(&signature.parse()?)?;
//!     assert_eq!(assignment.to_string(), places, "{signature}");
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::ops::ControlFlow;

use super::spec::{ConvSpec, Narrow, Slots, registers};
use crate::abi::assign::{
    AreaBuilder, AssignError, Assignment, Passing, RegQueue, ResultPointer, Value,
};
use crate::abi::place::{Part, Parts, Place};
use crate::abi::reg::{Arch, Gpr, Reg, RegClass, RegSet};
use crate::abi::types::{Float, Language, Signature, Type, ValueIndex};

pub(super) static SPEC: ConvSpec = ConvSpec {
    name: "SystemV",
    arch: Arch::Amd64,
    language: Language::C,
    // psABI 3.2.3, "Passing", and Figure 3.4.
    int_args: registers![Gpr: RDI, RSI, RDX, RCX, R8, R9],
    float_args: registers![Xmm: XMM0, XMM1, XMM2, XMM3, XMM4, XMM5, XMM6, XMM7],
    // psABI 3.2.3, "Returning of Values".
    int_results: registers![Gpr: RAX, RDX],
    float_results: registers![Xmm: XMM0, XMM1],
    // psABI 3.2.1 and Figure 3.4. No vector register is preserved.
    preserved: RegSet::of(registers![Gpr: RBX, RBP, R12, R13, R14, R15]),
    preserved_low64: RegSet::EMPTY,
    pinned: &[],
    reserved: RegSet::EMPTY,
    // Figure 3.4: the static chain pointer, of languages (and GNU C's nested functions) that have
    // one.
    context: Some(Reg::Gpr(Gpr::R10)),
    // psABI 3.2.2: the end of the argument area is 16-byte aligned at a call.
    stack_align_bytes: 16,
    base_off_bytes: 8,
    // psABI 3.2.2.
    red_zone_bytes: 128,
    caller_below_bytes: 0,
    copy_align_bytes: 8,
    // psABI 3.2.3 fixes only _Bool, and only to 8 bits. clang and rustc mark narrow values
    // signext or zeroext on both sides and their callees rely on it; gcc extends too.
    narrow: Narrow::ExtendedTo32,
    // psABI 3.2.3: "the size of each argument gets rounded up to eightbytes".
    slots: Slots::Whole,
};

/// psABI 3.2.3, "Classification": the class of an eightbyte. `Empty` is NO_CLASS. COMPLEX_X87 is
/// missing, because only a whole value has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Class {
    Empty,
    Integer,
    Sse,
    SseUp,
    X87,
    X87Up,
    Memory,
}

impl Class {
    /// psABI 3.2.3, "Classification", rule 4.
    fn merge(self, other: Class) -> Class {
        use Class::{Empty, Integer, Memory, Sse, X87, X87Up};
        match (self, other) {
            (a, b) if a == b => a,
            (Empty, class) | (class, Empty) => class,
            (Memory, _) | (_, Memory) => Memory,
            (Integer, _) | (_, Integer) => Integer,
            (X87 | X87Up, _) | (_, X87 | X87Up) => Memory,
            _ => Sse,
        }
    }

    /// The classes of the eightbytes of a type that has no parts.
    fn of_leaf(leaf: &Type) -> &'static [Class] {
        use Class::{Integer, Sse, SseUp, X87, X87Up};
        const VECTOR: [Class; 8] = [Sse, SseUp, SseUp, SseUp, SseUp, SseUp, SseUp, SseUp];
        match leaf {
            Type::F32 | Type::F64 => &VECTOR[..1],
            Type::Vector(width) => &VECTOR[..width.bytes() as usize / 8],
            Type::LongDouble => &[X87, X87Up],
            Type::I128 | Type::U128 => &[Integer, Integer],
            _ => &[Integer],
        }
    }
}

/// The classes of at most eight eightbytes, as a slice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Classes {
    all: [Class; 8],
    count: usize,
}

impl Classes {
    fn empty(count: usize) -> Classes {
        Classes { all: [Class::Empty; 8], count }
    }
}

impl std::ops::Deref for Classes {
    type Target = [Class];

    fn deref(&self) -> &[Class] {
        &self.all[..self.count]
    }
}

impl std::ops::DerefMut for Classes {
    fn deref_mut(&mut self) -> &mut [Class] {
        &mut self.all[..self.count]
    }
}

/// Visits every part of a type as gcc sees it, with its offset and the offset by which gcc judges
/// its alignment. Two things differ from [`Type::each_leaf`]. gcc judges the alignment of all
/// elements of an array by that of the first one. And an array of length 0 inside of an eightbyte
/// has an element to gcc.
fn each_leaf_of_gcc(
    ty: &Type,
    base: u32,
    judged: u32,
    each: &mut EachLeaf<'_>,
) -> ControlFlow<Unaligned> {
    match ty {
        Type::Array(array) if ty.layout(Language::C).size_bytes == 0 => {
            if base.is_multiple_of(8) {
                return ControlFlow::Continue(());
            }
            each_leaf_of_gcc(array.element(), base, judged, each)
        }
        Type::Array(array) => {
            let size = array.element().layout(Language::C).size_bytes;
            let mut elements = 0..array.length();
            elements
                .try_for_each(|i| each_leaf_of_gcc(array.element(), base + i * size, judged, each))
        }
        Type::Struct(record) | Type::Union(record) => {
            let mut fields = record.fields(Language::C);
            fields.try_for_each(|(offset, field)| {
                each_leaf_of_gcc(field, base + offset, judged + offset, each)
            })
        }
        other => other.try_each_leaf(Language::C, base, &mut |off, leaf| {
            each(off, off - base + judged, leaf)
        }),
    }
}

/// The classes of a value of at most eight eightbytes; `None` is class MEMORY.
///
/// The document has no arrays of length 0. clang and rustc ignore them. gcc counts an element,
/// unless the array begins an eightbyte: `struct { float; int[0]; }` is of class SSE or INTEGER.
/// Where a packed struct is the element of an array, gcc checks the alignment of the first element
/// only. The error is the rule that a value breaks where these differences matter.
fn eightbytes(ty: &Type) -> Result<Option<Classes>, &'static str> {
    // Rule 1.
    if ty.layout(Language::C).size_bytes > 64 {
        return Ok(None);
    }
    let classes = eightbytes_of(ty, &|each| {
        ty.try_each_leaf(Language::C, 0, &mut |offset, leaf| each(offset, offset, leaf))
    });
    if !ty.is_aggregate() {
        return Ok(classes);
    }
    if classes == eightbytes_of(ty, &|each| each_leaf_of_gcc(ty, 0, 0, each)) {
        Ok(classes)
    } else {
        Err("gcc and clang disagree where it is, because of an array of length 0 or of packed \
             structs that are not aligned; pass a pointer")
    }
}

/// A part is not aligned as its type requires, which ends a visit: the value is in memory.
struct Unaligned;

/// A visitor. Its arguments are the offset of a part, the offset by which its alignment is judged,
/// and its type.
type EachLeaf<'a> = dyn FnMut(u32, u32, &Type) -> ControlFlow<Unaligned> + 'a;

/// A function that visits every part of a type.
type Leaves<'a> = &'a dyn Fn(&mut EachLeaf<'_>) -> ControlFlow<Unaligned>;

/// The classes of a value of at most eight eightbytes with the leaves that `each_leaf` visits;
/// `None` is class MEMORY.
fn eightbytes_of(ty: &Type, each_leaf: Leaves<'_>) -> Option<Classes> {
    let size = ty.layout(Language::C).size_bytes;
    // Rules 3 and 4, for all levels at once: merging is associative, up to MEMORY, which the
    // post-merger step gives to the whole anyway. A field that is not aligned as its type requires
    // is rule 1; gcc and clang apply it to the parts of complex numbers.
    let mut classes = Classes::empty(size.div_ceil(8) as usize);
    let visit = each_leaf(&mut |offset, judged, leaf| {
        if !judged.is_multiple_of(leaf.layout(Language::C).align_bytes) {
            return ControlFlow::Break(Unaligned);
        }
        let inside = classes.get_mut(offset as usize / 8..).unwrap_or_default();
        for (class, leaf) in inside.iter_mut().zip(Class::of_leaf(leaf)) {
            *class = class.merge(*leaf);
        }
        ControlFlow::Continue(())
    });
    // Rule 5, the post-merger step.
    if visit.is_break() || classes.contains(&Class::Memory) {
        return None;
    }
    for i in 0..classes.len() {
        let before = i.checked_sub(1).map(|before| classes[before]);
        if classes[i] == Class::X87Up && before != Some(Class::X87) {
            return None;
        }
    }
    if let [first, others @ ..] = &*classes
        && others.len() >= 2
        && (*first != Class::Sse || others.iter().any(|class| *class != Class::SseUp))
    {
        return None;
    }
    for i in 0..classes.len() {
        let before = i.checked_sub(1).map(|before| classes[before]);
        if classes[i] == Class::SseUp && !matches!(before, Some(Class::Sse | Class::SseUp)) {
            classes[i] = Class::Sse;
        }
    }
    Some(classes)
}

/// Gives each eightbyte the next register of its class. `None` if too few are left; then it takes
/// none.
fn in_registers(ty: &Type, classes: &[Class], registers: &mut RegQueue) -> Option<Parts> {
    let size = ty.layout(Language::C).size_bytes;
    let mut left = registers.clone();
    let mut parts = Parts::new();
    for (class, off) in classes.iter().zip((0..).step_by(8)) {
        let bytes = (size - off).min(8);
        let mut take = |class| Some(Part::new(left.take(class)?, off, bytes));
        match class {
            Class::Integer => parts.push(take(RegClass::General)?),
            Class::Sse => parts.push(take(RegClass::Vector)?),
            Class::SseUp | Class::X87Up => {
                let last = parts.last_mut();
                last.expect("the post-merger step leaves it after another class").size += bytes;
            }
            Class::X87 => parts.push(Part { place: Place::X87(0), off, size: bytes }),
            Class::Empty => {}
            Class::Memory => unreachable!("the post-merger step"),
        }
    }
    *registers = left;
    Some(parts)
}

/// psABI 3.2.3: a value takes registers for all of its eightbytes, or none and the next
/// eightbytes of the stack. The two classes of registers are independent, and a value on the stack
/// does not stop later ones from using registers.
pub(super) fn classify(
    spec: &'static ConvSpec,
    signature: &Signature,
) -> Result<Assignment, AssignError> {
    let value = |ty, passing| Value::new(ty, Language::C, passing);
    let mut registers = RegQueue::new(spec.int_args, spec.float_args);

    // "Returning of Values": the address of a result in memory is a first parameter.
    let mut result_pointer = None;
    let results = match signature.results() {
        [] => Vec::new(),
        [ty, ..] => vec![value(
            ty,
            classify_result(spec, ty)?.unwrap_or_else(|| {
                let place = Place::Reg(registers.take(RegClass::General).expect("the first one"));
                result_pointer = Some(ResultPointer { place, returned: Some(Reg::Gpr(Gpr::RAX)) });
                Passing::Reference(place)
            }),
        )],
    };

    let mut area = AreaBuilder::new(spec);
    let mut params = Vec::with_capacity(signature.params().len());
    for (index, ty) in signature.params().iter().enumerate() {
        let layout = ty.layout(Language::C);
        // Figure 3.4 and the text before it: unnamed __m256 and __m512 are in memory.
        let unnamed = signature.is_unnamed(index);
        let in_memory =
            |classes: &Classes| classes.contains(&Class::X87) || unnamed && classes.len() > 2;
        let classes = eightbytes(ty)
            .map_err(|rule| AssignError::unsupported(spec, ValueIndex::Param(index), ty, rule))?;
        if unnamed && ty.is_aggregate() && classes.as_ref().is_some_and(|c| c.len() > 2) {
            let rule = "gcc and clang disagree where such a vector in a struct or union is, in the \
                        place of `...`; pass a pointer";
            return Err(AssignError::unsupported(spec, ValueIndex::Param(index), ty, rule));
        }
        let classes = classes.filter(|classes| !in_memory(classes));
        let is_complex_x87 = *ty == Type::Complex(Float::LongDouble);
        let parts = classes
            .filter(|_| !is_complex_x87)
            .and_then(|classes| in_registers(ty, &classes, &mut registers));
        params.push(value(
            ty,
            match parts {
                _ if layout.size_bytes == 0 => Passing::Nothing,
                Some(parts) => Passing::Parts(parts),
                None => {
                    let size = layout.size_bytes.next_multiple_of(8);
                    let index = ValueIndex::Param(index);
                    Passing::Area(area.push(index, ty, size, layout.align_bytes.max(8))?)
                }
            },
        ));
    }
    let args_bytes = area.end();
    area.align_to(8);
    // "%al is used to indicate the number of vector arguments passed to a function requiring a
    // variable number of arguments".
    let vectors = spec.float_args.len() - registers.left(RegClass::Vector);
    let vector_count = signature.named_params().map(|_| (Reg::Gpr(Gpr::RAX), vectors as u8));

    Ok(Assignment {
        spec: Some(spec),
        language: Language::C,
        params,
        results,
        result_pointer,
        vector_count,
        args_bytes,
        results_off: area.end(),
        results_bytes: 0,
        spill_off: area.end(),
        spill_bytes: 0,
        total_bytes: area.end(),
        area_align_bytes: area.align(),
    })
}

/// The registers of a result; `None` is class MEMORY.
fn classify_result(spec: &'static ConvSpec, ty: &Type) -> Result<Option<Passing>, AssignError> {
    if ty.layout(Language::C).size_bytes == 0 {
        return Ok(Some(Passing::Nothing));
    }
    // Class COMPLEX_X87: the real part in st0, the imaginary part in st1.
    if *ty == Type::Complex(Float::LongDouble) {
        let parts =
            (0..2_u8).map(|i| Part { place: Place::X87(i), off: u32::from(i) * 16, size: 16 });
        return Ok(Some(Passing::Parts(parts.collect())));
    }
    let classes = eightbytes(ty)
        .map_err(|rule| AssignError::unsupported(spec, ValueIndex::Result(0), ty, rule))?;
    let mut registers = RegQueue::new(spec.int_results, spec.float_results);
    Ok(classes.map(|classes| {
        let parts = in_registers(ty, &classes, &mut registers);
        Passing::Parts(parts.expect(
            "at most two eightbytes are not SSEUP, and there are two registers of each class",
        ))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::Convention;
    use crate::abi::assign::MAX_AREA_BYTES;

    fn assign(text: &str) -> Assignment {
        let signature: Signature = text.parse().expect("a signature");
        Convention::SystemV.assign(&signature).expect("assignable")
    }

    /// psABI 3.2.3, with the register order of Figure 3.4.
    #[test]
    fn scalar_table() {
        for (signature, expected, args_bytes) in [
            ("fn()", "no values", 0),
            ("fn() -> f32", "r0: xmm0", 0),
            ("fn() -> bool", "r0: rax", 0),
            ("fn(i64, f64) -> u8", "p0: rdi  p1: xmm0  r0: rax", 0),
            (
                "fn(ptr, i8, u16, i32, usize, bool)",
                "p0: rdi  p1: rsi  p2: rdx  p3: rcx  p4: r8  p5: r9",
                0,
            ),
            // The seventh integer goes to the stack, floats and later integers are unaffected.
            (
                "fn(i64, i64, i64, i64, i64, i64, i8, f32, u16) -> f64",
                "p0: rdi  p1: rsi  p2: rdx  p3: rcx  p4: r8  p5: r9  p6: [arg+0]  p7: xmm0  \
                 p8: [arg+8]  r0: xmm0",
                16,
            ),
            // The ninth float too: an f32 takes an eightbyte.
            (
                "fn(f64, f32, f64, f32, f64, f32, f64, f32, f32, i64, f64)",
                "p0: xmm0  p1: xmm1  p2: xmm2  p3: xmm3  p4: xmm4  p5: xmm5  p6: xmm6  p7: xmm7  \
                 p8: [arg+0]  p9: rdi  p10: [arg+8]",
                16,
            ),
        ] {
            let assignment = assign(signature);
            assert_eq!(assignment.to_string(), expected, "{signature}");
            assert_eq!(assignment.args_bytes(), args_bytes, "{signature}");
            assert_eq!(assignment.total_bytes(), args_bytes, "{signature}");
            assert_eq!(assignment.spill_bytes(), 0);
        }
    }

    #[test]
    fn two_results_are_refused() {
        let two = Signature::new([], [Type::I64, Type::Bool]);
        let error = Convention::SystemV.assign(&two).expect_err("two results");
        assert_eq!(
            error.to_string(),
            "SystemV, result 1 (bool): the convention returns one value; return the others \
             through a pointer parameter"
        );
    }

    #[test]
    fn the_area_is_limited() {
        let words = MAX_AREA_BYTES as usize / 8;
        let fits = Signature::new(vec![Type::I8; 6 + words], []);
        assert_eq!(Convention::SystemV.assign(&fits).map(|a| a.args_bytes()), Ok(MAX_AREA_BYTES));
        let error =
            Convention::SystemV.assign(&fits.with_param(Type::U16)).expect_err("one word too many");
        assert_eq!(
            error.to_string(),
            "SystemV, parameter 518 (u16): it ends more than 4096 bytes into the stack area; \
             pass a pointer to a record instead"
        );
    }

    #[test]
    fn sets() {
        assert_eq!(SPEC.preserved.to_string(), "{rbx, rbp, r12, r13, r14, r15}");
        assert_eq!(
            SPEC.volatile().minus(RegSet::ALL_XMMS).to_string(),
            "{rax, rcx, rdx, rsi, rdi, r8, r9, r10, r11}"
        );
        assert_eq!(SPEC.volatile().xmms().count(), 16);
    }
}
