//! C on AArch64: the standard, and Apple's variant of it.
//!
//! Sources: Procedure Call Standard for the Arm 64-bit Architecture (AAPCS64), 2023Q3, sections
//! 6.4 to 6.9; Apple, "Writing ARM64 code for Apple platforms". Where these say nothing, GNU C is
//! followed, and the place is marked.
//!
//! # Worked examples
//!
//! ```
//! use footbridge::abi::Convention;
//!
//! for (signature, places) in [
//!     // Integers and floats count separately.
//!     ("fn(i64, f64, i8) -> u8", "p0: x0  p1: v0  p2: x1  r0: x0"),
//!     // A homogeneous aggregate has a vector register for each element.
//!     ("fn(struct { f32, f32, f32 })", "p0.0: v0  p0.4: v1  p0.8: v2"),
//!     // Other composite types of up to 16 bytes are doublewords, larger ones have a reference.
//!     ("fn(struct { i64, i8 }, [i64; 3])", "p0.0: x0  p0.8: x1  p1: [x2]"),
//!     // 16-byte alignment needs a register of even number.
//!     ("fn(i8, i128)", "p0: x0  p1.0: x2  p1.8: x3"),
//!     // The address of a large result is in x8, which does not come back.
//!     ("fn(i8) -> [i64; 3]", "p0: x0  r0: [x8]"),
//! ] {
//!     let assignment = Convention::Aapcs64.assign(&signature.parse()?)?;
//!     assert_eq!(assignment.to_string(), places, "{signature}");
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use super::spec::{ConvSpec, Narrow, Slots, registers};
use crate::abi::assign::{
    AreaBuilder, AssignError, Assignment, Passing, RegQueue, ResultPointer, Value,
};
use crate::abi::place::{Part, Place};
use crate::abi::reg::{Arch, Reg, RegClass, RegSet, Xreg};
use crate::abi::types::{Float, Language, Signature, Type, ValueIndex, VectorWidth};

// AAPCS64 6.1.1 and 6.1.2.
const INTS: &[Reg] = registers![Xreg: X0, X1, X2, X3, X4, X5, X6, X7];
const FLOATS: &[Reg] = registers![Vreg: V0, V1, V2, V3, V4, V5, V6, V7];
const PRESERVED: RegSet =
    RegSet::of(registers![Xreg: X19, X20, X21, X22, X23, X24, X25, X26, X27, X28, X29]);
const PRESERVED_LOW64: RegSet = RegSet::of(registers![Vreg: V8, V9, V10, V11, V12, V13, V14, V15]);

pub(super) static STANDARD: ConvSpec = ConvSpec {
    name: "Aapcs64",
    arch: Arch::Aarch64,
    language: Language::C,
    int_args: INTS,
    float_args: FLOATS,
    // AAPCS64 6.9: as if the result were a first parameter.
    int_results: INTS,
    float_results: FLOATS,
    preserved: PRESERVED,
    preserved_low64: PRESERVED_LOW64,
    pinned: &[],
    // AAPCS64 6.1.1: x18 is the platform's. On Linux it is a scratch register; portable code does
    // not write it.
    reserved: RegSet::of(registers![Xreg: X18]),
    context: None,
    // AAPCS64 6.4.5.1.
    stack_align_bytes: 16,
    base_off_bytes: 0,
    red_zone_bytes: 0,
    caller_below_bytes: 0,
    copy_align_bytes: 8,
    // AAPCS64 6.8.2: "the content of the unused bits is unspecified".
    narrow: Narrow::Garbage,
    slots: Slots::Exact,
};

pub(super) static APPLE: ConvSpec = ConvSpec {
    name: "AppleAarch64",
    arch: Arch::Aarch64,
    language: Language::C,
    int_args: INTS,
    float_args: FLOATS,
    int_results: INTS,
    float_results: FLOATS,
    preserved: PRESERVED,
    preserved_low64: PRESERVED_LOW64,
    pinned: &[],
    reserved: RegSet::of(registers![Xreg: X18]),
    context: None,
    stack_align_bytes: 16,
    base_off_bytes: 0,
    // "Respect the stack's red zone".
    red_zone_bytes: 128,
    caller_below_bytes: 0,
    copy_align_bytes: 8,
    // "The caller of a function is responsible for signing or zero-extending any argument with
    // fewer than 32 bits."
    narrow: Narrow::ExtendedTo32,
    slots: Slots::Exact,
};

/// The differences between the variants, apart from `ConvSpec`.
struct Rules {
    /// Whether integers and structs of 16-byte alignment start in a register of even number.
    even_pairs: bool,
    /// The least size and alignment of a parameter on the stack that is one number, or a
    /// homogeneous aggregate.
    least_slot_bytes: u32,
    /// Whether unnamed arguments are always on the stack.
    unnamed_on_stack: bool,
    /// Whether `long double` is another type than `double`.
    has_long_double: bool,
    /// Whether a struct of one complex number or one short vector and no other bytes is passed like
    /// that number or vector, even if it has an array of length 0. It is gcc's machine mode of the
    /// struct; clang differs.
    is_what_fills_it: bool,
}

const STANDARD_RULES: Rules = Rules {
    even_pairs: true,
    least_slot_bytes: 8,
    unnamed_on_stack: false,
    has_long_double: true,
    is_what_fills_it: true,
};

/// "Pass arguments to functions correctly" and "Update code that passes arguments to variadic
/// functions". clang's reading is that structs on the stack still take whole words.
const APPLE_RULES: Rules = Rules {
    even_pairs: false,
    least_slot_bytes: 1,
    unnamed_on_stack: true,
    has_long_double: false,
    is_what_fills_it: false,
};

/// How a value uses registers.
enum Class {
    /// An integer or pointer of at most 8 bytes.
    Integer,
    /// `count` numbers or vectors of `bytes` bytes, each in a vector register: one for a number or
    /// vector, several for a homogeneous aggregate.
    Floats { count: u32, bytes: u32 },
    /// 16 bytes of integer, or any other composite type of at most 16 bytes.
    Doublewords,
    /// A composite type of more than 16 bytes: AAPCS64 6.8.2, B.4.
    Reference,
}

/// AAPCS64 5.10 and 6.8.2.
fn class(ty: &Type, rules: &Rules) -> Class {
    let size = ty.layout(Language::C).size_bytes;
    let filling = if rules.is_what_fills_it { filling(ty) } else { None };
    if let Some((count, element)) = homogeneous(filling.unwrap_or(ty))
        && (1..=4).contains(&count)
    {
        let bytes = element.layout(Language::C).size_bytes;
        // No padding: GNU C and clang.
        if size == count * bytes {
            return Class::Floats { count, bytes };
        }
    }
    match size {
        _ if ty.is_word() => Class::Integer,
        0..=16 => Class::Doublewords,
        _ => Class::Reference,
    }
}

/// The complex number or vector that makes up a struct, if the struct has no other bytes.
fn filling(ty: &Type) -> Option<&Type> {
    let size = ty.layout(Language::C).size_bytes;
    match ty {
        Type::Complex(_) | Type::Vector(_) => Some(ty),
        Type::Array(array) if array.length() == 1 => filling(array.element()),
        Type::Struct(record) => {
            let bytes = |field: &&Type| field.layout(Language::C).size_bytes;
            let field = record.spec().fields.iter().find(|field| bytes(field) != 0)?;
            if bytes(&field) == size { filling(field) } else { None }
        }
        _ => None,
    }
}

/// AAPCS64 5.9.5: the number of elements of a homogeneous aggregate, and their one type. A single
/// number has 1. Vectors of one size are one type, independent of their elements. An empty struct
/// inside has 0 elements of any type; an array of length 0 makes the whole no homogeneous aggregate
/// (gcc and clang).
fn homogeneous(ty: &Type) -> Option<(u32, Type)> {
    /// No elements: their type agrees with every type.
    const ANY: (u32, Type) = (0, Type::Bool);
    fn same(a: &(u32, Type), b: &(u32, Type)) -> Option<Type> {
        match (a, b) {
            ((0, _), (_, ty)) | ((_, ty), (0, _)) => Some(ty.clone()),
            ((_, a), (_, b)) => (a == b).then(|| a.clone()),
        }
    }
    Some(match ty {
        Type::F32
        | Type::F64
        | Type::LongDouble
        | Type::Vector(VectorWidth::V64 | VectorWidth::V128) => (1, ty.clone()),
        Type::Complex(float) => (2, float.ty()),
        Type::Array(array) => {
            if array.length() == 0 {
                return None;
            }
            let (count, element) = homogeneous(array.element())?;
            (count.checked_mul(array.length())?, element)
        }
        Type::Struct(record) => {
            let mut all = ANY;
            for (_, field) in record.fields(Language::C) {
                let field = homogeneous(field)?;
                all = (all.0.checked_add(field.0)?, same(&all, &field)?);
            }
            all
        }
        Type::Union(record) => {
            let mut all = ANY;
            for (_, field) in record.fields(Language::C) {
                let field = homogeneous(field)?;
                all = (all.0.max(field.0), same(&all, &field)?);
            }
            all
        }
        _ => return None,
    })
}

/// AAPCS64 6.8.2, "natural alignment": the alignment without `RecordSpec::align`.
fn natural_align(ty: &Type) -> u32 {
    match ty {
        Type::Struct(record) | Type::Union(record) => record.natural_align_bytes(),
        // An array has members, its elements, and no alignment besides theirs.
        _ => ty.layout(Language::C).align_bytes,
    }
}

/// Whether the type is or contains a `long double`. Like every question about types in this file it
/// costs a visit of the types that are mentioned, not of each element of an array.
fn has_long_double(ty: &Type) -> bool {
    match ty {
        Type::LongDouble | Type::Complex(Float::LongDouble) => true,
        Type::Array(array) => has_long_double(array.element()),
        Type::Struct(record) | Type::Union(record) => {
            record.spec().fields.iter().any(has_long_double)
        }
        _ => false,
    }
}

/// Whether the type is or contains a vector that is no short vector. gcc and clang align it to 16
/// bytes and not to its size, because AAPCS64 has no alignment for it.
fn has_long_vector(ty: &Type) -> bool {
    match ty {
        Type::Vector(width) => width.bytes() > 16,
        Type::Array(array) => has_long_vector(array.element()),
        Type::Struct(record) | Type::Union(record) => {
            record.spec().fields.iter().any(has_long_vector)
        }
        _ => false,
    }
}

/// The registers of a value, if enough are left: AAPCS64 6.8.2, C.1 to C.13.
fn in_registers(
    ty: &Type,
    class: &Class,
    rules: &Rules,
    registers: &mut RegQueue,
) -> Option<Passing> {
    let size = ty.layout(Language::C).size_bytes;
    let (class, count, bytes) = match *class {
        Class::Floats { count, bytes } => (RegClass::Vector, count, bytes),
        Class::Integer => (RegClass::General, 1, size),
        Class::Doublewords => (RegClass::General, size.div_ceil(8), 8),
        Class::Reference => {
            let register = registers.take(RegClass::General)?;
            return Some(Passing::Reference(Place::Reg(register)));
        }
    };
    // C.10: the next even register. There are 8, so an odd number left means that the next one is
    // odd.
    if class == RegClass::General
        && rules.even_pairs
        && natural_align(ty) >= 16
        && registers.left(class) % 2 == 1
    {
        registers.take(class);
    }
    // C.3 and C.13: a value that does not fit ends the use of its class.
    if registers.left(class) < count as usize {
        registers.exhaust(class);
        return None;
    }
    let parts = (0..count).map(|i| {
        let register = registers.take(class).expect("as many are left");
        Part::new(register, i * bytes, bytes.min(size - i * bytes))
    });
    Some(Passing::Parts(parts.collect()))
}

pub(super) fn classify(
    spec: &'static ConvSpec,
    signature: &Signature,
) -> Result<Assignment, AssignError> {
    classify_by(&STANDARD_RULES, spec, signature)
}

pub(super) fn classify_apple(
    spec: &'static ConvSpec,
    signature: &Signature,
) -> Result<Assignment, AssignError> {
    classify_by(&APPLE_RULES, spec, signature)
}

fn classify_by(
    rules: &Rules,
    spec: &'static ConvSpec,
    signature: &Signature,
) -> Result<Assignment, AssignError> {
    let value = |ty, passing| Value::new(ty, Language::C, passing);
    let check = |index, ty: &Type| {
        let rule = if !rules.has_long_double && has_long_double(ty) {
            "Apple's long double is f64"
        } else if !matches!(ty, Type::Vector(_)) && has_long_vector(ty) {
            "vectors of more than 128 bits are aligned to 16 bytes on AArch64, so what has one \
             among its fields is laid out differently; pass a pointer"
        } else {
            return Ok(());
        };
        Err(AssignError::unsupported(spec, index, ty, rule))
    };

    // AAPCS64 6.9.
    let mut result_pointer = None;
    let mut results = Vec::new();
    for (index, ty) in signature.results().iter().enumerate() {
        check(ValueIndex::Result(index), ty)?;
        results.push(value(
            ty,
            match class(ty, rules) {
                _ if ty.layout(Language::C).size_bytes == 0 => Passing::Nothing,
                Class::Reference => {
                    // "The callee is not required to preserve the value stored in x8."
                    let place = Place::Reg(Reg::Xreg(Xreg::X8));
                    let returned = None;
                    result_pointer = Some(ResultPointer { place, returned });
                    Passing::Reference(place)
                }
                class => {
                    let mut registers = RegQueue::new(spec.int_results, spec.float_results);
                    let passing = in_registers(ty, &class, rules, &mut registers);
                    passing.expect("eight registers are enough for one value")
                }
            },
        ));
    }

    let mut registers = RegQueue::new(spec.int_args, spec.float_args);
    let mut area = AreaBuilder::new(spec);
    let mut params = Vec::with_capacity(signature.params().len());
    for (index, ty) in signature.params().iter().enumerate() {
        let on_stack = rules.unnamed_on_stack && signature.is_unnamed(index);
        let least_slot = if on_stack { 8 } else { rules.least_slot_bytes };
        let index = ValueIndex::Param(index);
        check(index, ty)?;
        let layout = ty.layout(Language::C);
        // GNU C: a value without bytes takes no part.
        if layout.size_bytes == 0 {
            params.push(value(ty, Passing::Nothing));
            continue;
        }
        let class = class(ty, rules);
        let passing = if on_stack { None } else { in_registers(ty, &class, rules, &mut registers) };
        let passing = match (passing, &class) {
            (Some(passing), _) => passing,
            (None, Class::Reference) => {
                Passing::Reference(Place::Area(area.push(index, ty, 8, 8)?))
            }
            // C.4 to C.6 and C.14 to C.17.
            (None, _) => {
                let least = match class {
                    Class::Integer | Class::Floats { .. } => least_slot,
                    _ => 8,
                };
                let align = natural_align(ty).clamp(least, 16);
                let size = layout.size_bytes.next_multiple_of(least);
                Passing::Area(area.push(index, ty, size, align)?)
            }
        };
        params.push(value(ty, passing));
    }
    let args_bytes = area.end();
    area.align_to(8);

    Ok(Assignment {
        spec: Some(spec),
        language: Language::C,
        params,
        results,
        result_pointer,
        vector_count: None,
        args_bytes,
        results_off: area.end(),
        results_bytes: 0,
        spill_off: area.end(),
        spill_bytes: 0,
        total_bytes: area.end(),
        area_align_bytes: area.align(),
    })
}
