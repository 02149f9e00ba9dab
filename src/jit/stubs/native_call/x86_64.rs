//! The frame around a native call, on x86-64.

use dynasmrt::{DynasmApi, dynasm};

use super::NativeCall;
use crate::abi::Gpr;
use crate::jit::emit::x86_64::{Areas, Base, Emitter};
use crate::jit::stubs::env::{ANCHOR_PC, StubEnv};
use crate::jit::stubs::pinned::{StackLimit, goroutine_of, zero_of};
use crate::jit::stubs::poll::x86_64 as poll;

/// Where the areas of the call's plan are.
pub(crate) fn areas(call: &NativeCall) -> Areas {
    let (caller, own) = (Base(Gpr::RBP, 16), Base(Gpr::RSP, 0));
    Areas {
        entry: caller,
        target: own,
        entry_result: caller,
        target_result: own,
        stage: Base(Gpr::RSP, call.plan.stage_off() as i32),
    }
}

/// Frame, anchor, outgoing area.
pub(crate) fn open(e: &mut Emitter<'_>, env: &StubEnv, call: &NativeCall) {
    let [a, b] = call.free;
    let anchor = env.g_anchor_off;
    e.prologue();
    // The goroutine is in its pinned register, or in thread-local storage.
    let g = match goroutine_of(call.convention) {
        Some(g) => g,
        None => {
            dynasm!(e.ops; .arch x64; fs mov Rq(a), QWORD [env.tls_g_off]);
            e.require_goroutine(a);
            a
        }
    };
    dynasm!(e.ops
        ; .arch x64
        ; lea Rq(b), [rip]
        ; mov [Rq(g) + anchor], rbp
        ; mov [Rq(g) + anchor + ANCHOR_PC], Rq(b)
    );
    e.outgoing_area(&call.plan, call.convention.spec().stack_align_bytes);
}

/// Pinned registers, poll, return, and what is out of line.
pub(crate) fn close(e: &mut Emitter<'_>, env: &StubEnv, call: &NativeCall) {
    // The goroutine's register is preserved by System V; the zero register is not.
    if let Some(zero) = zero_of(call.convention) {
        e.clear(zero);
    }
    // Results are in their places; a poll changes none of them.
    let pending = poll::emit(e.ops, StackLimit::of(call.convention, env));
    e.epilogue();
    poll::emit_slow_path(e.ops, env, pending);
    e.no_goroutine(env.no_goroutine);
}
