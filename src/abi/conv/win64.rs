//! C on amd64 Windows.
//!
//! Source: Microsoft, "x64 calling convention" and "x64 ABI conventions" (learn.microsoft.com,
//! "C++ in Visual Studio"). For what Microsoft's compiler does not have, GNU C is followed
//! (`__attribute__((ms_abi))` of gcc 12): `long double` of 16 bytes, 128-bit integers, complex
//! numbers and empty structs. Each such place is marked "GNU C".
//!
//! # Worked examples
//!
//! ```
//! use footbridge::abi::Convention;
//!
//! for (signature, places) in [
//!     // The n-th parameter uses the n-th register of one of the two lists.
//!     ("fn(i64, f64, i8) -> u8", "p0: rcx  p1: xmm1  p2: r8  r0: rax"),
//!     // Structs of 1, 2, 4 or 8 bytes are integers, others are passed by reference.
//!     ("fn(struct { f32, f32 }, [u8; 3])", "p0: rcx  p1: [rdx]"),
//!     // The stack starts above the homes of the four registers.
//!     (
//!         "fn(i64, i64, i64, i64, f32, [i64; 2])",
//!         "p0: rcx  p1: rdx  p2: r8  p3: r9  p4: [arg+32]  p5: [[arg+40]]",
//!     ),
//!     // The address of a large result takes the first slot, and comes back in rax.
//!     ("fn(f64) -> [i64; 3]", "p0: xmm1  r0: [rcx] at rax"),
//!     // An unnamed float is in both registers of its slot.
//!     ("fn(ptr, ..., f64)", "p0: rcx  p1.0: xmm1  p1.0: rdx"),
//! ] {
//!     let assignment = Convention::Win64.assign(&signature.parse()?)?;
//!     assert_eq!(assignment.to_string(), places, "{signature}");
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use super::spec::{ConvSpec, Narrow, Slots, registers};
use crate::abi::assign::{AreaBuilder, AssignError, Assignment, Passing, ResultPointer, Value};
use crate::abi::place::{Part, Place};
use crate::abi::reg::{Arch, Gpr, Reg, RegSet};
use crate::abi::types::{Language, Signature, Type, ValueIndex, VectorWidth};

pub(super) static SPEC: ConvSpec = ConvSpec {
    name: "Win64",
    arch: Arch::Amd64,
    language: Language::C,
    // "Parameter passing". The n-th parameter uses the n-th register of one of the lists.
    int_args: registers![Gpr: RCX, RDX, R8, R9],
    float_args: registers![Xmm: XMM0, XMM1, XMM2, XMM3],
    // "Return values".
    int_results: registers![Gpr: RAX],
    float_results: registers![Xmm: XMM0],
    // "Caller/callee saved registers". The upper halves of ymm6 to ymm15 are not preserved.
    preserved: RegSet::of(registers![Gpr: RBX, RBP, RDI, RSI, R12, R13, R14, R15]).union(
        RegSet::of(registers![
            Xmm: XMM6, XMM7, XMM8, XMM9, XMM10, XMM11, XMM12, XMM13, XMM14, XMM15
        ]),
    ),
    preserved_low64: RegSet::EMPTY,
    pinned: &[],
    reserved: RegSet::EMPTY,
    // GNU C: the static chain pointer of nested functions.
    context: Some(Reg::Gpr(Gpr::R10)),
    // "x64 stack usage".
    stack_align_bytes: 16,
    base_off_bytes: 8,
    red_zone_bytes: 0,
    caller_below_bytes: 0,
    // "Parameter passing": the memory must be 16-byte aligned.
    copy_align_bytes: 16,
    // "Parameter passing": unused bits are undefined, and Microsoft's callees do not read them.
    // rustc's `extern "win64"` marks narrow values signext or zeroext.
    narrow: Narrow::Distrusted,
    // "All arguments are passed in 8-byte slots".
    slots: Slots::Whole,
};

/// "The caller must allocate space for four register parameters": their homes.
const SHADOW_BYTES: u32 = 32;

/// What the slot of a parameter holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Its bytes, in a general-purpose register.
    Integer,
    /// Its bytes, in a vector register.
    Float,
    /// Its address.
    Reference,
}

/// "Parameter passing": structs and unions of 1, 2, 4 or 8 bytes and `__m64` are passed like
/// integers, independent of their fields. GNU C: so is a complex number of 8 bytes, and an empty
/// struct has an address.
fn class(ty: &Type) -> Class {
    match (ty, ty.layout(Language::C).size_bytes) {
        (Type::F32 | Type::F64, _) => Class::Float,
        (_, 1 | 2 | 4 | 8) => Class::Integer,
        _ => Class::Reference,
    }
}

pub(super) fn classify(
    spec: &'static ConvSpec,
    signature: &Signature,
) -> Result<Assignment, AssignError> {
    let value = |ty, passing| Value::new(ty, Language::C, passing);
    // The slots of all parameters, one after the other; the first four are the registers' homes.
    let mut slots = AreaBuilder::new(spec);

    let mut result_pointer = None;
    let results = match signature.results() {
        [] => Vec::new(),
        [ty, ..] => {
            let passing = match classify_result(spec, ty)? {
                Some(passing) => passing,
                None => {
                    slots.push(ValueIndex::Result(0), ty, 8, 8)?;
                    let place = Place::Reg(spec.int_args[0]);
                    result_pointer =
                        Some(ResultPointer { place, returned: Some(Reg::Gpr(Gpr::RAX)) });
                    Passing::Reference(place)
                }
            };
            vec![value(ty, passing)]
        }
    };

    let mut params = Vec::with_capacity(signature.params().len());
    for (index, ty) in signature.params().iter().enumerate() {
        let slot_off = slots.push(ValueIndex::Param(index), ty, 8, 8)?;
        let slot = (slot_off / 8) as usize;
        let size = ty.layout(Language::C).size_bytes;
        let class = class(ty);
        let Some(&integer) = spec.int_args.get(slot) else {
            params.push(value(
                ty,
                match class {
                    Class::Reference => Passing::Reference(Place::Area(slot_off)),
                    _ => Passing::Area(slot_off),
                },
            ));
            continue;
        };
        let float = spec.float_args[slot];
        let passing = match class {
            Class::Reference => Passing::Reference(Place::Reg(integer)),
            Class::Integer => Passing::Parts(Part::new(integer, 0, size).into()),
            // "Varargs": both registers contain an unnamed floating-point value.
            Class::Float if signature.is_unnamed(index) => {
                let both = [float, integer].into_iter();
                Passing::Parts(both.map(|register| Part::new(register, 0, size)).collect())
            }
            Class::Float => Passing::Parts(Part::new(float, 0, size).into()),
        };
        let value = value(ty, passing);
        params.push(match class {
            Class::Reference => value,
            _ => value.with_home(slot_off),
        });
    }
    let args_bytes = slots.end();
    let total_bytes = args_bytes.max(SHADOW_BYTES);

    Ok(Assignment {
        spec: Some(spec),
        language: Language::C,
        params,
        results,
        result_pointer,
        vector_count: None,
        args_bytes,
        results_off: total_bytes,
        results_bytes: 0,
        spill_off: 0,
        spill_bytes: SHADOW_BYTES,
        total_bytes,
        area_align_bytes: spec.stack_align_bytes,
    })
}

/// "Return values". `None` is a result in memory that the caller provides.
fn classify_result(spec: &'static ConvSpec, ty: &Type) -> Result<Option<Passing>, AssignError> {
    let size = ty.layout(Language::C).size_bytes;
    let register = match (ty, size) {
        (_, 0) => return Ok(Some(Passing::Nothing)),
        (Type::F32 | Type::F64, _) => spec.float_results[0],
        // __m128; GNU C and rustc: a 128-bit integer too.
        (Type::Vector(VectorWidth::V128) | Type::I128 | Type::U128, _) => spec.float_results[0],
        (Type::Vector(VectorWidth::V256 | VectorWidth::V512), _) => {
            let rule = "Microsoft's compiler returns it in a register, GNU C in memory; return it \
                        through a pointer parameter";
            return Err(AssignError::unsupported(spec, ValueIndex::Result(0), ty, rule));
        }
        (_, 1 | 2 | 4 | 8) => spec.int_results[0],
        _ => return Ok(None),
    };
    Ok(Some(Passing::Parts(Part::new(register, 0, size).into())))
}
