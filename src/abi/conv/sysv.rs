//! System V on amd64.
//!
//! Source: System V Application Binary Interface, AMD64 Architecture Processor Supplement
//! (psABI), version 1.0; the sections are cited below. What the document leaves open and
//! compilers rely on is marked as such.

use super::{ConvSpec, Convention, Narrow, Slots};
use crate::abi::assign::{Area, Assignment, RegQueue, Value};
use crate::abi::error::{AssignError, ValueIndex};
use crate::abi::loc::{Gpr, RegSet, Xmm};
use crate::abi::sig::Signature;

pub(super) static SPEC: ConvSpec = ConvSpec {
    name: "SystemV",
    // psABI 3.2.3, "Passing", and Figure 3.4.
    int_args: &[Gpr::RDI, Gpr::RSI, Gpr::RDX, Gpr::RCX, Gpr::R8, Gpr::R9],
    float_args: &[
        Xmm::XMM0,
        Xmm::XMM1,
        Xmm::XMM2,
        Xmm::XMM3,
        Xmm::XMM4,
        Xmm::XMM5,
        Xmm::XMM6,
        Xmm::XMM7,
    ],
    // psABI 3.2.3, "Returning of Values". A scalar takes the first one of its class.
    int_results: &[Gpr::RAX, Gpr::RDX],
    float_results: &[Xmm::XMM0, Xmm::XMM1],
    // psABI 3.2.1 and Figure 3.4. No vector register is preserved.
    preserved: RegSet::of_gprs(&[Gpr::RBX, Gpr::RBP, Gpr::R12, Gpr::R13, Gpr::R14, Gpr::R15]),
    pinned: &[],
    // Figure 3.4 gives r10 to languages with static chains; no C function pointer has one.
    context: None,
    // psABI 3.2.2: the end of the argument area is 16-byte aligned at a call.
    stack_align_bytes: 16,
    // psABI 3.2.2.
    red_zone_bytes: 128,
    // psABI 3.2.3 fixes only _Bool, and only to 8 bits. clang and rustc mark narrow values
    // signext or zeroext on both sides and their callees rely on it; gcc extends too.
    narrow: Narrow::ExtendedTo32,
    // psABI 3.2.3: "the size of each argument gets rounded up to eightbytes".
    slots: Slots::Whole,
    classify,
};

/// psABI 3.2.3 for scalars, which are all of class INTEGER or SSE: the next register of the
/// class, otherwise the next eightbyte of the stack. The classes do not depend on each other, and a
/// value on the stack does not stop later ones of the other class from using registers.
fn classify(convention: Convention, signature: &Signature) -> Result<Assignment, AssignError> {
    let spec = convention.spec();

    let mut registers = RegQueue::new(spec.int_args, spec.float_args);
    let mut area = Area::new(convention);
    let mut params = Vec::with_capacity(signature.params().len());
    for (index, ty) in signature.params().iter().enumerate() {
        params.push(match registers.take(ty.class()) {
            Some(register) => Value::in_reg(ty.clone(), register),
            None => {
                let offset = area.push(ValueIndex::Param(index), ty, 8, 8)?;
                Value::in_area(ty.clone(), offset)
            }
        });
    }

    let mut registers = RegQueue::new(spec.int_results, spec.float_results);
    let results = match signature.results() {
        [] => Vec::new(),
        [ty] => {
            let register = registers
                .take(ty.class())
                .expect("there is a result register of each class");
            vec![Value::in_reg(ty.clone(), register)]
        }
        [_, ty, ..] => {
            return Err(AssignError::OneResult {
                convention,
                index: 1,
                ty: ty.clone(),
            });
        }
    };

    let args_bytes = area.end();
    Ok(Assignment {
        convention: Some(convention),
        params,
        results,
        args_bytes,
        results_off: args_bytes,
        results_bytes: 0,
        spill_off: args_bytes,
        spill_bytes: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::assign::MAX_AREA_BYTES;
    use crate::abi::ty::Type;

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
        assert_eq!(
            Convention::SystemV.assign(&fits).map(|a| a.args_bytes()),
            Ok(MAX_AREA_BYTES)
        );
        let error = Convention::SystemV
            .assign(&fits.with_param(Type::U16))
            .expect_err("one word too many");
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
