//! The JIT code of the soak. Each piece computes something that Rust computes, too.

use std::sync::OnceLock;
use std::sync::atomic::AtomicU32;

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::abi::Convention;
use footbridge::jit::{Annotations, Code, FrameClass, Jit, Ops};
use footbridge::runtime::{Builder, Entry, GoroutineFn, SpawnFn};

use super::steps::{spawned, turn};
use support::spinner::{GivesWay, Level, Spinner};

const SYSTEM_V: Convention = Convention::SystemV;
const GO: Convention = Convention::GoAbiInternal;
const FACTOR: u64 = 6_364_136_223_846_793_005;
/// Bytes of a frame of `dive`, with the return address and rbp.
pub const DIVE_BYTES: u64 = 64 + 16;

type Unary = Entry<fn(u64) -> u64>;
type Binary = Entry<fn(u64, u64) -> u64>;

/// All of it. What is not called by Rust is kept so that it is not retired.
pub struct Codes {
    /// fn(rounds, seed): see [`churned`]. Interrupted; polls; polls, in Go's convention.
    pub churn: [Binary; 3],
    /// fn(actor, times): so many turns of the actor; returns how many. Interrupted, and in Go's
    /// convention with polls.
    pub relay: [Binary; 2],
    /// fn(argument): starts a goroutine that calls `spawned` with it.
    pub start: [Entry<fn(u64)>; 2],
    /// fn(depth): recursion that checks its stack; returns how deep it came.
    pub dive: [Unary; 2],
    /// fn(flag): loops until the flag is set. Interrupted; polls.
    pub endless: [Entry<fn(*const AtomicU32)>; 2],
    /// With as many registers as each level has.
    pub spinners: Vec<(Level, Spinner)>,
    _called: Vec<GoroutineFn>,
    _started: Vec<SpawnFn>,
}

/// What `churn` computes.
pub fn churned(rounds: u64, seed: u64) -> u64 {
    // Powers of x -> factor * x + term, by squaring.
    let (mut factor, mut term) = (FACTOR, seed);
    let (mut x, mut rounds) = (seed, rounds);
    while rounds != 0 {
        if rounds & 1 != 0 {
            x = x.wrapping_mul(factor).wrapping_add(term);
        }
        term = term.wrapping_mul(factor).wrapping_add(term);
        factor = factor.wrapping_mul(factor);
        rounds >>= 1;
    }
    x
}

/// A leaf of System V, made of the same code in Go's convention.
fn from_go(ops: &mut Ops, convention: Convention) {
    if convention == GO {
        dynasm!(ops; .arch x64; mov rdi, rax; mov rsi, rbx);
    }
}

fn churn(jit: &Jit, convention: Convention, polling: bool) -> Binary {
    let mut polls = jit.polls(convention).expect("of this machine");
    let mut body = |ops: &mut Ops| {
        from_go(ops, convention);
        dynasm!(ops; .arch x64; mov rax, rsi; mov rdx, QWORD FACTOR as i64; again:);
        if polling {
            polls.poll(ops);
        }
        dynasm!(ops; .arch x64; imul rax, rdx; add rax, rsi; dec rdi; jnz <again; ret);
        polls.finish(ops);
    };
    // SAFETY: a leaf that changes registers only, and is as good anywhere.
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

/// Calls `target` with its first argument as often as its second one says; returns the sum.
fn relay(jit: &Jit, convention: Convention, target: usize) -> Binary {
    let mut polls = jit.polls(convention).expect("of this machine");
    let mut body = |ops: &mut Ops, polling: bool| {
        dynasm!(ops; .arch x64; push rbp; mov rbp, rsp);
        from_go(ops, convention);
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
    // SAFETY: a standard frame with slots of its own around calls of goroutine functions.
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

/// A standard frame around a call that passes the arguments on.
fn forward(jit: &Jit, name: &str, target: usize) -> Code {
    // SAFETY: as it says.
    let code = unsafe {
        jit.install(name, FrameClass::Standard, |ops| {
            dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; call extern target; pop rbp; ret);
        })
    };
    code.expect("it installs")
}

fn dive(jit: &Jit, convention: Convention) -> Unary {
    let mut polls = jit.polls(convention).expect("of this machine");
    // SAFETY: a standard frame; it calls itself only.
    let code = unsafe {
        jit.install("dive", FrameClass::Standard, |ops| {
            dynasm!(ops; .arch x64; again: ; push rbp; mov rbp, rsp);
            polls.check_stack(ops, 64);
            from_go(ops, convention);
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
    // SAFETY: a leaf that changes flags only, and is as good anywhere.
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

/// The code, which is made once.
pub fn codes() -> &'static Codes {
    static CODES: OnceLock<Codes> = OnceLock::new();
    CODES.get_or_init(Codes::new)
}

impl Codes {
    fn new() -> Self {
        let jit = Jit::new().expect("code memory");
        let (mut called, mut started) = (Vec::new(), Vec::new());
        let relays = [SYSTEM_V, GO].map(|convention| {
            let stub = jit.named_goroutine_fn("turn", convention, turn).expect("a stub");
            let entry = relay(&jit, convention, stub.address());
            called.push(stub);
            entry
        });
        let start = [None, Some(256 << 10)].map(|stack_bytes| {
            let stub = jit.named_goroutine_fn("spawned", GO, spawned).expect("a stub");
            let body = forward(&jit, "body", stub.address());
            called.push(stub);
            let builder = match stack_bytes {
                None => Builder::new(),
                Some(bytes) => Builder::new().stack_bytes(bytes),
            };
            let signature = "fn(u64)".parse().expect("a signature");
            // SAFETY: code of that convention and type; the argument goes to any thread.
            let spawn = unsafe { builder.spawn_fn(&jit, GO, &signature, &body) }.expect("a stub");
            let start = forward(&jit, "start", spawn.address());
            started.push(spawn);
            // SAFETY: of that convention and type.
            unsafe { start.enter(GO) }.expect("an entry")
        });
        let spinner = |level| (level, Spinner::new(level, GivesWay::Anywhere));
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
