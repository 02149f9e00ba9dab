//! What code does to ask whether its time is over: one compare.
//!
//! ```text
//!         cmp rsp, [guard]
//!         jbe slow              not taken
//!     back:
//!         ...
//!     slow:                     out of line, behind the code
//!         lea rsp, [rsp - 128]
//!         call fs:[poll stub]   saves and restores everything, and drops the 128 bytes
//!         jmp back
//! ```
//!
//! The guard is the limit of the goroutine's stack, or, when it is to give way, larger than any
//! address: the check of the stack and the poll are one (as Go's prologues have it). In
//! ABIInternal r14 is the goroutine, and the guard is a field of it. Elsewhere no register is
//! known, and the guard is a thread-local word that the scheduler keeps equal to it.
//!
//! Changes nothing but flags. Walks know the `call` in a leaf by its bytes ([`is_poll_call`]): it
//! is the one instruction of a leaf at which rsp does not lead to the return address.

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};

use super::StubEnv;
use super::goroutine_fn::pinned_to;
use super::preempt::RED_ZONE_BYTES;
use crate::abi::{Convention, Pinned, Reg};
use crate::jit::Ops;

/// A poll whose slow path is not emitted yet.
pub(crate) struct Pending {
    slow: DynamicLabel,
    back: DynamicLabel,
}

/// The compare and the branch.
pub(crate) fn emit(ops: &mut Ops, env: &StubEnv, convention: Convention) -> Pending {
    let pending = Pending { slow: ops.new_dynamic_label(), back: ops.new_dynamic_label() };
    let (slow, back) = (pending.slow, pending.back);
    match pinned_to(convention, Pinned::Goroutine) {
        Some(Reg::Gpr(g)) => dynasm!(ops; .arch x64; cmp rsp, [Rq(g) + env.g_guard_off]),
        _ => dynasm!(ops; .arch x64; fs cmp rsp, [env.tls_guard_off]),
    }
    dynasm!(ops; .arch x64; jbe =>slow; =>back);
    pending
}

/// The slow path, where execution does not come by itself.
pub(crate) fn emit_slow_path(ops: &mut Ops, env: &StubEnv, Pending { slow, back }: Pending) {
    dynasm!(ops
        ; .arch x64
        ; =>slow
        ; lea rsp, [rsp - RED_ZONE_BYTES as i32]
        ; fs call QWORD [env.tls_poll_off]
        ; jmp =>back
    );
}

/// Whether an instruction is the call of a poll's slow path, `call QWORD PTR fs:[disp32]`. Its bytes
/// are asked for in their order.
pub(crate) fn is_poll_call(byte: impl Fn(usize) -> u8) -> bool {
    [0x64, 0xff, 0x14, 0x25].into_iter().enumerate().all(|(at, expected)| byte(at) == expected)
}
