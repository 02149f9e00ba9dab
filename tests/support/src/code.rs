//! Emitted code that several tests need.

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::jit::{Code, FrameClass, Jit, Ops};

/// Code that passes its register arguments to `target` and returns the result of that. Both have
/// the same convention and type, and no arguments on the stack.
pub fn caller(name: &str, target: usize) -> Code {
    // SAFETY: a standard frame around a call.
    let code = unsafe {
        Jit::new().expect("code memory").install(name, FrameClass::Standard, |ops| {
            dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; call extern target; pop rbp; ret);
        })
    };
    code.expect("it installs")
}

/// A new mapping that holds `bytes` as executable code, and is never unmapped. Returns its address;
/// its length is a page.
pub fn map_code(bytes: &[u8]) -> usize {
    assert!(bytes.len() <= 4096);
    // SAFETY: a new mapping with room for the bytes.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let at = libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0);
        assert_ne!(at, libc::MAP_FAILED);
        at.cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        assert_eq!(libc::mprotect(at, 4096, libc::PROT_READ | libc::PROT_EXEC), 0);
        at as usize
    }
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
