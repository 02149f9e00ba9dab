//! The switch stubs on AArch64.
//!
//! Registers between the Rust call sites (`runtime/arch/aarch64/switch.rs`, which has a picture of
//! the stacks in each state) and these stubs:
//!
//! | | gogo | mcall |
//! | --- | --- | --- |
//! | x0 | | Gobuf to save to |
//! | x1 | Gobuf to resume | sp of the system stack |
//! | x2 | | where to resume |
//! | x3 | | function to call there |
//! | x4 | | its argument |
//!
//! The stubs enter functions and leave by `br x16`. A `blr` that no `ret` answers would set the
//! return predictor off by one. A function that begins with `bti c` accepts a `br` through x16 and
//! x17 only (Arm ARM, section D8.4, branch target identification). A function that does not return
//! gets its return address by `adr`.

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};

use crate::jit::emit::aarch64::Ops;
use crate::jit::frame::FrameReport;
use crate::jit::stubs::env::GobufLayout;

/// Whether the layout is the one that the pairs below move.
fn is_expected(gobuf: GobufLayout) -> bool {
    let GobufLayout { sp, pc, fp, base } = gobuf;
    pc == 0 && sp == 8 && base == fp + 8
}

/// Loads a context. The saved pc is cleared: the context is no longer there to be resumed, or
/// inspected.
pub(super) fn gogo(ops: &mut Ops, gobuf: GobufLayout) -> FrameReport {
    assert!(is_expected(gobuf), "the Gobuf of this architecture");
    dynasm!(ops
        ; .arch aarch64
        ; ldp x16, x3, [x1]
        ; ldp x29, x19, [x1, gobuf.fp]
        ; mov sp, x3
        ; str xzr, [x1]
        ; br x16
    );
    FrameReport::NONE
}

/// Saves the context, and calls a function on the system stack. The compiler saves every other
/// register at the call site, where it is live.
pub(super) fn mcall(ops: &mut Ops, gobuf: GobufLayout) -> FrameReport {
    assert!(is_expected(gobuf), "the Gobuf of this architecture");
    dynasm!(ops
        ; .arch aarch64
        ; mov x5, sp
        ; str x5, [x0, gobuf.sp as u32]
        ; stp x29, x19, [x0, gobuf.fp]
        // Last, and a Release: another thread that reads this pc may inspect the stack.
        ; stlr x2, [x0]
        // Now on the system stack, from its top: what an earlier mcall left there is dead. x29 = 0
        // ends chains. The function does not return, it ends in a gogo.
        ; mov sp, x1
        ; mov x29, xzr
        ; mov x0, x4
        ; mov x16, x3
        ; adr x30, >after
        ; br x16
        ; after:
        ; udf 0
    );
    FrameReport::NONE
}

/// systemstack(argument: x0, function: x1, sp of the system stack: x2), called.
///
/// x29 stays in the goroutine's stack: one rule, CFA = x29 + 16, crosses over.
pub(super) fn systemstack(ops: &mut Ops) -> FrameReport {
    let mut report = FrameReport::NONE;
    dynasm!(ops
        ; .arch aarch64
        ; stp x29, x30, [sp, #-16]!
        ; mov x29, sp
    );
    report.complete_at(ops.offset().0);
    dynasm!(ops
        ; .arch aarch64
        ; mov sp, x2
        ; blr x1
        ; mov sp, x29
        ; ldp x29, x30, [sp], #16
    );
    report.dropped_at(ops.offset().0);
    dynasm!(ops; .arch aarch64; ret);
    report
}

/// First instruction of a goroutine: sp at the top of its stack, 16-aligned, x29 = 0, x1 = its
/// Gobuf. `main` does not return: its return address is one at which every walk ends.
pub(super) fn goroutine_entry(ops: &mut Ops, main: usize) -> FrameReport {
    dynasm!(ops
        ; .arch aarch64
        ; mov x0, x1
        ; ldr x16, >main
        ; adr x30, >after
        ; br x16
        ; after:
        ; udf 0
        ; .align 8
        ; main:
        ; .u64 main as u64
    );
    FrameReport::NONE
}
