//! Go's ABI0: assembly functions, on amd64 and AArch64.
//!
//! Source: `cmd/compile/abi-internal.md` and `cmd/compile/internal/abi/abiutils.go` of Go 1.27
//! (with no registers), checked against the compiler's own analysis in `tests/abi.rs`.
//!
//! # Worked examples
//!
//! ```
//! use footbridge::abi::Convention;
//!
//! for (signature, places) in [
//!     // Parameters are packed with natural alignment; results start at the next word.
//!     (
//!         "fn(i8, i32, string) -> (bool, i16)",
//!         "p0: [arg+0]  p1: [arg+4]  p2: [arg+8]  r0: [arg+24]  r1: [arg+26]",
//!     ),
//!     // A value without bytes has a place all the same.
//!     ("fn(struct {}, i64)", "p0: [arg+0]  p1: [arg+0]"),
//! ] {
//!     let assignment = Convention::GoAbi0.assign(&signature.parse()?)?;
//!     assert_eq!(assignment.to_string(), places, "{signature}");
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use super::spec::{ConvSpec, Narrow, Pinned, Slots, registers};
use crate::abi::assign::{AreaBuilder, AssignError, Assignment, Passing, Value};
use crate::abi::reg::{Arch, Gpr, Reg, RegSet, Xreg};
use crate::abi::types::{Language, Signature, Type, ValueIndex};

// What assembly functions preserve: `cmd/compile/abi-internal.md`, "ABI0". r14 and xmm15 mean
// nothing there.
pub(super) static AMD64: ConvSpec = ConvSpec {
    name: "GoAbi0",
    arch: Arch::Amd64,
    language: Language::Go,
    int_args: &[],
    float_args: &[],
    int_results: &[],
    float_results: &[],
    preserved: RegSet::of(registers![Gpr: RBP]),
    preserved_low64: RegSet::EMPTY,
    pinned: &[],
    reserved: RegSet::EMPTY,
    context: Some(Reg::Gpr(Gpr::RDX)),
    stack_align_bytes: 8,
    base_off_bytes: 8,
    red_zone_bytes: 0,
    caller_below_bytes: 0,
    copy_align_bytes: 8,
    narrow: Narrow::Garbage,
    slots: Slots::Exact,
};

// The special registers are those of ABIInternal. The word at the stack pointer is the caller's
// saved link register (FixedFrameSize of `cmd/internal/sys/arch.go`), and the one below it is the
// caller's saved frame pointer (`obj/arm64/obj7.go`).
pub(super) static AARCH64: ConvSpec = ConvSpec {
    name: "GoAbi0Aarch64",
    arch: Arch::Aarch64,
    language: Language::Go,
    int_args: &[],
    float_args: &[],
    int_results: &[],
    float_results: &[],
    preserved: RegSet::of(registers![Xreg: X29]),
    preserved_low64: RegSet::EMPTY,
    pinned: &[(Reg::Xreg(Xreg::X28), Pinned::Goroutine)],
    reserved: RegSet::of(registers![Xreg: X18]),
    context: Some(Reg::Xreg(Xreg::X26)),
    stack_align_bytes: 16,
    base_off_bytes: 8,
    red_zone_bytes: 0,
    caller_below_bytes: 8,
    copy_align_bytes: 8,
    narrow: Narrow::Garbage,
    slots: Slots::Exact,
};

/// Parameters in order, packed with natural alignment; then, from the next word, the results in the
/// same way.
pub(super) fn classify(
    spec: &'static ConvSpec,
    signature: &Signature,
) -> Result<Assignment, AssignError> {
    let mut stack = AreaBuilder::new(spec);
    let mut section = |types: &[Type], index: fn(usize) -> ValueIndex| {
        let mut values = Vec::with_capacity(types.len());
        for (i, ty) in types.iter().enumerate() {
            let layout = ty.layout(Language::Go);
            let offset = stack.push(index(i), ty, layout.size_bytes, layout.align_bytes)?;
            values.push(Value::new(ty, Language::Go, Passing::Area(offset)));
        }
        let end = stack.end();
        stack.align_to(8);
        Ok((values, end, stack.end()))
    };
    let (params, args_bytes, results_off) = section(signature.params(), ValueIndex::Param)?;
    let (results, end, total_bytes) = section(signature.results(), ValueIndex::Result)?;
    Ok(Assignment {
        spec: Some(spec),
        language: Language::Go,
        params,
        results,
        result_pointer: None,
        vector_count: None,
        args_bytes,
        results_off,
        results_bytes: end - results_off,
        spill_off: total_bytes,
        spill_bytes: 0,
        total_bytes,
        area_align_bytes: stack.align(),
    })
}
