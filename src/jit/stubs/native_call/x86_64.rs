//! The frame around a native call, on x86-64.

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};

use super::{EntryChecks, NativeCall};
use crate::abi::Gpr;
use crate::jit::emit::x86_64::{Areas, Base, Emitter};
use crate::jit::stubs::env::{ANCHOR_PC, MISALIGNED_STACK, StubEnv, WRONG_GOROUTINE};
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
        stage: Base(Gpr::RSP, call.plan.staging_off() as i32),
    }
}

/// A check that leads out of line: where to, which contract it is about, and what was found.
struct Broken {
    label: DynamicLabel,
    contract: u32,
    found: Found,
}

enum Found {
    /// The rsp of the call.
    Rsp,
    Register(Gpr),
}

/// What is to be emitted after the stub's last instruction.
#[must_use]
pub(crate) struct Opened(Vec<Broken>);

/// Frame, anchor, outgoing area.
pub(crate) fn open(
    e: &mut Emitter<'_>,
    env: &StubEnv,
    call: &NativeCall,
    checks: Option<EntryChecks>,
) -> Opened {
    let [a, b] = call.free;
    let anchor = env.g_anchor_off;
    e.prologue();
    let opened = emit_checks(e, env, checks);
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
    opened
}

/// Compares what the caller must have seen to. Changes flags only.
fn emit_checks(e: &mut Emitter<'_>, env: &StubEnv, checks: Option<EntryChecks>) -> Opened {
    let mut broken = Vec::new();
    let mut leave_for = |e: &mut Emitter<'_>, contract, found| {
        let label = e.ops.new_dynamic_label();
        dynasm!(e.ops; .arch x64; jne =>label);
        broken.push(Broken { label, contract, found });
    };
    if let Some(EntryChecks { stack, goroutine, .. }) = checks {
        if stack {
            // A return address and rbp were pushed.
            dynasm!(e.ops; .arch x64; test bpl, 15);
            leave_for(e, MISALIGNED_STACK, Found::Rsp);
        }
        if let Some(g) = goroutine {
            e.require_goroutine(g);
            dynasm!(e.ops; .arch x64; fs cmp Rq(g), QWORD [env.tls_g_off]);
            leave_for(e, WRONG_GOROUTINE, Found::Register(g));
        }
    }
    Opened(broken)
}

/// Where the checks lead: a call of a function that does not return.
fn emit_broken(e: &mut Emitter<'_>, env: &StubEnv, checks: Option<EntryChecks>, opened: Opened) {
    let Some(EntryChecks { name, .. }) = checks else {
        return;
    };
    for Broken { label, contract, found } in opened.0 {
        dynasm!(e.ops; .arch x64; =>label);
        match found {
            Found::Rsp => dynasm!(e.ops; .arch x64; lea rcx, [rbp + 16]),
            Found::Register(register) => dynasm!(e.ops; .arch x64; mov rcx, Rq(register)),
        }
        dynasm!(e.ops; .arch x64; mov r8, [rbp + 8]);
        e.constant(Gpr::RDI, contract.into());
        e.constant(Gpr::RSI, name.as_ptr() as u64);
        e.constant(Gpr::RDX, name.len() as u64);
        dynasm!(e.ops; .arch x64; and rsp, -16);
        e.call(env.broken_call);
        dynasm!(e.ops; .arch x64; ud2);
    }
}

/// Pinned registers, poll, return, and what is out of line.
pub(crate) fn close(
    e: &mut Emitter<'_>,
    env: &StubEnv,
    call: &NativeCall,
    checks: Option<EntryChecks>,
    opened: Opened,
) {
    // The goroutine's register is preserved by System V; the zero register is not.
    if let Some(zero) = zero_of(call.convention) {
        e.clear(zero);
    }
    // Results are in their places; a poll changes none of them.
    let pending = poll::emit(e.ops, StackLimit::of(call.convention, env));
    e.epilogue();
    poll::emit_slow_path(e.ops, env, pending);
    e.no_goroutine(env.no_goroutine);
    emit_broken(e, env, checks, opened);
}
