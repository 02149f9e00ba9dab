//! Go's ABIInternal, on amd64 and AArch64.
//!
//! Source: `cmd/compile/abi-internal.md` of Go 1.27, checked against the compiler's own analysis
//! (`cmd/compile/internal/abi/abiutils.go`) in `tests/abi.rs`.
//!
//! # Worked examples
//!
//! ```
//! use footbridge::abi::Convention;
//!
//! for (signature, places) in [
//!     // Results use the sequence of the parameters' registers.
//!     ("fn(i64, f64) -> (i8, iface)", "p0: rax  p1: xmm0  r0: rax  r1.0: rbx  r1.8: rcx"),
//!     // Each part of a value has a register, also two parts of one word.
//!     (
//!         "fn(struct { i8, f32 }, slice)",
//!         "p0.0: rax  p0.4: xmm0  p1.0: rbx  p1.8: rcx  p1.16: rdi",
//!     ),
//!     // An array of more than one element is on the stack.
//!     ("fn([i32; 2], i8) -> [u8; 1]", "p0: [arg+0]  p1: rax  r0: rax"),
//! ] {
//!     let assignment = Convention::GoAbiInternal.assign(&signature.parse()?)?;
//!     assert_eq!(assignment.to_string(), places, "{signature}");
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::ops::ControlFlow;

use super::spec::{ConvSpec, Narrow, Pinned, Slots, registers};
use crate::abi::assign::{AreaBuilder, AssignError, Assignment, Passing, RegQueue, Value};
use crate::abi::place::{Part, Parts};
use crate::abi::reg::{Arch, Gpr, Reg, RegClass, RegSet, Xmm, Xreg};
use crate::abi::types::{Language, Signature, Type, ValueIndex};

/// `cmd/compile/abi-internal.md`, "amd64 architecture": results use the parameters' sequence.
const AMD64_INTS: &[Reg] = registers![Gpr: RAX, RBX, RCX, RDI, RSI, R8, R9, R10, R11];

/// The same for floats: X0 to X14.
const AMD64_FLOATS: &[Reg] = registers![
    Xmm: XMM0, XMM1, XMM2, XMM3, XMM4, XMM5, XMM6, XMM7, XMM8, XMM9, XMM10, XMM11, XMM12, XMM13,
    XMM14,
];

// All facts without a remark: `cmd/compile/abi-internal.md`, "amd64 architecture".
pub(super) static AMD64: ConvSpec = ConvSpec {
    name: "GoAbiInternal",
    arch: Arch::Amd64,
    language: Language::Go,
    int_args: AMD64_INTS,
    float_args: AMD64_FLOATS,
    int_results: AMD64_INTS,
    float_results: AMD64_FLOATS,
    // The frame pointer, and nothing else: `obj/x86/obj6.go`, preprocess.
    preserved: RegSet::of(registers![Gpr: RBP]),
    preserved_low64: RegSet::EMPTY,
    pinned: &[(Reg::Gpr(Gpr::R14), Pinned::Goroutine), (Reg::Xmm(Xmm::XMM15), Pinned::Zero)],
    reserved: RegSet::EMPTY,
    context: Some(Reg::Gpr(Gpr::RDX)),
    stack_align_bytes: 8,
    base_off_bytes: 8,
    red_zone_bytes: 0,
    caller_below_bytes: 0,
    copy_align_bytes: 8,
    // "Function call argument and result passing": the upper bits are unspecified, both ways.
    narrow: Narrow::Garbage,
    slots: Slots::Exact,
};

/// "arm64 architecture": R0 to R15.
const AARCH64_INTS: &[Reg] = registers![
    Xreg: X0, X1, X2, X3, X4, X5, X6, X7, X8, X9, X10, X11, X12, X13, X14, X15,
];

/// F0 to F15.
const AARCH64_FLOATS: &[Reg] = registers![
    Vreg: V0, V1, V2, V3, V4, V5, V6, V7, V8, V9, V10, V11, V12, V13, V14, V15,
];

// All facts without a remark: `cmd/compile/abi-internal.md`, "arm64 architecture".
pub(super) static AARCH64: ConvSpec = ConvSpec {
    name: "GoAbiInternalAarch64",
    arch: Arch::Aarch64,
    language: Language::Go,
    int_args: AARCH64_INTS,
    float_args: AARCH64_FLOATS,
    int_results: AARCH64_INTS,
    float_results: AARCH64_FLOATS,
    preserved: RegSet::of(registers![Xreg: X29]),
    preserved_low64: RegSet::EMPTY,
    pinned: &[(Reg::Xreg(Xreg::X28), Pinned::Goroutine)],
    reserved: RegSet::of(registers![Xreg: X18]),
    context: Some(Reg::Xreg(Xreg::X26)),
    stack_align_bytes: 16,
    // The word at the stack pointer is the caller's saved link register: FixedFrameSize of
    // `cmd/internal/sys/arch.go`.
    base_off_bytes: 8,
    red_zone_bytes: 0,
    // The caller's saved frame pointer: `obj/arm64/obj7.go`, preprocess.
    caller_below_bytes: 8,
    copy_align_bytes: 8,
    narrow: Narrow::Garbage,
    slots: Slots::Exact,
};

/// "Function call argument and result passing", in the document's order:
///
/// 1. parameters in registers, each with a home in the spill area;
/// 2. the other parameters on the stack, packed with natural alignment;
/// 3. from the next word, the results that are not in registers;
/// 4. from the next word, the spill area.
///
/// A value for which too few registers are left takes none, and later values may still use those.
pub(super) fn classify(
    spec: &'static ConvSpec,
    signature: &Signature,
) -> Result<Assignment, AssignError> {
    let mut stack = AreaBuilder::new(spec);
    let mut spill = AreaBuilder::new(spec);
    let on_stack = |stack: &mut AreaBuilder, index, ty: &Type| {
        let layout = ty.layout(Language::Go);
        let offset = stack.push(index, ty, layout.size_bytes, layout.align_bytes)?;
        Ok(Value::new(ty, Language::Go, Passing::Area(offset)))
    };

    let mut registers = RegQueue::new(spec.int_args, spec.float_args);
    let mut params = Vec::with_capacity(signature.params().len());
    for (index, ty) in signature.params().iter().enumerate() {
        let index = ValueIndex::Param(index);
        params.push(match in_registers(ty, &mut registers) {
            Some(parts) => {
                let layout = ty.layout(Language::Go);
                let home = spill.push(index, ty, layout.size_bytes, layout.align_bytes)?;
                Value::new(ty, Language::Go, Passing::Parts(parts)).with_home(home)
            }
            None => on_stack(&mut stack, index, ty)?,
        });
    }
    let args_bytes = stack.end();
    stack.align_to(8);
    let results_off = stack.end();

    let mut registers = RegQueue::new(spec.int_results, spec.float_results);
    let mut results = Vec::with_capacity(signature.results().len());
    for (index, ty) in signature.results().iter().enumerate() {
        results.push(match in_registers(ty, &mut registers) {
            Some(parts) => Value::new(ty, Language::Go, Passing::Parts(parts)),
            None => on_stack(&mut stack, ValueIndex::Result(index), ty)?,
        });
    }
    let results_bytes = stack.end() - results_off;
    stack.align_to(8);
    spill.align_to(8);

    Ok(Assignment {
        spec: Some(spec),
        language: Language::Go,
        params,
        results,
        result_pointer: None,
        vector_count: None,
        args_bytes,
        results_off,
        results_bytes,
        spill_off: stack.end(),
        spill_bytes: spill.end(),
        total_bytes: stack.end() + spill.end(),
        area_align_bytes: stack.align(),
    })
}

/// A register for each part of a value. `None` if too few are left, or if such a value is never in
/// registers; then it takes none.
fn in_registers(ty: &Type, registers: &mut RegQueue) -> Option<Parts> {
    // "If T has size 0": such values are on the stack.
    if ty.layout(Language::Go).size_bytes == 0 || !is_assignable(ty) {
        return None;
    }
    let mut left = registers.clone();
    let mut parts = Parts::new();
    let visit = ty.try_each_leaf(Language::Go, 0, &mut |offset, leaf| {
        let class = match leaf {
            Type::F32 | Type::F64 => RegClass::Vector,
            _ => RegClass::General,
        };
        let Some(register) = left.take(class) else { return ControlFlow::Break(()) };
        parts.push(Part::new(register, offset, leaf.layout(Language::Go).size_bytes));
        ControlFlow::Continue(())
    });
    if visit.is_break() {
        return None;
    }
    *registers = left;
    Some(parts)
}

/// "If T is an array type of length > 1: fail", at any level.
fn is_assignable(ty: &Type) -> bool {
    match ty {
        Type::Array(array) => match array.length() {
            0 => true,
            1 => is_assignable(array.element()),
            _ => false,
        },
        Type::Struct(record) => record.spec().fields.iter().all(is_assignable),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::Convention;

    fn assign(text: &str) -> Assignment {
        let signature: Signature = text.parse().expect("a signature");
        Convention::GoAbiInternal.assign(&signature).expect("assignable")
    }

    #[test]
    fn several_results_share_the_registers_of_the_parameters() {
        let assignment = assign("fn(i8, f32, ptr) -> (bool, f64, i64)");
        assert_eq!(
            assignment.to_string(),
            "p0: rax  p1: xmm0  p2: rbx  r0: rax  r1: xmm0  r2: rbx"
        );
        // The homes: i8 at 0, f32 at 4, ptr at 8.
        let homes: Vec<_> = assignment.params().iter().map(Value::home_off).collect();
        assert_eq!(homes, [Some(0), Some(4), Some(8)]);
        assert_eq!((assignment.spill_off(), assignment.spill_bytes()), (0, 16));
        assert_eq!(assignment.total_bytes(), 16);
    }

    #[test]
    fn the_stack_is_packed_and_sections_start_at_words() {
        let ten = "i64, i64, i64, i64, i64, i64, i64, i64, i64";
        let assignment = assign(&format!("fn({ten}, u8, f32, i16, bool) -> ({ten}, u8, i32)"));
        let places = |values: &[Value]| -> Vec<String> {
            values
                .iter()
                .skip(9)
                .map(|v| match (v.passing(), v.parts()) {
                    (Passing::Area(offset), _) => format!("[arg+{offset}]"),
                    (_, parts) => parts[0].to_string(),
                })
                .collect()
        };
        assert_eq!(places(assignment.params()), ["[arg+0]", "xmm0", "[arg+2]", "[arg+4]"]);
        assert_eq!(places(assignment.results()), ["[arg+8]", "[arg+12]"]);
        assert_eq!(assignment.args_bytes(), 5);
        assert_eq!(assignment.results_off(), 8);
        assert_eq!(assignment.results_bytes(), 8);
        assert_eq!(assignment.spill_off(), 16);
        assert_eq!(assignment.spill_bytes(), 80);
        assert_eq!(assignment.total_bytes(), 96);
    }

    #[test]
    fn the_area_is_limited() {
        let results = Signature::new([], vec![Type::I64; 9 + 513]);
        let error = Convention::GoAbiInternal.assign(&results).expect_err("513 words");
        assert_eq!(
            error.to_string(),
            "GoAbiInternal, result 521 (i64): it ends more than 4096 bytes into the stack area; \
             pass a pointer to a record instead"
        );
    }

    #[test]
    fn sets() {
        let volatile = AMD64.volatile();
        for register in [Gpr::RBP, Gpr::RSP, Gpr::R14] {
            assert!(!volatile.contains(register), "{register}");
        }
        assert!(!volatile.contains(Xmm::XMM15));
        assert_eq!(volatile.len(), 13 + 15);
    }
}
