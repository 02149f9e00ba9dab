//! Adapters, executed: all ordered pairs of the four conventions of this machine.
//!
//! * Random calls from a caller that knows every register to a callee that does
//!   (`machine/carry.rs`), with and without a bound word. The same call in the model machine
//!   (`footbridge::abi::model`) must carry the same values.
//! * The same by way of functions that rustc compiles (`machine/rust_source.rs`).
//! * Planted defects: each kind of report is seen, for every pair.
//!
//! `FOOTBRIDGE_ADAPTER_CASES` is the number of random signatures a pair (code memory is full after a
//! few thousand: take another seed), `FOOTBRIDGE_RUSTC_CASES` that of signatures for rustc,
//! `FOOTBRIDGE_SEED` the seed.
#![cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]
#![allow(unsafe_code, reason = "calls emitted code")]

use super::plant;
use super::rust_source;
use std::collections::BTreeSet;
use std::path::Path;
use support::child;
use support::settings::{number_or, seed_or};

use super::carry::{
    Arrived, Call, Callee, Caller, Change, Expected, Returned, closure_register, current_g,
    data_bytes, random_values, report_faults, vector_bytes, with_case,
};
use super::draw::Kinds;
use super::rust_source::{Found, Library};
use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::abi::model::{Machine, Xorshift};
use footbridge::abi::{
    Assignment, Convention, Gpr, Language, Narrow, Passing, Place, Plan, PlanError, PlanRequest,
    Reg, RegSet, Signature, Type, ValueIndex, Xmm,
};
use footbridge::jit::{Bind, Code, FrameClass, Jit, JitError, Ops};
use footbridge::runtime::{Adapter, Config};

const CONVENTIONS: [Convention; 4] =
    [Convention::SystemV, Convention::Win64, Convention::GoAbi0, Convention::GoAbiInternal];

fn cases() -> usize {
    number_or("FOOTBRIDGE_ADAPTER_CASES", 40) as usize
}

fn seed() -> u64 {
    seed_or(1)
}

fn parse(text: &str) -> Signature {
    text.parse().expect("a signature")
}

/// One call: both sides, and what goes through.
struct Case {
    signature: Signature,
    entry: Assignment,
    target: Assignment,
    bind: Option<Bind>,
    args: Vec<Vec<u8>>,
    results: Vec<Vec<u8>>,
    seed: u64,
    /// As in [`Call`].
    room: Option<bool>,
    /// For a person.
    what: String,
}

impl Case {
    /// `None` if one of the conventions has no place for a value.
    fn new(
        signature: &Signature,
        [from, to]: [Convention; 2],
        bind: Option<Bind>,
        seed: u64,
    ) -> Option<Case> {
        let target_signature = match bind {
            Some(Bind::FirstArgument(_)) => signature.with_first_param(Type::Ptr),
            _ => signature.clone(),
        };
        let (entry, target) = (from.assign(signature).ok()?, to.assign(&target_signature).ok()?);
        let mut rng = Xorshift::new(seed);
        let args = random_values(entry.params(), &mut rng);
        let results = random_values(entry.results(), &mut rng);
        let what = format!(
            "{from} -> {to}, {bind:?}, seed {seed:#x}, FOOTBRIDGE_SEED={}\n{signature}\n\
             entry:  {entry}\ntarget: {target}\n",
            self::seed()
        );
        let signature = signature.clone();
        Some(Case { signature, entry, target, bind, args, results, seed, room: None, what })
    }

    fn conventions(&self) -> [Convention; 2] {
        [&self.entry, &self.target].map(|side| side.convention().expect("of a convention"))
    }

    /// The values of the target's parameters.
    fn target_args(&self) -> Vec<Vec<u8>> {
        let mut args = self.args.clone();
        if let Some(Bind::FirstArgument(word)) = self.bind {
            args.insert(0, word.to_le_bytes().to_vec());
        }
        args
    }

    /// Plans as they are made for an adapter: one with a frame, and if there is one, that of a tail
    /// jump. Registers are at hand that hold no argument or result.
    fn plans(&self) -> Result<Vec<Plan>, PlanError> {
        let [from, to] = self.conventions().map(Convention::spec);
        let request = |scratch| PlanRequest {
            entry: &self.entry,
            target: &self.target,
            bound_param: matches!(self.bind, Some(Bind::FirstArgument(_))).then_some(0),
            arg_scratch: scratch,
            result_scratch: scratch,
        };
        let saved = RegSet::of_gprs(&[Gpr::R12]).with(Xmm::XMM15);
        let volatile = from.volatile().intersection(to.volatile());
        let closure = to.context.into_iter().collect();
        let mut plans = vec![Plan::new(&request(saved))?];
        plans.extend(Plan::tail(&request(volatile.minus(closure))));
        Ok(plans)
    }

    /// What the model machine carries: the arguments that arrive, and the results that return.
    fn model(&self, plan: &Plan) -> [Vec<Vec<u8>>; 2] {
        let fault = |fault| -> ! { panic!("{fault}\n{}\n{plan}", self.what) };
        let mut machine = Machine::new(&self.entry, &self.target, plan, self.seed);
        if let Some(Bind::FirstArgument(word)) = self.bind {
            machine.set_context(word);
        }
        machine.enter(&self.args);
        machine.run(&plan.args).unwrap_or_else(|e| fault(e));
        let arrived = machine.arrived().unwrap_or_else(|e| fault(e));
        machine.leave(&self.results);
        machine.run(&plan.results).unwrap_or_else(|e| fault(e));
        let returned = machine.returned().unwrap_or_else(|e| fault(e));
        [arrived, returned]
    }
}

/// A caller and a callee, on one thread.
struct Bench {
    jit: Jit,
    caller: Caller,
    callee: Callee,
    g: u64,
}

/// Runs `f` on a goroutine if code of ABIInternal takes part, and on a plain thread if not.
fn with_bench<R>(conventions: &[Convention], f: impl FnOnce(&mut Bench) -> R) -> R {
    let jit = Jit::new().expect("code memory");
    let bench = |g| {
        report_faults();
        let caller = Caller::new(&jit);
        let callee = Callee::new(&jit, &caller);
        f(&mut Bench { jit, caller, callee, g })
    };
    if conventions.contains(&Convention::GoAbiInternal) {
        let config = Config::new().processors(1);
        config.run(|| bench(current_g(&jit))).expect("the run starts")
    } else {
        bench(0)
    }
}

impl Bench {
    /// An adapter in front of `target`, code of the target's convention and signature.
    fn adapter(&self, case: &Case, target: usize) -> Result<Adapter, JitError> {
        let [from, to] = case.conventions();
        // SAFETY: the callee is of whatever type it is told; `call` calls the stub as is said here,
        // on a goroutine if there is need.
        unsafe {
            match case.bind {
                None => self.jit.adapter(&case.signature, from, to, target),
                Some(bind) => self.jit.bound_adapter(&case.signature, from, to, target, bind),
            }
        }
    }

    /// Prepares the callee for a case. The result is the closure that the caller has to pass.
    fn expect(&mut self, case: &Case) -> Option<u64> {
        let args = case.target_args();
        let [from, to] = case.conventions();
        // A stub that binds nothing leaves a closure where it is, if that is right for its target.
        let passes = case.bind.is_none() && closure_register(from) == closure_register(to);
        let passed = passes.then_some(case.seed.rotate_left(17));
        let bound = match case.bind {
            Some(Bind::Closure(word)) => Some(word),
            _ => passed,
        };
        self.callee.expect(&Expected {
            target: &case.target,
            args: &args,
            results: &case.results,
            closure: bound,
            g: self.g,
            alike: from == to,
            seed: case.seed ^ 0x7a26,
        });
        passed
    }

    /// Calls the code at `address` as a case says. After the return `back` runs first.
    ///
    /// # Safety
    /// The code is of the entry's convention and signature, and leads to something that may be
    /// called with any values.
    unsafe fn call_only(
        &mut self,
        case: &Case,
        address: usize,
        closure: Option<u64>,
        back: Option<&Code>,
    ) -> Returned {
        let [from, to] = case.conventions();
        let call = Call {
            entry: &case.entry,
            args: &case.args,
            g: self.g,
            alike: from == to,
            closure,
            target: address,
            back: back.map(Code::address),
            room: case.room,
        };
        let mut rng = Xorshift::new(case.seed ^ 0xca11);
        // SAFETY: the caller's promise; `back` jumps to where it is to.
        let mut returned = with_case(&case.what, || unsafe { self.caller.call(&call, &mut rng) });
        for (i, (found, expected)) in returned.values.iter().zip(&case.results).enumerate() {
            if found != expected {
                returned.wrong.push(Change::Value(ValueIndex::Result(i)));
            }
        }
        returned
    }

    /// The call of a case by way of the code at `address`, which leads to the callee.
    fn call(&mut self, case: &Case, address: usize, back: Option<&Code>) -> (Arrived, Returned) {
        let closure = self.expect(case);
        // SAFETY: adapters are made of the case, and the callee takes any values.
        let returned = unsafe { self.call_only(case, address, closure, back) };
        (self.callee.arrived(), returned)
    }
}

/// The harness itself: a callee that is called by nobody but its caller finds everything in place.
#[test]
fn a_direct_call_carries_everything() {
    for convention in CONVENTIONS {
        with_bench(&[convention], |bench| {
            let kinds = Kinds::of([convention; 2], vector_bytes());
            let mut rng = Xorshift::new(seed());
            let mut calls = 0;
            for _ in 0..2 * cases() {
                let signature = kinds.signature(&mut rng);
                let Some(case) = Case::new(&signature, [convention; 2], None, rng.bits()) else {
                    continue;
                };
                calls += 1;
                let (arrived, returned) = bench.call(&case, bench.callee.address(), None);
                assert_eq!(arrived.wrong, [], "{}", case.what);
                assert_eq!(returned.wrong, [], "{}", case.what);
                assert_eq!(arrived.values, case.args, "{}", case.what);
                assert_eq!(returned.values, case.results, "{}", case.what);
            }
            assert!(calls > cases(), "only {calls} {convention}");
        });
    }
}

/// One random signature, unbound and with both kinds of bound words. Says how many calls were made.
fn check_signature(
    bench: &mut Bench,
    pair: [Convention; 2],
    signature: &Signature,
    seed: u64,
) -> usize {
    let mut calls = 0;
    let word = seed.rotate_left(32) | 1;
    for bind in [None, Some(Bind::Closure(word)), Some(Bind::FirstArgument(word))] {
        let Some(case) = Case::new(signature, pair, bind, seed) else {
            continue;
        };
        let made = bench.adapter(&case, bench.callee.address());
        let (plans, adapter) = match (case.plans(), made) {
            (Ok(plans), Ok(adapter)) => (plans, adapter),
            (Err(refused), Err(JitError::Plan(error))) if error == refused => continue,
            (plans, made) => panic!("plans {plans:?}, adapter {made:?}\n{}", case.what),
        };
        let (arrived, returned) = bench.call(&case, adapter.address(), None);
        let what = format_args!("{}{}", case.what, plans[0]);
        assert_eq!(arrived.wrong, [], "at the callee: {what}");
        assert_eq!(returned.wrong, [], "at the caller: {what}");
        for plan in &plans {
            let [arrived_in_model, returned_in_model] = case.model(plan);
            let what = format_args!("{}{plan}", case.what);
            assert_eq!(arrived.values, arrived_in_model, "{what}");
            assert_eq!(returned.values, returned_in_model, "{what}");
        }
        assert_eq!(returned.values, case.results, "{}", case.what);
        calls += 1;
    }
    calls
}

fn check_pair(from: Convention, to: Convention) {
    with_bench(&[from, to], |bench| {
        let kinds = Kinds::of([from, to], vector_bytes());
        let mut rng = Xorshift::new(seed());
        let (mut calls, wanted) = (0, 3 * cases());
        for _ in 0..10 * cases() {
            let signature = kinds.signature(&mut rng);
            calls += check_signature(bench, [from, to], &signature, rng.bits());
            if calls >= wanted {
                return;
            }
        }
        panic!("only {calls} calls of {from} -> {to}: most signatures were refused");
    });
}

macro_rules! pairs {
    ($($name:ident: $from:ident -> $to:ident,)*) => {
        /// One test for each pair, so that they run side by side and a fault names its pair.
        mod round_trip {
            use footbridge::abi::Convention;

            $(
                #[test]
                fn $name() {
                    super::check_pair(Convention::$from, Convention::$to);
                }
            )*
        }

        #[test]
        fn every_pair_has_its_test() {
            let pairs = [$([Convention::$from, Convention::$to]),*];
            for from in CONVENTIONS {
                for to in CONVENTIONS {
                    assert!(pairs.contains(&[from, to]), "{from} -> {to}");
                }
            }
        }
    };
}

pairs! {
    system_v_to_system_v: SystemV -> SystemV,
    system_v_to_win64: SystemV -> Win64,
    system_v_to_go_abi0: SystemV -> GoAbi0,
    system_v_to_go_abi_internal: SystemV -> GoAbiInternal,
    win64_to_system_v: Win64 -> SystemV,
    win64_to_win64: Win64 -> Win64,
    win64_to_go_abi0: Win64 -> GoAbi0,
    win64_to_go_abi_internal: Win64 -> GoAbiInternal,
    go_abi0_to_system_v: GoAbi0 -> SystemV,
    go_abi0_to_win64: GoAbi0 -> Win64,
    go_abi0_to_go_abi0: GoAbi0 -> GoAbi0,
    go_abi0_to_go_abi_internal: GoAbi0 -> GoAbiInternal,
    go_abi_internal_to_system_v: GoAbiInternal -> SystemV,
    go_abi_internal_to_win64: GoAbiInternal -> Win64,
    go_abi_internal_to_go_abi0: GoAbiInternal -> GoAbi0,
    go_abi_internal_to_go_abi_internal: GoAbiInternal -> GoAbiInternal,
}

/// One defect: what spoils the call, and what must be reported.
struct Plant {
    name: String,
    wrong: Vec<Change>,
    spoil: Box<dyn Fn(&mut Ops)>,
}

fn plant(
    name: impl Into<String>,
    wrong: impl Into<Vec<Change>>,
    spoil: impl Fn(&mut Ops) + 'static,
) -> Plant {
    Plant { name: name.into(), wrong: wrong.into(), spoil: Box::new(spoil) }
}

/// A MXCSR and an x87 control word that no caller of `machine/carry.rs` has.
const PLANTED_MXCSR: u32 = 0x3f80;
const PLANTED_X87_CONTROL: u16 = 0x0e7f;

/// From rsp to the area: where a callee starts, and where a caller goes on.
const AT_CALLEE: i32 = 8;
const AT_CALLER: i32 = 0;

/// What DF, the control words and the x87 stack can have wrong, on either side.
fn spoilt_modes() -> [Plant; 4] {
    [
        plant("DF", [Change::Df], |ops| dynasm!(ops; .arch x64; std)),
        plant("MXCSR", [Change::Mxcsr], |ops| plant::set_mxcsr(ops, PLANTED_MXCSR)),
        plant("x87 control word", [Change::X87Control], |ops| {
            plant::set_x87_control(ops, PLANTED_X87_CONTROL);
        }),
        plant("x87 stack", [Change::X87Stack], |ops| dynasm!(ops; .arch x64; fld1)),
    ]
}

/// Whatever a register of this convention is pinned to, it holds something else.
fn spoilt_pins(convention: Convention) -> Vec<Plant> {
    let pinned = convention.spec().pinned.iter().map(|&(register, _)| {
        let wrong = match register {
            Reg::Gpr(r) => Change::Gpr(r),
            Reg::Xmm(x) => Change::Xmm(x),
            other => panic!("not a register of this machine: {other}"),
        };
        plant(register.to_string(), [wrong], move |ops| plant::clobber(ops, register))
    });
    pinned.collect()
}

/// Everything that can be wrong when a callee starts.
fn spoilt_arrivals(case: &Case) -> Vec<Plant> {
    let [_, to] = case.conventions();
    let mut plants = Vec::from(spoilt_modes());
    plants.extend(spoilt_pins(to));
    let params = case.target.params();
    for (i, value) in params.iter().enumerate() {
        for place in plant::places(value) {
            let wrong = [Change::Value(ValueIndex::Param(i))];
            plants.push(plant(format!("low bit of {place}"), wrong, move |ops| {
                plant::flip(ops, place, AT_CALLEE, 0);
            }));
        }
    }
    let first = |n: usize| plant::places(&params[n])[0];
    // The first four are two pairs of one type each.
    for (a, b) in [(0, 1), (2, 3)] {
        let wrong = [a, b].map(|n| Change::Value(ValueIndex::Param(n)));
        let [a, b] = [a, b].map(first);
        plants.push(plant(format!("swapped {a}, {b}"), wrong, move |ops| {
            plant::swap(ops, a, b, AT_CALLEE);
        }));
    }
    if to.spec().language == Language::C {
        for (i, value) in params.iter().enumerate() {
            let (place, index) = (first(i), ValueIndex::Param(i));
            let bits = value.layout().size_bytes as i32 * 8;
            if bits < 32 {
                let wrong = [Change::NotExtended(index)];
                plants.push(plant(format!("extension of {place}"), wrong, move |ops| {
                    plant::flip(ops, place, AT_CALLEE, bits);
                }));
            } else if let (32, Place::Area(offset)) = (bits, place) {
                let wrong = [Change::NotWhole(index)];
                plants.push(plant(format!("half a word at {place}"), wrong, move |ops| {
                    let poison = i32::from_le_bytes([Caller::POISON; 4]);
                    let at = AT_CALLEE + offset as i32 + 4;
                    dynasm!(ops; .arch x64; mov DWORD [rsp + at], poison);
                }));
            }
        }
    }
    if let Some(Bind::Closure(_)) = case.bind {
        let register = closure_register(to);
        plants.push(plant("closure", [Change::Closure], move |ops| {
            plant::clobber(ops, Reg::Gpr(register));
        }));
    }
    plants
}

/// Everything that can be wrong when a caller goes on, whatever the results are.
fn spoilt_returns(case: &Case) -> Vec<Plant> {
    let [from, _] = case.conventions();
    let mut plants = Vec::from(spoilt_modes());
    plants.extend(spoilt_pins(from));
    for register in from.spec().preserved.with(Gpr::RSP).iter() {
        let wrong = match register {
            Reg::Gpr(r) => Change::Gpr(r),
            Reg::Xmm(x) => Change::Xmm(x),
            other => panic!("not a register of this machine: {other}"),
        };
        let spoil = move |ops: &mut Ops| plant::clobber(ops, register);
        plants.push(plant(register.to_string(), [wrong], spoil));
    }
    let above = case.entry.total_bytes();
    for beyond in [above, above + 7, above + 64] {
        let wrong = [Change::Above(beyond as usize)];
        plants.push(plant(format!("byte {beyond} of the stack"), wrong, move |ops| {
            plant::flip(ops, Place::Area(beyond), AT_CALLER, 3);
        }));
    }
    plants
}

/// Every result has a bit that is wrong, or a byte beside it.
fn spoilt_results(case: &Case) -> Vec<Plant> {
    let mut plants = Vec::new();
    let extends = case.entry.narrow() != Narrow::Garbage;
    for (i, value) in case.entry.results().iter().enumerate() {
        let index = ValueIndex::Result(i);
        for place in plant::places(value) {
            plants.push(plant(format!("low bit of {place}"), [Change::Value(index)], move |ops| {
                plant::flip(ops, place, AT_CALLER, 0);
            }));
            let bits = value.layout().size_bytes as i32 * 8;
            if bits < 32 && value.ty().is_word() && extends {
                let wrong = [Change::NotExtended(index)];
                plants.push(plant(format!("extension of {place}"), wrong, move |ops| {
                    plant::flip(ops, place, AT_CALLER, bits);
                }));
            }
        }
        if let Passing::Reference(_) = value.passing() {
            let pointer = case.entry.result_pointer().and_then(|pointer| pointer.returned);
            let Some(Reg::Gpr(pointer)) = pointer else {
                panic!("the address of the result is returned");
            };
            let size = value.layout().size_bytes as i32;
            let data = data_bytes(value.ty(), value.language());
            let last = data.iter().rposition(|data| *data).expect("it has data") as i32;
            plants.push(plant("address of the result", [Change::Address(index)], move |ops| {
                plant::clobber(ops, Reg::Gpr(pointer));
            }));
            for (at, wrong) in [
                (0, Change::Value(index)),
                (last, Change::Value(index)),
                (size, Change::Beside(index, size as isize)),
                (-1, Change::Beside(index, -1)),
            ] {
                plants.push(plant(format!("byte {at} of the result"), [wrong], move |ops| {
                    dynasm!(ops; .arch x64; xor BYTE [Rq(pointer) + at], 1);
                }));
            }
        }
    }
    plants
}

impl Bench {
    /// Code that spoils something and goes on at `next`.
    fn thunk(&self, plant: &Plant, next: usize) -> Code {
        // SAFETY: it makes no call; what it spoils is only looked at.
        let code = unsafe {
            self.jit.install("planted", FrameClass::Leaf, |ops| {
                (plant.spoil)(ops);
                dynasm!(ops; .arch x64; jmp extern next);
            })
        };
        code.expect("it installs")
    }

    /// With the defect between the adapter and the callee, the callee reports it, and the caller
    /// at most the same.
    fn check_arrival(&mut self, case: &Case, plant: &Plant) {
        let thunk = self.thunk(plant, self.callee.address());
        let adapter = self.adapter(case, thunk.address()).expect("an adapter");
        let (arrived, returned) = self.call(case, adapter.address(), None);
        let what = format_args!("planted at the callee: {}\n{}", plant.name, case.what);
        assert_eq!(arrived.wrong, plant.wrong, "{what}");
        // A callee leaves what it preserves, and a pinned register, as it was.
        assert!(returned.wrong.iter().all(|w| plant.wrong.contains(w)), "{returned:?} {what}");
    }

    /// With the defect behind the adapter, the caller reports it.
    fn check_return(&mut self, case: &Case, plant: &Plant) {
        let thunk = self.thunk(plant, self.caller.resume());
        let adapter = self.adapter(case, self.callee.address()).expect("an adapter");
        let (arrived, returned) = self.call(case, adapter.address(), Some(&thunk));
        let what = format_args!("planted at the caller: {}\n{}", plant.name, case.what);
        assert_eq!(arrived.wrong, [], "{what}");
        assert_eq!(returned.wrong, plant.wrong, "{what}");
    }
}

/// The results that a pair can have, for defects in them.
fn results(pair: [Convention; 2]) -> &'static [&'static str] {
    match pair.map(|convention| convention.spec().language) {
        [Language::Go, Language::Go] => &[
            "i64",
            "(i8, f32, string, [i32; 2], bool, struct { u8, f64 })",
            "(i64, i64, i64, i64, i64, i64, i64, i64, i64, u8, i32, complex<f64>)",
        ],
        [Language::C, Language::C] => &[
            "i64",
            "i8",
            "u16",
            "f32",
            "longdouble",
            "complex<longdouble>",
            "struct { i64, f64 }",
            "struct { i64, f64, i64 }",
            "v128",
            "struct { i8, i16 }",
            "[u8; 33]",
        ],
        _ => &["i64", "i8", "u16", "f64", "struct { i64, f64 }", "struct { i64, f64, i64 }"],
    }
}

/// Two pairs of one type, narrow integers in registers and on the stack, and a half word there.
const PLANTED_PARAMS: &str = "i64, ptr, f64, f64, i8, u16, u64, i64, u64, i8, i32, bool, u32";

#[test]
fn what_is_planted_is_what_is_reported() {
    let mut kinds = BTreeSet::new();
    for from in CONVENTIONS {
        for to in CONVENTIONS {
            let pair = [from, to];
            with_bench(&pair, |bench| {
                let signature = parse(&format!("fn({PLANTED_PARAMS}) -> i64"));
                for bind in [None, Some(Bind::Closure(0x1234_5678_9abc_def1))] {
                    let case = Case::new(&signature, pair, bind, seed()).expect("assignable");
                    let case = Case { room: Some(true), ..case };
                    let arrivals = spoilt_arrivals(&case);
                    assert!(arrivals.len() >= 4 + 13 + 2, "{pair:?}: {}", arrivals.len());
                    for plant in arrivals {
                        bench.check_arrival(&case, &plant);
                        kinds.extend(plant.wrong.iter().map(kind));
                    }
                    let returns = spoilt_returns(&case);
                    let kept = from.spec().preserved.len() + from.spec().pinned.len() + 1;
                    assert_eq!(returns.len(), 4 + kept + 3, "{pair:?}");
                    for plant in returns {
                        bench.check_return(&case, &plant);
                        kinds.extend(plant.wrong.iter().map(kind));
                    }
                }
                for results in results(pair) {
                    let signature = parse(&format!("fn(i64) -> {results}"));
                    let case = Case::new(&signature, pair, None, seed()).expect("assignable");
                    let case = Case { room: Some(true), ..case };
                    let plants = spoilt_results(&case);
                    assert!(!plants.is_empty(), "{signature}");
                    for plant in plants {
                        bench.check_return(&case, &plant);
                        kinds.extend(plant.wrong.iter().map(kind));
                    }
                }
            });
        }
    }
    let seen: Vec<&str> = kinds.iter().map(String::as_str).collect();
    assert_eq!(
        seen,
        [
            "Above",
            "Address",
            "Beside",
            "Closure",
            "Df",
            "Gpr",
            "Mxcsr",
            "NotExtended",
            "NotWhole",
            "Value",
            "X87Control",
            "X87Stack",
            "Xmm",
        ]
    );
}

/// The name of a change without its numbers.
fn kind(change: &Change) -> String {
    format!("{change:?}").split('(').next().expect("a name").to_owned()
}

/// The kinds of reports that need a call of their own.
#[test]
fn what_is_planted_in_special_calls_is_reported() {
    let (system_v, win64) = (Convention::SystemV, Convention::Win64);
    let param = ValueIndex::Param;
    let check = |text: &str, from, to, plant: Plant| {
        with_bench(&[from, to], |bench| {
            let case = Case::new(&parse(text), [from, to], None, seed()).expect("assignable");
            let thunk = bench.thunk(&plant, bench.callee.address());
            let adapter = bench.adapter(&case, thunk.address()).expect("an adapter");
            let (arrived, _) = bench.call(&case, adapter.address(), None);
            assert_eq!(arrived.wrong, plant.wrong, "{}\n{}", plant.name, case.what);
        });
    };
    for from in CONVENTIONS {
        if from.spec().language == Language::C {
            check(
                "fn(ptr, ..., f64, i64)",
                from,
                system_v,
                plant("al", [Change::VectorCount], |ops| dynasm!(ops; .arch x64; inc al)),
            );
            check(
                "fn(ptr, ..., f64)",
                from,
                win64,
                plant(
                    "rdx beside xmm1",
                    [Change::Duplicate(param(1)), Change::Value(param(1))],
                    |ops| dynasm!(ops; .arch x64; xor rdx, 8),
                ),
            );
        }
        check(
            "fn(struct { i64, i64, i64 })",
            from,
            win64,
            plant(
                "a copy that is aligned to 8",
                [Change::Address(param(0)), Change::Value(param(0))],
                |ops| dynasm!(ops; .arch x64; add rcx, 8),
            ),
        );
        check(
            "fn(struct { i64, i64, i64 })",
            from,
            win64,
            plant(
                "a copy that is nowhere",
                [Change::Address(param(0)), Change::Value(param(0))],
                |ops| dynasm!(ops; .arch x64; xor ecx, ecx),
            ),
        );
        check(
            "fn() -> struct { i64, i64, i64 }",
            from,
            system_v,
            plant(
                "a result that is not aligned",
                [Change::Address(ValueIndex::Result(0))],
                |ops| dynasm!(ops; .arch x64; add rdi, 4),
            ),
        );
    }
    // A stub that does not call.
    for from in CONVENTIONS {
        for to in CONVENTIONS {
            check(
                "fn(i64) -> i64",
                from,
                to,
                plant("no call", [Change::Hits(0)], |ops| dynasm!(ops; .arch x64; ret)),
            );
        }
    }
}

/// A stack pointer that a stub aligned wrongly, and a frame pointer that leads nowhere: here the
/// defect calls, and so returns as it came.
#[test]
fn a_frame_that_breaks_its_contract_is_reported() {
    for from in CONVENTIONS {
        for to in CONVENTIONS {
            with_bench(&[from, to], |bench| {
                let case = Case::new(&parse("fn()"), [from, to], None, seed()).expect("assignable");
                // There is room for the area above the return address of the call. 56 keeps the
                // alignment: rsp is 8 off a multiple of 16, or anything, at the first
                // instruction. Otherwise the base is a word, or half a word, off.
                let off = if to.spec().stack_align_bytes == 16 { 8 } else { 4 };
                for (down, aside, wrong) in [
                    (56, 0, vec![]),
                    (56 + off, 0, vec![Change::Alignment]),
                    (56, 8, vec![Change::FramePointer]),
                ] {
                    let callee = bench.callee.address();
                    // SAFETY: no walk passes it while it calls.
                    let thunk = unsafe {
                        bench.jit.install("broken frame", FrameClass::Standard, |ops| {
                            dynasm!(ops
                                ; .arch x64
                                ; push rbp
                                ; mov rbp, rsp
                                ; mov rbp, [rbp]
                                ; lea rsp, [rsp - (down - 8)]
                                ; lea rbp, [rbp + aside]
                                ; call extern callee
                                ; lea rsp, [rsp + (down - 8)]
                                ; pop rbp
                                ; ret
                            );
                        })
                    };
                    let thunk = thunk.expect("it installs");
                    let adapter = bench.adapter(&case, thunk.address()).expect("an adapter");
                    let (arrived, returned) = bench.call(&case, adapter.address(), None);
                    assert_eq!(arrived.wrong, wrong, "{from} -> {to}");
                    assert_eq!(returned.wrong, [], "{from} -> {to}");
                }
            });
        }
    }
}

/// A stub that reads past the last argument on the stack faults, and what is written names the call.
#[test]
fn an_over_read_faults_and_names_its_case() {
    let test = "an_over_read_faults_and_names_its_case";
    for (number, convention) in CONVENTIONS.into_iter().enumerate() {
        let outcome = child::run_case(test, number, || {
            with_bench(&[convention], |bench| {
                // Of 16 bytes in each convention, or a multiple.
                let signature = parse("fn([[i64; 2]; 5])");
                let case = Case::new(&signature, [convention; 2], None, 7).expect("assignable");
                let case = Case { room: Some(false), ..case };
                let past = AT_CALLEE + case.entry.total_bytes() as i32;
                let read = |at| {
                    plant("over-read", [], move |ops| dynasm!(ops; .arch x64; cmp [rsp + at], rsp))
                };
                let last = bench.thunk(&read(past - 8), bench.callee.address());
                let (arrived, returned) = bench.call(&case, last.address(), None);
                assert_eq!((arrived.wrong, returned.wrong), (vec![], vec![]));
                let next = bench.thunk(&read(past), bench.callee.address());
                bench.call(&case, next.address(), None);
                panic!("it did not fault");
            });
        });
        let Some(outcome) = outcome else { continue };
        assert_eq!(outcome.signal, Some(libc::SIGSEGV), "{outcome:#?}");
        for text in
            ["fault at address ", "seed 0x7, ", "\nfn([[i64; 2]; 5])\n", convention.spec().name]
        {
            assert!(outcome.stderr.contains(text), "no {text:?}: {outcome:#?}");
        }
    }
}

/// Signatures that Rust can declare, of values that rustc passes as C compilers do. One half is for
/// Go's conventions too.
fn rust_signatures(count: usize, rng: &mut Xorshift) -> Vec<Signature> {
    let vectors = vector_bytes().min(32);
    let c = Kinds::of([Convention::SystemV, Convention::Win64], vectors);
    let both = Kinds::of([Convention::SystemV, Convention::GoAbiInternal], vectors);
    let kinds = [c, both].map(Kinds::for_rust);
    let mut signatures = Vec::new();
    while signatures.len() < count {
        let mut signature = kinds[signatures.len() % 2].signature(rng);
        if rng.below(4) == 0 {
            // For a word that is bound as a first argument.
            signature = signature.with_first_param(Type::Ptr);
        }
        if rust_source::CONVENTIONS.iter().all(|c| c.assign(&signature).is_ok()) {
            signatures.push(signature);
        }
    }
    signatures
}

/// What compiled code found, and what it must have found, without padding.
fn assert_found(found: Vec<Found>, types: &[Type], values: &[Vec<u8>], what: &str) {
    let of = |found: Vec<Found>| -> Vec<Found> {
        let both = found.into_iter().zip(types);
        both.map(|(found, ty)| found.masked(&data_bytes(ty, Language::C))).collect()
    };
    let expected = types.iter().zip(values).map(|(ty, bytes)| Found::expected(ty, bytes));
    assert_eq!(of(found), expected.collect::<Vec<_>>(), "{what}");
}

/// Every way from or to functions of one signature that rustc compiled. Says how many calls there
/// were.
fn check_compiled(
    bench: &mut Bench,
    library: &Library,
    n: usize,
    signature: &Signature,
    seed: u64,
) -> usize {
    let mut calls = 0;
    for from in CONVENTIONS {
        for to in CONVENTIONS {
            let [from_rust, to_rust] =
                [from, to].map(|convention| rust_source::CONVENTIONS.contains(&convention));
            let Some(case) = Case::new(signature, [from, to], None, seed) else { continue };
            let (params, results) = (signature.params(), signature.results());
            let what = format!("rustc: {}", case.what);
            if from_rust && to_rust {
                let adapter = bench.adapter(&case, library.callee(n, to)).expect("an adapter");
                library.prepare(&case.args, &case.results);
                // SAFETY: the adapter is of this convention and signature.
                with_case(&what, || unsafe { library.call(n, from, adapter.address()) });
                assert_eq!(library.hits(), 1, "{what}");
                assert_found(library.arguments(n), params, &case.args, &what);
                assert_found(library.results(n), results, &case.results, &what);
                calls += 1;
            }
            if from_rust {
                let adapter = bench.adapter(&case, bench.callee.address()).expect("an adapter");
                bench.expect(&case);
                bench.caller.stands_aside();
                library.prepare(&case.args, &[]);
                // SAFETY: the adapter is of this convention and signature.
                with_case(&what, || unsafe { library.call(n, from, adapter.address()) });
                let mut arrived = bench.callee.arrived();
                // Compiled code passes no closure. In Win64 rustc extends nothing on the stack, and
                // aligns copies as their types ask for and not to 16 bytes; a stub between two sides
                // of one convention changes nothing. What arrives is compared all the same.
                let is_rust = |wrong: &Change| match wrong {
                    Change::Closure => true,
                    Change::NotExtended(_) | Change::Address(ValueIndex::Param(_)) => {
                        [from, to] == [Convention::Win64; 2]
                    }
                    _ => false,
                };
                arrived.wrong.retain(|wrong| !is_rust(wrong));
                assert_eq!(arrived.wrong, [], "{what}");
                assert_eq!(arrived.values, case.args, "{what}");
                assert_found(library.results(n), results, &case.results, &what);
                calls += 1;
            }
            if to_rust {
                let adapter = bench.adapter(&case, library.callee(n, to)).expect("an adapter");
                check_compiled_callee(bench, library, n, &case, &adapter, &what);
                calls += 1;
                if let [Type::Ptr, others @ ..] = params {
                    let entry = Signature::new(others, results);
                    let bind = Some(Bind::FirstArgument(seed.rotate_left(40)));
                    let Some(case) = Case::new(&entry, [from, to], bind, seed) else { continue };
                    let what = format!("rustc: {}", case.what);
                    let adapter = bench.adapter(&case, library.callee(n, to)).expect("an adapter");
                    check_compiled_callee(bench, library, n, &case, &adapter, &what);
                    calls += 1;
                }
            }
        }
    }
    calls
}

/// From the caller that knows every register to a function that rustc compiled.
fn check_compiled_callee(
    bench: &mut Bench,
    library: &Library,
    n: usize,
    case: &Case,
    adapter: &Adapter,
    what: &str,
) {
    let [from, to] = case.conventions();
    library.prepare(&[], &case.results);
    // SAFETY: the adapter is of the case; the callee stores what it gets.
    let mut returned = unsafe { bench.call_only(case, adapter.address(), None, None) };
    if from == to {
        // LLVM does not extend what it returns, whatever the attribute says, and a stub between
        // two sides of one convention changes nothing.
        returned.wrong.retain(|wrong| !matches!(wrong, Change::NotExtended(ValueIndex::Result(_))));
    }
    assert_eq!(returned.wrong, [], "{what}");
    assert_eq!(library.hits(), 1, "{what}");
    let types: Vec<Type> = case.target.params().iter().map(|value| value.ty().clone()).collect();
    assert_found(library.arguments(n), &types, &case.target_args(), what);
}

#[test]
fn functions_that_rustc_compiles_call_each_other_and_go() {
    let count = number_or("FOOTBRIDGE_RUSTC_CASES", 150) as usize;
    let mut rng = Xorshift::new(seed() ^ 0x0007_2057);
    let signatures = rust_signatures(count, &mut rng);
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let library = Library::new(directory, &signatures).unwrap_or_else(|error| panic!("{error}"));
    with_bench(&[Convention::GoAbiInternal], |bench| {
        let mut calls = 0;
        for (n, signature) in signatures.iter().enumerate() {
            calls += check_compiled(bench, &library, n, signature, rng.bits());
        }
        // Half of the signatures have all pairs, and the other half those of C.
        assert!(calls >= count * 14, "only {calls} calls of {count} signatures");
    });
}
