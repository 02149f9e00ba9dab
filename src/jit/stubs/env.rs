//! What stubs know of the runtime: plain numbers, whose meaning is the runtime's.

/// What stubs know of the runtime: plain numbers.
#[derive(Clone, Copy)]
pub(crate) struct StubEnv {
    /// Where the address of the current goroutine is, from the base of `fs`.
    pub(crate) tls_g_off: i32,
    /// Where the anchor is in a goroutine: fp, and pc in the next word.
    pub(crate) g_anchor_off: i32,
    /// Where the stack limit is in a goroutine: code whose rsp is not above it calls the poll stub.
    pub(crate) g_stack_limit_off: i32,
    /// Where the lowest address of its stack is in a goroutine.
    pub(crate) g_stack_lo_off: i32,
    /// Where the end of its stack is in a goroutine.
    pub(crate) g_stack_hi_off: i32,
    /// Where the stack limit of the current goroutine is, from the base of `fs`.
    pub(crate) tls_stack_limit_off: i32,
    /// Where the address of the poll stub is, from the base of `fs`.
    pub(crate) tls_poll_off: i32,
    /// Where the address of the stack check stub is, from the base of `fs`.
    pub(crate) tls_stack_check_off: i32,
    /// A word that is free while an interrupted goroutine is resumed, from the base of `fs`.
    pub(crate) tls_resume_off: i32,
    /// Where the floating-point control state of the thread is, from the base of `fs`: MXCSR, and
    /// four bytes further the x87 control word.
    pub(crate) tls_fp_control_off: i32,
    /// Called where code runs that needs a goroutine and there is none. Does not return.
    pub(crate) no_goroutine: usize,
    /// Called where a stub of a checked `Jit` finds that its caller breaks a contract, with a
    /// [`BrokenCall`]. Does not return.
    pub(crate) broken_call: usize,
}

/// Bytes from an anchor's fp to its pc.
pub(crate) const ANCHOR_PC: i32 = 8;

/// Offsets in the structure that a context is saved to.
#[derive(Clone, Copy)]
pub(crate) struct GobufLayout {
    pub(crate) sp: i32,
    pub(crate) pc: i32,
    /// The frame pointer: rbp, x29.
    pub(crate) fp: i32,
    /// The register that LLVM reserves for frames with dynamic alignment: rbx, x19.
    pub(crate) base: i32,
}

/// What a stub of a checked `Jit` finds wrong: the arguments of `StubEnv::broken_call`, which are
/// the number of a contract, the bytes and the length of the stub's name, what was found, and the
/// return address into the caller.
pub(crate) type BrokenCall = extern "C" fn(u32, *const u8, usize, usize, usize) -> !;

/// rsp is not a multiple of 16 where the stub was called. What was found is rsp.
pub(crate) const MISALIGNED_STACK: u32 = 0;
/// r14 is not the goroutine that runs. What was found is r14.
pub(crate) const WRONG_GOROUTINE: u32 = 1;
