//! Goroutine functions on x86-64.

use std::ops::Range;

use crate::jit::emit::x86_64::{Context, Emitter, Ops};
use crate::jit::frame::FrameReport;
use crate::jit::stubs::env::StubEnv;
use crate::jit::stubs::native_call::x86_64::{areas, close, open};
use crate::jit::stubs::native_call::{EntryChecks, NativeCall};

/// `memory`: where the code will be. `context`: the last argument of the target.
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
    let areas = areas(call);
    let opened = open(&mut e, env, call, checks);
    e.steps(&call.plan.args, &areas, Context::Value(context));
    e.call(target);
    e.steps(&call.plan.results, &areas, Context::Value(context));
    close(&mut e, env, call, checks, opened);
    e.finish().report
}
