//! Polls on x86-64.

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};

use crate::jit::emit::x86_64::Ops;
use crate::jit::frame::RED_ZONE_BYTES;
use crate::jit::stubs::env::StubEnv;
use crate::jit::stubs::pinned::StackLimit;

/// A poll whose slow path is not emitted yet.
pub(crate) struct Pending {
    slow: DynamicLabel,
    back: DynamicLabel,
}

/// The compare and the branch.
pub(crate) fn emit(ops: &mut Ops, limit: StackLimit) -> Pending {
    let pending = Pending { slow: ops.new_dynamic_label(), back: ops.new_dynamic_label() };
    let (slow, back) = (pending.slow, pending.back);
    compare_rsp(ops, limit);
    dynasm!(ops; .arch x64; jbe =>slow; =>back);
    pending
}

/// Compares rsp with the limit.
pub(crate) fn compare_rsp(ops: &mut Ops, limit: StackLimit) {
    match limit {
        StackLimit::InGoroutine(g, off) => dynasm!(ops; .arch x64; cmp rsp, [Rq(g) + off]),
        StackLimit::InThread(off) => dynasm!(ops; .arch x64; fs cmp rsp, [off]),
    }
}

/// The slow path, at a place that execution does not reach by itself.
pub(crate) fn emit_slow_path(ops: &mut Ops, env: &StubEnv, Pending { slow, back }: Pending) {
    dynasm!(ops
        ; .arch x64
        ; =>slow
        ; lea rsp, [rsp - RED_ZONE_BYTES as i32]
        ; fs call QWORD [env.tls_poll_off]
        ; jmp =>back
    );
}
