//! The cost of a call through a stub.
//!
//! *From JIT code*: a loop of emitted code calls the same Rust function, directly or through its
//! goroutine-function stub. The function adds one to its argument, and each call takes the result
//! of the previous one. An iteration of the loop makes eight calls, all through cells in memory, so
//! that the stub and the plain call differ only in their target.
//!
//! *From Rust*: a loop in Rust calls the same emitted leaf, through a function pointer or through
//! its enter stub.
//!
//! *Adapters*: a loop in Rust calls a Rust function of six arguments, through a function pointer or
//! through an adapter. One adapter binds one more argument (no frame), one calls Win64 code (a
//! frame), and one is entered in Win64 (a frame that saves ten vector registers).

use std::hint::black_box;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::abi::Convention;
use footbridge::jit::{Bind, Code, FrameClass, Jit};
use footbridge::runtime::{Adapter, Config, Entry, GoroutineFn};

use crate::meter::Subject;

const PLAIN_FROM_JIT: &str = "JIT loop, plain indirect call";
const PLAIN_FROM_RUST: &str = "Rust loop, plain indirect call";
const CALLS_PER_ROUND: u64 = 8;

type Unary = fn(u64) -> u64;

/// The group.
pub fn subjects() -> Vec<Subject> {
    vec![
        Subject::new(PLAIN_FROM_JIT, |n| time_entry(&plain_loop().1, n)),
        Subject::new("JIT loop, goroutine fn, SystemV", |n| {
            time_entry(&stub_loop(Convention::SystemV).1, n)
        })
        .above(PLAIN_FROM_JIT, 3.0)
        .against(PLAIN_FROM_JIT),
        Subject::new("JIT loop, goroutine fn, GoAbiInternal", |n| {
            time_entry(&stub_loop(Convention::GoAbiInternal).1, n)
        })
        .above(PLAIN_FROM_JIT, 3.0)
        .against(PLAIN_FROM_JIT),
        Subject::new("JIT loop, goroutine fn, six ints and two floats", |n| {
            time_entry(&wide_loop().1, n)
        })
        .against(PLAIN_FROM_JIT),
        Subject::new(PLAIN_FROM_RUST, plain_from_rust),
        Subject::new("Rust loop, enter, SystemV", |n| enter_from_rust(Convention::SystemV, n))
            .against(PLAIN_FROM_RUST),
        Subject::new("Rust loop, enter, GoAbiInternal", |n| {
            enter_from_rust(Convention::GoAbiInternal, n)
        })
        .against(PLAIN_FROM_RUST),
        Subject::new(PLAIN_SIX, |n| time_six(add_last as *const () as usize, n)),
        Subject::new("6 arguments, adapter, no frame", |n| {
            let bind = Some(Bind::FirstArgument(7));
            let target = bound_add_last as *const () as usize;
            time_six(adapter(Convention::SystemV, target, bind).address(), n)
        })
        .against(PLAIN_SIX),
        Subject::new("6 arguments, adapter, a frame, to Win64", |n| {
            let target = win64_add_last as *const () as usize;
            time_six(adapter(Convention::Win64, target, None).address(), n)
        })
        .against(PLAIN_SIX),
        Subject::new(PLAIN_SIX_WIN64, |n| time_six_win64(win64_add_last as *const () as usize, n)),
        Subject::new("6 arguments, adapter, from Win64", |n| {
            let signature = SIX.parse().expect("well-formed");
            let (entry, target) = (Convention::Win64, Convention::SystemV);
            // SAFETY: `add_last` has that convention and signature.
            let adapter =
                unsafe { jit().adapter(&signature, entry, target, add_last as *const () as usize) };
            time_six_win64(adapter.expect("an adapter").address(), n)
        })
        .against(PLAIN_SIX_WIN64),
    ]
}

const PLAIN_SIX: &str = "6 arguments, plain indirect call";
const PLAIN_SIX_WIN64: &str = "6 arguments, plain indirect call in Win64";
const SIX: &str = "fn(u64, f64, u32, ptr, f32, u64) -> u64";

macro_rules! six {
    ($name:ident, $convention:literal $(, $bound:ident)?) => {
        #[allow(clippy::too_many_arguments, reason = "it measures many arguments")]
        extern $convention fn $name(
            $($bound: u64,)?
            _: u64,
            _: f64,
            _: u32,
            _: *const u8,
            _: f32,
            last: u64,
        ) -> u64 {
            $(debug_assert_eq!($bound, 7);)?
            last + 1
        }
    };
}
six!(add_last, "sysv64");
six!(bound_add_last, "sysv64", bound);
six!(win64_add_last, "win64");

/// The adapter of a shape, created once: these loops run many times.
fn adapter(convention: Convention, target: usize, bind: Option<Bind>) -> &'static Adapter {
    static TO_WIN64: OnceLock<Adapter> = OnceLock::new();
    static BOUND: OnceLock<Adapter> = OnceLock::new();
    let cell = if bind.is_some() { &BOUND } else { &TO_WIN64 };
    cell.get_or_init(|| {
        let signature = SIX.parse().expect("well-formed");
        let entry = Convention::SystemV;
        // SAFETY: the target has that convention and signature, with one more argument if one is
        // bound.
        let adapter = unsafe {
            match bind {
                None => jit().adapter(&signature, entry, convention, target),
                Some(bind) => jit().bound_adapter(&signature, entry, convention, target, bind),
            }
        };
        adapter.expect("an adapter")
    })
}

macro_rules! time_six {
    ($name:ident, $convention:literal) => {
        /// The time of `iterations` calls, each of which takes the result of the previous one.
        fn $name(address: usize, iterations: u64) -> Duration {
            type Six = extern $convention fn(u64, f64, u32, *const u8, f32, u64) -> u64;
            // SAFETY: a function of these types, or an adapter that calls one.
            let function = unsafe { std::mem::transmute::<usize, Six>(address) };
            let start = Instant::now();
            let mut number = 0;
            for _ in 0..iterations {
                number = black_box(function)(1, 2.0, 3, std::ptr::null(), 5.0, number);
            }
            let time = start.elapsed();
            assert_eq!(number, iterations);
            time
        }
    };
}
time_six!(time_six, "sysv64");
time_six!(time_six_win64, "win64");

extern "C" fn add_one(number: u64) -> u64 {
    number + 1
}

#[allow(clippy::too_many_arguments, reason = "it measures many arguments")]
fn add_one_to_last(_: u64, _: u64, _: u64, _: u64, _: u64, last: u64, x: f64, y: f64) -> u64 {
    debug_assert!(x == y);
    last + 1
}

/// Runs `f` on a goroutine of a run with one processor.
fn on_one_processor<R>(f: impl FnOnce() -> R) -> R {
    let config = Config::new().processors(1);
    config.run(f).expect("the run starts")
}

fn jit() -> Jit {
    Jit::new().expect("code memory")
}

/// Emits `f(rounds)`, which makes `rounds` times eight calls of `target`. The first call takes 0,
/// each other one the result of the previous call. Returns the last result.
///
/// # Safety
/// 1. `target` is a function of the convention that takes a number and returns one.
unsafe fn loop_of_calls(name: &str, convention: Convention, target: usize) -> Code {
    // SAFETY: a standard frame. It changes no register that a call must preserve: the count of
    // rounds is in the frame, and so is the spill area for the callee's register arguments
    // (GoAbiInternal). rsp is 16-byte aligned at each call.
    let code = unsafe {
        jit().install(name, FrameClass::Standard, |ops| {
            dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; sub rsp, 32);
            match convention {
                Convention::SystemV => dynasm!(ops; .arch x64; mov [rbp - 8], rdi),
                Convention::GoAbiInternal => dynasm!(ops; .arch x64; mov [rbp - 8], rax),
                other => panic!("this bench has no loop for {other:?}"),
            }
            dynasm!(ops; .arch x64; xor eax, eax; again:);
            for _ in 0..CALLS_PER_ROUND {
                if convention == Convention::SystemV {
                    dynasm!(ops; .arch x64; mov rdi, rax);
                }
                dynasm!(ops; .arch x64; call QWORD [>target]);
            }
            dynasm!(ops
                ; .arch x64
                ; sub QWORD [rbp - 8], 1
                ; jnz <again
                ; leave
                ; ret
                ; .align 8
                ; target:
                ; .u64 target as u64
            );
        })
    };
    code.expect("the loop installs")
}

fn enter(code: &Code, convention: Convention) -> Entry<Unary> {
    // SAFETY: all code of this file has type `Unary` in the convention that it is passed with.
    unsafe { code.enter(convention) }.expect("the entry stub")
}

/// A loop, and the code that it calls.
type Loop<T> = (T, Entry<Unary>);

fn plain_loop() -> &'static Loop<Code> {
    static LOOP: OnceLock<Loop<Code>> = OnceLock::new();
    LOOP.get_or_init(|| {
        let target = add_one as *const () as usize;
        // SAFETY: a C function of that type.
        let code = unsafe { loop_of_calls("plain", Convention::SystemV, target) };
        let entry = enter(&code, Convention::SystemV);
        (code, entry)
    })
}

fn stub_loop(convention: Convention) -> &'static Loop<(Code, GoroutineFn)> {
    static SYSTEM_V: OnceLock<Loop<(Code, GoroutineFn)>> = OnceLock::new();
    static GO_INTERNAL: OnceLock<Loop<(Code, GoroutineFn)>> = OnceLock::new();
    let (cell, name) = match convention {
        Convention::SystemV => (&SYSTEM_V, "through SystemV stub"),
        _ => (&GO_INTERNAL, "through GoAbiInternal stub"),
    };
    cell.get_or_init(|| {
        let stub = jit().named_goroutine_fn("add_one", convention, |n: u64| add_one(n));
        let stub = stub.expect("the stub");
        // SAFETY: the stub has that convention and type.
        let code = unsafe { loop_of_calls(name, convention, stub.address()) };
        let entry = enter(&code, convention);
        ((code, stub), entry)
    })
}

/// Like the other loops, with arguments in all integer registers of System V.
fn wide_loop() -> &'static Loop<(Code, GoroutineFn)> {
    static LOOP: OnceLock<Loop<(Code, GoroutineFn)>> = OnceLock::new();
    LOOP.get_or_init(|| {
        let convention = Convention::SystemV;
        let stub = jit().named_goroutine_fn("add_one_to_last", convention, add_one_to_last);
        let stub = stub.expect("the stub");
        let target = stub.address();
        // SAFETY: as in `loop_of_calls`. The sixth integer argument is the previous result, the
        // others have arbitrary values.
        let code = unsafe {
            jit().install("wide", FrameClass::Standard, |ops| {
                dynasm!(ops
                    ; .arch x64
                    ; push rbp
                    ; mov rbp, rsp
                    ; sub rsp, 32
                    ; mov [rbp - 8], rdi
                    ; xor eax, eax
                    ; again:
                );
                for _ in 0..CALLS_PER_ROUND {
                    dynasm!(ops
                        ; .arch x64
                        ; mov r9, rax
                        ; xorps xmm0, xmm0
                        ; xorps xmm1, xmm1
                        ; call QWORD [>target]
                    );
                }
                dynasm!(ops
                    ; .arch x64
                    ; sub QWORD [rbp - 8], 1
                    ; jnz <again
                    ; leave
                    ; ret
                    ; .align 8
                    ; target:
                    ; .u64 target as u64
                );
            })
        };
        let code = code.expect("the loop installs");
        let entry = enter(&code, convention);
        ((code, stub), entry)
    })
}

/// The time of `iterations` calls made by a loop.
fn time_entry(entry: &Entry<Unary>, iterations: u64) -> Duration {
    let rounds = iterations.div_ceil(CALLS_PER_ROUND);
    let time = on_one_processor(|| {
        let start = Instant::now();
        // SAFETY: called on a goroutine; the loop requires a count of rounds that is not 0.
        let calls = unsafe { entry.call(black_box(rounds)) };
        let time = start.elapsed();
        assert_eq!(calls, rounds * CALLS_PER_ROUND);
        time
    });
    time.mul_f64(iterations as f64 / (rounds * CALLS_PER_ROUND) as f64)
}

/// An emitted leaf that adds one, in both conventions.
fn leaf(convention: Convention) -> &'static Loop<Code> {
    static SYSTEM_V: OnceLock<Loop<Code>> = OnceLock::new();
    static GO_INTERNAL: OnceLock<Loop<Code>> = OnceLock::new();
    let cell = match convention {
        Convention::SystemV => &SYSTEM_V,
        _ => &GO_INTERNAL,
    };
    cell.get_or_init(|| {
        // SAFETY: a leaf that only changes the result register.
        let code = unsafe {
            jit().install("add one", FrameClass::Leaf, |ops| {
                if convention == Convention::SystemV {
                    dynasm!(ops; .arch x64; mov rax, rdi);
                }
                dynasm!(ops; .arch x64; add rax, 1; ret);
            })
        };
        let code = code.expect("the leaf installs");
        let entry = enter(&code, convention);
        (code, entry)
    })
}

fn plain_from_rust(iterations: u64) -> Duration {
    let address = leaf(Convention::SystemV).0.address();
    // SAFETY: the leaf is a C function of this type.
    let function = unsafe { std::mem::transmute::<usize, extern "C" fn(u64) -> u64>(address) };
    on_one_processor(|| {
        let start = Instant::now();
        let mut number = 0;
        for _ in 0..iterations {
            number = black_box(function)(number);
        }
        let time = start.elapsed();
        assert_eq!(number, iterations);
        time
    })
}

fn enter_from_rust(convention: Convention, iterations: u64) -> Duration {
    let entry = &leaf(convention).1;
    on_one_processor(|| {
        let start = Instant::now();
        let mut number = 0;
        for _ in 0..iterations {
            // SAFETY: called on a goroutine; the leaf accepts any number.
            number = unsafe { black_box(entry).call(number) };
        }
        let time = start.elapsed();
        assert_eq!(number, iterations);
        time
    })
}
