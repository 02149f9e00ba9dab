//! Go's ABIInternal on amd64.
//!
//! Source: `cmd/compile/abi-internal.md` of Go 1.27, checked against the compiler's own analysis
//! (`cmd/compile/internal/abi/abiutils.go`) in `tests/abi.rs`.

use super::{ConvSpec, Convention, Narrow, Pinned, Slots};
use crate::abi::assign::{Area, Assignment, RegQueue, Value};
use crate::abi::error::{AssignError, ValueIndex};
use crate::abi::loc::{Gpr, Reg, RegSet, Xmm};
use crate::abi::sig::Signature;

/// `cmd/compile/abi-internal.md`, "amd64 architecture": results use the parameters' sequence.
const INTS: &[Gpr] = &[
    Gpr::RAX,
    Gpr::RBX,
    Gpr::RCX,
    Gpr::RDI,
    Gpr::RSI,
    Gpr::R8,
    Gpr::R9,
    Gpr::R10,
    Gpr::R11,
];

/// The same for floats: X0 to X14.
const FLOATS: &[Xmm] = &[
    Xmm::XMM0,
    Xmm::XMM1,
    Xmm::XMM2,
    Xmm::XMM3,
    Xmm::XMM4,
    Xmm::XMM5,
    Xmm::XMM6,
    Xmm::XMM7,
    Xmm::XMM8,
    Xmm::XMM9,
    Xmm::XMM10,
    Xmm::XMM11,
    Xmm::XMM12,
    Xmm::XMM13,
    Xmm::XMM14,
];

// All facts without a remark: `cmd/compile/abi-internal.md`, "amd64 architecture".
pub(super) static SPEC: ConvSpec = ConvSpec {
    name: "GoAbiInternal",
    int_args: INTS,
    float_args: FLOATS,
    int_results: INTS,
    float_results: FLOATS,
    // The frame pointer, and nothing else: `obj/x86/obj6.go`, preprocess.
    preserved: RegSet::of_gprs(&[Gpr::RBP]),
    pinned: &[
        (Reg::Gpr(Gpr::R14), Pinned::Goroutine),
        (Reg::Xmm(Xmm::XMM15), Pinned::Zero),
    ],
    context: Some(Gpr::RDX),
    stack_align_bytes: 8,
    red_zone_bytes: 0,
    // "Function call argument and result passing": the upper bits are unspecified, both ways.
    narrow: Narrow::Garbage,
    slots: Slots::Exact,
    classify,
};

/// "Function call argument and result passing" for scalars, in the document's order: parameters
/// that find a register, each with a slot in the spill area; the others on the stack, packed
/// with natural alignment; then, from the next word, the results that found no register; then, from
/// the next word, the spill area.
///
/// A value that finds no register takes none, and later ones may still use what is left.
fn classify(convention: Convention, signature: &Signature) -> Result<Assignment, AssignError> {
    let spec = convention.spec();
    let mut stack = Area::new(convention);
    let mut spill = Area::new(convention);

    let mut registers = RegQueue::new(spec.int_args, spec.float_args);
    let mut params = Vec::with_capacity(signature.params().len());
    for (index, ty) in signature.params().iter().enumerate() {
        let (index, size, align) = (ValueIndex::Param(index), ty.size_bytes(), ty.align_bytes());
        params.push(match registers.take(ty.class()) {
            Some(register) => {
                let home = spill.push(index, ty, size, align)?;
                Value::in_reg_with_home(ty.clone(), register, home)
            }
            None => Value::in_area(ty.clone(), stack.push(index, ty, size, align)?),
        });
    }
    let args_bytes = stack.end();
    stack.align_to(8);
    let results_off = stack.end();

    let mut registers = RegQueue::new(spec.int_results, spec.float_results);
    let mut results = Vec::with_capacity(signature.results().len());
    for (index, ty) in signature.results().iter().enumerate() {
        let (index, size, align) = (ValueIndex::Result(index), ty.size_bytes(), ty.align_bytes());
        results.push(match registers.take(ty.class()) {
            Some(register) => Value::in_reg(ty.clone(), register),
            None => Value::in_area(ty.clone(), stack.push(index, ty, size, align)?),
        });
    }
    let results_bytes = stack.end() - results_off;
    stack.align_to(8);
    spill.align_to(8);

    Ok(Assignment {
        convention: Some(convention),
        params,
        results,
        args_bytes,
        results_off,
        results_bytes,
        spill_off: stack.end(),
        spill_bytes: spill.end(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::ty::Type;

    fn assign(text: &str) -> Assignment {
        let signature: Signature = text.parse().expect("a signature");
        Convention::GoAbiInternal
            .assign(&signature)
            .expect("assignable")
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
        let assignment = assign(&format!(
            "fn({ten}, u8, f32, i16, bool) -> ({ten}, u8, i32)"
        ));
        let places = |values: &[Value]| -> Vec<String> {
            values
                .iter()
                .skip(9)
                .map(|v| v.place().to_string())
                .collect()
        };
        assert_eq!(
            places(assignment.params()),
            ["[arg+0]", "xmm0", "[arg+2]", "[arg+4]"]
        );
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
        let error = Convention::GoAbiInternal
            .assign(&results)
            .expect_err("513 words");
        assert_eq!(
            error.to_string(),
            "GoAbiInternal, result 521 (i64): it ends more than 4096 bytes into the stack area; \
             pass a pointer to a record instead"
        );
    }

    #[test]
    fn sets() {
        let volatile = SPEC.volatile();
        for register in [Gpr::RBP, Gpr::RSP, Gpr::R14] {
            assert!(!volatile.contains(register), "{register}");
        }
        assert!(!volatile.contains(Xmm::XMM15));
        assert_eq!(volatile.len(), 13 + 15);
    }
}
