//! The switch stubs on x86-64.
//!
//! Registers between the Rust call sites and these stubs:
//!
//! | | gogo | mcall |
//! | --- | --- | --- |
//! | rdi | | Gobuf to save to |
//! | rsi | Gobuf to resume | rsp of the system stack |
//! | rcx | | where to resume |
//! | rdx | | function to call there |
//! | r8 | | its argument |
//!
//! The Gobuf has rsp, rbp, rbx and the pc.

use std::ops::Range;

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};

use crate::jit::emit::x86_64::{Emitter, Ops};
use crate::jit::frame::FrameReport;
use crate::jit::stubs::env::GobufLayout;

/// Loads a context. The saved pc is cleared: the context is no longer there to be resumed, or
/// inspected.
pub(super) fn gogo(ops: &mut Ops, gobuf: GobufLayout) -> FrameReport {
    dynasm!(ops
        ; .arch x64
        ; mov rcx, [rsi + gobuf.pc]
        ; mov rsp, [rsi + gobuf.sp]
        ; mov rbp, [rsi + gobuf.fp]
        ; mov rbx, [rsi + gobuf.base]
        ; mov QWORD [rsi + gobuf.pc], 0
        ; jmp rcx
    );
    FrameReport::NONE
}

/// Saves the context, and calls a function on the system stack.
pub(super) fn mcall(ops: &mut Ops, gobuf: GobufLayout) -> FrameReport {
    // What a resumption needs; the compiler saves the rest at the call site. The pc comes last: a
    // reader that finds one finds the rest.
    dynasm!(ops
        ; .arch x64
        ; mov [rdi + gobuf.sp], rsp
        ; mov [rdi + gobuf.fp], rbp
        ; mov [rdi + gobuf.base], rbx
        ; mov [rdi + gobuf.pc], rcx
    );
    // Now on the system stack, from its top: what an earlier mcall left there is dead. rbp = 0 ends
    // chains. The function does not return, it ends in a gogo: a `call` would leave the return
    // predictor one off, so the return address is pushed by hand.
    dynasm!(ops
        ; .arch x64
        ; mov rsp, rsi
        ; xor ebp, ebp
        ; mov rdi, r8
        ; lea rax, [>after]
        ; push rax
        ; jmp rdx
        ; after:
        ; ud2
    );
    FrameReport::NONE
}

/// `systemstack(argument: rdi, function: rsi, rsp of the system stack: rdx)`, called. rbp stays in
/// the goroutine's stack: one rule, CFA = rbp+16, crosses over.
pub(super) fn systemstack(ops: &mut Ops) -> FrameReport {
    let mut e = Emitter::position_independent(ops);
    e.prologue();
    // The function returns to 16 bytes below the start of the system stack. So rsp never rises
    // above where an mcall begins: valgrind would take the last bytes of that one's red zone for
    // memory that was given up.
    dynasm!(e.ops; .arch x64; lea rsp, [rdx - 16]; call rsi);
    e.epilogue();
    e.finish().report
}

/// The first instruction of a goroutine: rsp is at the top of its stack, 16-aligned, rbp = 0, and
/// rsi is its Gobuf. Like mcall's, its function does not return.
pub(super) fn goroutine_entry(ops: &mut Ops, memory: Range<usize>, main: usize) -> FrameReport {
    let mut e = Emitter::new(ops, memory);
    dynasm!(e.ops; .arch x64; mov rdi, rsi; lea rax, [>after]; push rax);
    e.jump(main);
    dynasm!(e.ops; .arch x64; after:; ud2);
    e.finish().report
}
