//! The JIT code of the soak. Rust code computes the same results for comparison.

use std::sync::OnceLock;
use std::sync::atomic::AtomicU32;

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::abi::Convention;
use footbridge::jit::{Annotations, FrameClass, Jit, Ops};
use footbridge::runtime::{Builder, Entry, GoroutineFn, SpawnFn};

use super::steps::{relayed_step, spawned};
use support::code::caller;
use support::spinner::{Level, Preemptible, Spinner};

const SYSTEM_V: Convention = Convention::SystemV;
const GO: Convention = Convention::GoAbiInternal;
const FACTOR: u64 = 6_364_136_223_846_793_005;
/// Bytes of a frame of `dive`, with the return address and rbp.
pub const DIVE_BYTES: u64 = 64 + 16;

type Unary = Entry<fn(u64) -> u64>;
type Binary = Entry<fn(u64, u64) -> u64>;

/// All JIT code of the soak. Stubs that only JIT code calls are kept so that they are not retired.
pub struct Codes {
    /// `fn(iterations, seed)`: see [`churned`]. Preemptible; with polls; with polls, in Go's
    /// convention.
    pub churn: [Binary; 3],
    /// `fn(actor, n)`: calls [`relayed_step`] `n` times, and returns the number of calls.
    /// Preemptible; with polls, in Go's convention.
    pub relay: [Binary; 2],
    /// `fn(argument)`: starts a goroutine that calls [`spawned`] with the argument.
    pub start: [Entry<fn(u64)>; 2],
    /// `fn(depth)`: recursion that checks its stack, and returns its depth.
    pub dive: [Unary; 2],
    /// `fn(flag)`: loops until the flag is set. Preemptible; with polls.
    pub endless: [Entry<fn(*const AtomicU32)>; 2],
    /// One spinner for each level of the CPU.
    pub spinners: Vec<(Level, Spinner)>,
    _called: Vec<GoroutineFn>,
    _started: Vec<SpawnFn>,
}

/// The result of `churn`.
pub fn churned(iterations: u64, seed: u64) -> u64 {
    // Powers of x -> factor * x + term, by squaring.
    let (mut factor, mut term) = (FACTOR, seed);
    let (mut x, mut left) = (seed, iterations);
    while left != 0 {
        if left & 1 != 0 {
            x = x.wrapping_mul(factor).wrapping_add(term);
        }
        term = term.wrapping_mul(factor).wrapping_add(term);
        factor = factor.wrapping_mul(factor);
        left >>= 1;
    }
    x
}

/// Moves the arguments of Go's convention to the registers of System V, for code that is written
/// for those.
fn move_arguments(ops: &mut Ops, convention: Convention) {
    if convention == GO {
        dynasm!(ops; .arch x64; mov rdi, rax; mov rsi, rbx);
    }
}

fn churn(jit: &Jit, convention: Convention, polling: bool) -> Binary {
    let mut polls = jit.polls(convention).expect("of this machine");
    let mut body = |ops: &mut Ops| {
        move_arguments(ops, convention);
        dynasm!(ops; .arch x64; mov rax, rsi; mov rdx, QWORD FACTOR as i64; again:);
        if polling {
            polls.poll(ops);
        }
        dynasm!(ops; .arch x64; imul rax, rdx; add rax, rsi; dec rdi; jnz <again; ret);
        polls.finish(ops);
    };
    // SAFETY: a leaf that changes registers only, and may be preempted anywhere.
    let code = unsafe {
        if polling {
            jit.install("churn with polls", FrameClass::Leaf, body)
        } else {
            jit.install("churn", FrameClass::Leaf, |ops| {
                body(ops);
                Annotations::preemptible()
            })
        }
    };
    // SAFETY: of that convention and type.
    unsafe { code.expect("it installs").enter(convention) }.expect("an entry")
}

/// `fn(argument, n)`: calls `target` with the argument `n` times, and returns the sum of the
/// results.
fn relay(jit: &Jit, convention: Convention, target: usize) -> Binary {
    let mut polls = jit.polls(convention).expect("of this machine");
    let mut body = |ops: &mut Ops, polling: bool| {
        dynasm!(ops; .arch x64; push rbp; mov rbp, rsp);
        move_arguments(ops, convention);
        dynasm!(ops
            ; .arch x64
            ; sub rsp, 32
            ; mov [rbp - 8], rdi
            ; mov [rbp - 16], rsi
            ; mov QWORD [rbp - 24], 0
            ; again:
            ; mov rdi, [rbp - 8]
            ; mov rax, rdi
            ; call extern target
            ; add [rbp - 24], rax
        );
        if polling {
            polls.poll(ops);
        }
        dynasm!(ops
            ; .arch x64
            ; dec QWORD [rbp - 16]
            ; jnz <again
            ; mov rax, [rbp - 24]
            ; leave
            ; ret
        );
        polls.finish(ops);
    };
    // SAFETY: a standard frame with local slots, around calls of goroutine functions.
    let code = unsafe {
        if convention == GO {
            jit.install("relay", FrameClass::Standard, |ops| body(ops, true))
        } else {
            jit.install("relay", FrameClass::Standard, |ops| {
                body(ops, false);
                Annotations::preemptible()
            })
        }
    };
    // SAFETY: of that convention and type.
    unsafe { code.expect("it installs").enter(convention) }.expect("an entry")
}

fn dive(jit: &Jit, convention: Convention) -> Unary {
    let mut polls = jit.polls(convention).expect("of this machine");
    // SAFETY: a standard frame; the code calls only itself.
    let code = unsafe {
        jit.install("dive", FrameClass::Standard, |ops| {
            dynasm!(ops; .arch x64; again: ; push rbp; mov rbp, rsp);
            polls.check_stack(ops, 64);
            move_arguments(ops, convention);
            dynasm!(ops
                ; .arch x64
                ; sub rsp, 64
                ; xor eax, eax
                ; test rdi, rdi
                ; jz >bottom
                ; dec rdi
                ; mov rax, rdi
                ; call <again
                ; inc rax
                ; bottom:
                ; leave
                ; ret
            );
            polls.finish(ops);
        })
    };
    // SAFETY: of that convention and type.
    unsafe { code.expect("it installs").enter(convention) }.expect("an entry")
}

fn endless(jit: &Jit, polling: bool) -> Entry<fn(*const AtomicU32)> {
    let mut polls = jit.polls(SYSTEM_V).expect("of this machine");
    let mut body = |ops: &mut Ops| {
        dynasm!(ops; .arch x64; again:);
        if polling {
            polls.poll(ops);
        }
        dynasm!(ops; .arch x64; cmp DWORD [rdi], 0; je <again; ret);
        polls.finish(ops);
    };
    // SAFETY: a leaf that changes flags only, and may be preempted anywhere.
    let code = unsafe {
        if polling {
            jit.install("endless with polls", FrameClass::Leaf, body)
        } else {
            jit.install("endless", FrameClass::Leaf, |ops| {
                body(ops);
                Annotations::preemptible()
            })
        }
    };
    // SAFETY: of that convention and type.
    unsafe { code.expect("it installs").enter(SYSTEM_V) }.expect("an entry")
}

/// The code, which is emitted once.
pub fn codes() -> &'static Codes {
    static CODES: OnceLock<Codes> = OnceLock::new();
    CODES.get_or_init(Codes::new)
}

impl Codes {
    fn new() -> Self {
        let jit = Jit::new().expect("code memory");
        let (mut called, mut started) = (Vec::new(), Vec::new());
        let relays = [SYSTEM_V, GO].map(|convention| {
            let stub =
                jit.named_goroutine_fn("relayed step", convention, relayed_step).expect("a stub");
            let entry = relay(&jit, convention, stub.address());
            called.push(stub);
            entry
        });
        let start = [None, Some(256 << 10)].map(|stack_bytes| {
            let stub = jit.named_goroutine_fn("spawned", GO, spawned).expect("a stub");
            let body = caller("body", stub.address());
            called.push(stub);
            let builder = match stack_bytes {
                None => Builder::new(),
                Some(bytes) => Builder::new().stack_bytes(bytes),
            };
            let signature = "fn(u64)".parse().expect("a signature");
            // SAFETY: code of that convention and type; the argument may be used on any thread.
            let spawn = unsafe { builder.spawn_fn(&jit, GO, &signature, &body) }.expect("a stub");
            let start = caller("start", spawn.address());
            started.push(spawn);
            // SAFETY: of that convention and type.
            unsafe { start.enter(GO) }.expect("an entry")
        });
        let spinner = |level| (level, Spinner::new(level, Preemptible::Anywhere));
        Self {
            churn: [
                churn(&jit, SYSTEM_V, false),
                churn(&jit, SYSTEM_V, true),
                churn(&jit, GO, true),
            ],
            relay: relays,
            start,
            dive: [dive(&jit, SYSTEM_V), dive(&jit, GO)],
            endless: [endless(&jit, false), endless(&jit, true)],
            spinners: Level::all().into_iter().map(spinner).collect(),
            _called: called,
            _started: started,
        }
    }
}
