//! Preemption: which code yields, when, and the effects of preemption on the rest of the process.
//!
//! The storms test that the machine state survives.
//!
//! What the code promises beside its protocols (`tests/models` has those), and the test that fails
//! without it. Each was seen to fail.
//!
//! | promise | where | test |
//! | --- | --- | --- |
//! | the handler keeps errno | `os/linux/signals.rs` | `native::the_signal_handler_keeps_errno` |
//! | system calls are restarted (SA_RESTART) | `os/linux/signals.rs` | `native::a_system_call_is_restarted_after_the_signal` |
//! | sysmon blocks the program's signals | `sched/sysmon.rs` | `native::sysmon_takes_no_signal_of_the_program` |
//! | a run does not inherit that a signal is on its way | `gmp/preempt_state.rs` | `stale::a_signal_that_an_earlier_run_left_does_not_disable_preemption` |
//! | the handler preempts only if there is a request | `sched/async_preempt.rs` | `stale::a_signal_that_comes_after_the_yield_preempts_nothing` |
//! | a tick begins without a request | `sync/preempt_request.rs` | `stale::a_request_is_over_when_its_goroutine_has_yielded` |
//! | little stack is no request | `sched/preempt.rs` | `stale::a_poll_with_little_stack_left_is_no_request` |

#![allow(unsafe_code, reason = "calls emitted code and installs signal handlers")]

mod annotations;
mod errno;
mod native;
mod runs;
mod signals;
mod stale;
mod taken;
mod unwinding;
mod yielding;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::abi::Convention;
use footbridge::jit::{Annotations, Code, FrameClass, Jit, Ops};
use footbridge::runtime::{Config, Entry, Stats, scope, stats};
use support::runs::{AtEnd, occupy_until, wait_for};

const SYSTEM_V: Convention = Convention::SystemV;
const GO: Convention = Convention::GoAbiInternal;
const SHORT: Duration = Duration::from_micros(200);

fn config(processors: usize) -> Config {
    Config::new().processors(processors).time_slice(SHORT)
}

fn run<R>(processors: usize, f: impl FnOnce() -> R) -> R {
    config(processors).run(f).expect("the run starts")
}

/// The number of preemptions in this run.
fn preemptions() -> u64 {
    let stats = stats();
    stats.asynchronous + stats.cooperative
}

/// Waits until a goroutine of this run was preempted.
fn wait_for_preemption() {
    wait_for("a goroutine is preempted", || preemptions() > 0);
}

/// Runs `looping` on a goroutine until this goroutine has seen `enough`, while another goroutine
/// waits for the processor of the looping one: so its preemption is requested all the time. This
/// goroutine occupies the other one of two processors. `flag` ends the loop.
fn loop_until(looping: impl Fn() + Sync, flag: &AtomicU32, what: &str, enough: impl Fn() -> bool) {
    scope(|s| {
        let _end = AtEnd(|| flag.store(1, Ordering::Relaxed));
        s.go(|| {
            // It waits on this processor, since the other one is occupied.
            s.go(|| ());
            looping();
        });
        occupy_until(what, enough);
    });
}

/// How a loop can be preempted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Loop {
    Preemptible,
    Polls(Convention),
    Plain,
}

/// Code that loops until a flag is set, and returns the number of its iterations.
struct Waiter {
    entry: Entry<fn(*const AtomicU32) -> u64>,
    code: Code,
}

impl Waiter {
    fn new(kind: Loop) -> Self {
        let jit = Jit::new().expect("code memory");
        let convention = if let Loop::Polls(convention) = kind { convention } else { SYSTEM_V };
        let mut polls = jit.polls(convention).expect("of this machine");
        let mut body = |ops: &mut Ops| {
            if convention == GO {
                dynasm!(ops; .arch x64; mov rdi, rax);
            }
            dynasm!(ops; .arch x64; xor eax, eax; again: ; inc rax);
            if kind != Loop::Preemptible && kind != Loop::Plain {
                polls.poll(ops);
            }
            dynasm!(ops; .arch x64; cmp DWORD [rdi], 0; je <again; ret);
            polls.finish(ops);
        };
        // SAFETY: a leaf that changes rax and rdi, and may be preempted anywhere.
        let code = unsafe {
            match kind {
                Loop::Preemptible => jit.install("waiter", FrameClass::Leaf, |ops| {
                    body(ops);
                    Annotations::preemptible()
                }),
                _ => jit.install("waiter", FrameClass::Leaf, body),
            }
        };
        let code = code.expect("it installs");
        // SAFETY: of that convention and type.
        let entry = unsafe { code.enter(convention) }.expect("an entry");
        Self { entry, code }
    }

    fn wait(&self, flag: &AtomicU32) -> u64 {
        // SAFETY: on a goroutine; the flag outlives the call.
        unsafe { self.entry.call(flag) }
    }
}

/// A goroutine loops on the only thread until another one runs there and sets the flag. Returns the
/// counters at the end.
fn end_loop(kind: Loop) -> Stats {
    let waiter = Waiter::new(kind);
    run(1, || {
        let flag = AtomicU32::new(0);
        scope(|s| {
            let looping = s.go(|| waiter.wait(&flag));
            s.go(|| {
                let _end = AtEnd(|| flag.store(1, Ordering::Relaxed));
                wait_for_preemption();
            });
            assert!(looping.join().expect("no panic") > 0);
        });
        stats()
    })
}
