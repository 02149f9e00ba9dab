//! Starts of goroutines from JIT code, on x86-64.

use std::ops::Range;

use dynasmrt::dynasm;

use crate::abi::Gpr;
use crate::jit::emit::x86_64::{Context, Emitter, Ops};
use crate::jit::frame::FrameReport;
use crate::jit::stubs::env::StubEnv;
use crate::jit::stubs::native_call::x86_64::{areas, close, open};
use crate::jit::stubs::native_call::{EntryChecks, NativeCall};

/// `memory`: where the code will be. `context`: the first argument of the target.
pub(super) fn emit(
    ops: &mut Ops,
    memory: Range<usize>,
    env: &StubEnv,
    call: &NativeCall,
    checks: Option<EntryChecks>,
    target: usize,
    context: u64,
) -> FrameReport {
    let mut e = Emitter::new(ops, memory);
    let opened = open(&mut e, env, call, checks);
    e.steps(&call.plan.args, &areas(call), Context::Value(0));
    // Every argument is in the packed buffer now, which begins at rsp, so rdi and rsi are free.
    e.constant(Gpr::RDI, context);
    dynasm!(e.ops; .arch x64; mov rsi, rsp);
    e.call(target);
    close(&mut e, env, call, checks, opened);
    e.finish().report
}
