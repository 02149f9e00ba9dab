//! Creating code: nanoseconds from the call to the published stub.
//!
//! Code memory is not freed, so a bench that ran for long would exhaust it. Each subject therefore
//! creates a bounded number of stubs in a row, and the times of criterion's longer requests are
//! extrapolated.

use std::cell::Cell;
use std::hint::black_box;
use std::time::{Duration, Instant};

use dynasmrt::x64::X64Relocation;
use dynasmrt::{DynasmApi, VecAssembler, dynasm};
use footbridge::abi::{Convention, Plan, PlanRequest, RegSet, Signature, Type};
use footbridge::jit::{AdapterCode, AdapterSpec, Code, FrameClass, Jit, JitError, lookup};
use footbridge::runtime::{Adapter, Entry, GoroutineFn};

use crate::meter::Subject;

const ASSEMBLER: &str = "VecAssembler alone, into a Vec";
/// The most stubs that are created in a row.
pub const LIMIT: u64 = 5_000;

/// The group.
pub fn subjects() -> Vec<Subject> {
    vec![
        Subject::new(ASSEMBLER, assemble),
        // The part of the first stub of a shape that the subjects below, whose shapes are known, do
        // not have.
        Subject::new("plan of a new shape, u64 -> u64", |n| plan("fn(u64) -> u64", n)),
        Subject::new("plan of a new shape, 6 arguments", |n| {
            plan("fn(u64, f64, i32, ptr, f32, i8) -> u64", n)
        }),
        made("install, a leaf", install).against(ASSEMBLER),
        made("goroutine fn, u64 -> u64, SystemV", |jit, n| {
            goroutine_fn(jit, Convention::SystemV, n)
        })
        .against(ASSEMBLER),
        made("goroutine fn, u64 -> u64, GoAbiInternal", |jit, n| {
            goroutine_fn(jit, Convention::GoAbiInternal, n)
        })
        .against(ASSEMBLER),
        made("goroutine fn, 12 arguments, GoAbiInternal", wide_goroutine_fn).against(ASSEMBLER),
        made("enter, u64 -> u64, GoAbiInternal", enter).against(ASSEMBLER),
        known_adapters().against(ASSEMBLER),
        new_adapters().against(ASSEMBLER),
        Subject::new("adapter, 6 arguments, plan and bytes alone", adapter_code),
    ]
}

/// Adapters of one shape. All but the first are copies.
pub fn known_adapters() -> Subject {
    made("adapter, 6 arguments, known shape", known_adapter)
}

/// Adapters that are all planned and emitted.
pub fn new_adapters() -> Subject {
    made("adapter, 6 arguments, new shape each", adapters_of_new_shapes())
}

const SIX: &str = "fn(u64, f64, i32, ptr, f32, u64) -> u64";

/// A target of adapters, which is not called here.
pub extern "win64" fn win64_target() {}

fn adapter(jit: Jit, signature: &Signature) -> Result<Adapter, JitError> {
    let target = win64_target as *const () as usize;
    // SAFETY: the adapter is not called.
    unsafe { jit.adapter(signature, Convention::SystemV, Convention::Win64, target) }
}

fn known_adapter(jit: Jit, iterations: u64) -> Duration {
    let signature: Signature = SIX.parse().expect("well-formed");
    drop(adapter(jit, &signature).expect("the first of its shape"));
    time(iterations, Adapter::address, |_| adapter(jit, &signature))
}

/// Creates adapters with six arguments and one result, each with a different signature.
fn adapters_of_new_shapes() -> impl Fn(Jit, u64) -> Duration {
    let used = Cell::new(0);
    move |jit, iterations| {
        let signatures: Vec<Signature> = (0..iterations)
            .map(|n| {
                let mut number = (used.get() + n) as usize;
                let mut ty = || {
                    let ty = Type::SCALARS[number % Type::SCALARS.len()].clone();
                    number /= Type::SCALARS.len();
                    ty
                };
                let types: Vec<Type> = (0..7).map(|_| ty()).collect();
                Signature::new(&types[..6], &types[6..])
            })
            .collect();
        used.set(used.get() + iterations);
        time(iterations, Adapter::address, |n| adapter(jit, &signatures[n as usize]))
    }
}

/// The time of the first adapter of a shape, without the code memory and the registry.
fn adapter_code(iterations: u64) -> Duration {
    let signature: Signature = SIX.parse().expect("well-formed");
    let (entry, target) = (Convention::SystemV, Convention::Win64);
    let start = Instant::now();
    for _ in 0..iterations {
        let spec = AdapterSpec::new(black_box(&signature), entry, target);
        black_box(AdapterCode::new(&spec).expect("an adapter"));
    }
    start.elapsed()
}

/// The plan of a goroutine function: two assignments and the moves between them.
fn plan(signature: &str, iterations: u64) -> Duration {
    let signature: Signature = signature.parse().expect("well-formed");
    let bound_param = Some(signature.params().len());
    let start = Instant::now();
    for _ in 0..iterations {
        let signature = black_box(&signature);
        let entry = Convention::GoAbiInternal.assign(signature).expect("scalars");
        let target = Convention::SystemV.assign(&signature.with_param(Type::Ptr)).expect("scalars");
        let (arg_scratch, result_scratch) = (RegSet::EMPTY, RegSet::EMPTY);
        let request = PlanRequest {
            entry: &entry,
            target: &target,
            bound_param,
            arg_scratch,
            result_scratch,
        };
        black_box(Plan::new(&request).expect("no cycle needs a scratch register"));
    }
    start.elapsed()
}

/// A subject that creates stubs.
fn made(name: &'static str, make: impl Fn(Jit, u64) -> Duration + 'static) -> Subject {
    let mut place = Place::new();
    Subject::new(name, move |n| make(place.take(n), n)).limit(LIMIT).at_most(1000.0)
}

/// The code memory of one subject. After `STUBS` stubs it is replaced by a new arena.
struct Place {
    jit: Option<Jit>,
    made: u64,
}

impl Place {
    const STUBS: u64 = 200_000;

    fn new() -> Self {
        Self { jit: None, made: 0 }
    }

    /// Returns code memory with room for this many stubs.
    fn take(&mut self, stubs: u64) -> Jit {
        self.made += stubs;
        if self.made > Self::STUBS {
            self.jit = None;
            self.made = stubs;
        }
        *self.jit.get_or_insert_with(|| Jit::builder().build().expect("code memory"))
    }
}

/// Creates `iterations` stubs and looks up each. Only the creation is timed.
fn time<T>(
    iterations: u64,
    address: impl Fn(&T) -> usize,
    mut make: impl FnMut(u64) -> Result<T, JitError>,
) -> Duration {
    // The room for the handles is written before: the first write to a page takes as long as a few
    // stubs, and how often it happens depends on the size of the handle.
    let mut made: Vec<Option<T>> = (0..iterations).map(|_| None).collect();
    let start = Instant::now();
    for (n, room) in made.iter_mut().enumerate() {
        *room = Some(make(n as u64).expect("the stub"));
    }
    let time = start.elapsed();
    for stub in made.iter().flatten() {
        let found = lookup(address(stub)).expect("it was published");
        assert_eq!(found.start(), address(stub));
    }
    time
}

fn assemble(iterations: u64) -> Duration {
    let start = Instant::now();
    let mut bytes = 0;
    for n in 0..iterations {
        let mut ops = VecAssembler::<X64Relocation>::new_with_capacity(0, 256, 0, 0, 8, 0, 8);
        dynasm!(ops; .arch x64; lea rax, [rdi + rsi * 8 + black_box(n as i32)]; ret);
        bytes += ops.finalize().expect("it assembles").len();
    }
    let time = start.elapsed();
    assert!(black_box(bytes) > 0);
    time
}

fn install(jit: Jit, iterations: u64) -> Duration {
    time(iterations, Code::address, |n| {
        // SAFETY: a leaf that changes rax only.
        unsafe {
            jit.install("leaf", FrameClass::Leaf, |ops| {
                dynasm!(ops; .arch x64; lea rax, [rdi + rsi * 8 + n as i32]; ret);
            })
        }
    })
}

fn goroutine_fn(jit: Jit, convention: Convention, iterations: u64) -> Duration {
    time(iterations, GoroutineFn::address, |n| {
        jit.named_goroutine_fn("add", convention, move |m: u64| m + n)
    })
}

fn wide_goroutine_fn(jit: Jit, iterations: u64) -> Duration {
    #[allow(clippy::too_many_arguments, reason = "it measures many arguments")]
    fn sum(
        a: u64,
        b: u64,
        c: u64,
        d: u64,
        e: u64,
        f: u64,
        g: u64,
        h: u64,
        i: u64,
        j: u64,
        x: f64,
        y: f64,
    ) -> u64 {
        a + b + c + d + e + f + g + h + i + j + (x + y) as u64
    }
    time(iterations, GoroutineFn::address, |_| {
        jit.named_goroutine_fn("sum", Convention::GoAbiInternal, sum)
    })
}

fn enter(jit: Jit, iterations: u64) -> Duration {
    type Unary = fn(u64) -> u64;
    // A piece of code each: further entries to the same one are the same stub.
    let leaf = || {
        // SAFETY: a leaf that changes rax only.
        let code = unsafe {
            jit.install("one", FrameClass::Leaf, |ops| dynasm!(ops; .arch x64; add rax, 1; ret))
        };
        code.expect("the leaf installs")
    };
    let codes: Vec<Code> = (0..iterations).map(|_| leaf()).collect();
    time(
        iterations,
        Entry::<Unary>::address,
        // SAFETY: the leaf is an ABIInternal function of that type.
        |n| unsafe { codes[n as usize].enter::<Unary>(Convention::GoAbiInternal) },
    )
}
