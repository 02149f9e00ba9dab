//! Emitted code that several tests need.

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::jit::{Code, FrameClass, Jit, Ops};

/// Code that passes its register arguments to `target` and returns the result of that. Both have the
/// same convention and type, and no arguments on the stack.
pub fn caller(name: &str, target: usize) -> Code {
    // SAFETY: a standard frame around a call.
    let code = unsafe {
        Jit::new().expect("code memory").install(name, FrameClass::Standard, |ops| {
            dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; call extern target; pop rbp; ret);
        })
    };
    code.expect("it installs")
}

/// The five pushes of `FrameClass::Saved`, after `push rbp; mov rbp, rsp`.
pub fn push_saved(ops: &mut Ops) {
    dynasm!(ops; .arch x64; push rbx; push r12; push r13; push r14; push r15);
}

/// Pops the five registers of [`push_saved`].
pub fn pop_saved(ops: &mut Ops) {
    dynasm!(ops; .arch x64; pop r15; pop r14; pop r13; pop r12; pop rbx);
}

/// Loads the five registers of [`push_saved`] from their slots below rbp, where rsp is elsewhere.
pub fn load_saved(ops: &mut Ops) {
    dynasm!(ops
        ; .arch x64
        ; mov rbx, [rbp - 8]
        ; mov r12, [rbp - 16]
        ; mov r13, [rbp - 24]
        ; mov r14, [rbp - 32]
        ; mov r15, [rbp - 40]
    );
}
