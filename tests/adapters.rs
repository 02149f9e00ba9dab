//! Adapters, executed: all ordered pairs of the four conventions of this machine.
//!
//! * Random calls from a caller that knows every register to a callee that does
//!   (`machine/carry.rs`), with and without a bound word. The same call in the model machine
//!   (`footbridge::abi::interp`) must carry the same values.
//! * The same by way of functions that rustc compiles (`machine/rust_source.rs`).
//! * Planted defects: each kind of report is seen, for every pair.
//!
//! `FOOTBRIDGE_ADAPTER_CASES` is the number of random signatures a pair, `FOOTBRIDGE_SEED` the seed.
#![cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]
#![allow(unsafe_code, reason = "calls emitted code")]

#[path = "machine/carry.rs"]
mod carry;
#[path = "machine/draw.rs"]
mod draw;

use carry::{
    Arrived, Call, Callee, Caller, Change, Expected, Returned, closure_register, current_g,
    random_values, report_faults, vector_bytes, with_case,
};
use draw::Kinds;
use dynasmrt::{DynasmApi, dynasm};
use footbridge::abi::interp::{Machine, Xorshift};
use footbridge::abi::{
    Assignment, Convention, Gpr, Passing, Place, Plan, PlanError, PlanRequest, Reg, RegSet,
    Signature, Type, Value, ValueIndex, Xmm,
};
use footbridge::jit::{Bind, Code, FrameClass, Jit, JitError, Ops};
use footbridge::runtime::{Adapter, Config};

const CONVENTIONS: [Convention; 4] =
    [Convention::SystemV, Convention::Win64, Convention::GoAbi0, Convention::GoAbiInternal];

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => default,
    }
}

fn cases() -> usize {
    number("FOOTBRIDGE_ADAPTER_CASES", 40) as usize
}

fn seed() -> u64 {
    number("FOOTBRIDGE_SEED", 1)
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
            "{from} -> {to}, {bind:?}, seed {seed:#x}\n{signature}\nentry:  {entry}\ntarget: {target}\n"
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

    /// A plan with registers at hand that hold no argument or result.
    fn plan(&self) -> Result<Plan, PlanError> {
        let scratch = RegSet::of_gprs(&[Gpr::R12]).with(Xmm::XMM15);
        Plan::new(&PlanRequest {
            entry: &self.entry,
            target: &self.target,
            bound_param: matches!(self.bind, Some(Bind::FirstArgument(_))).then_some(0),
            arg_scratch: scratch,
            result_scratch: scratch,
        })
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
        let config = Config { processors: 1, ..Config::default() };
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

    /// The call of a case by way of the code at `address`, which leads to the callee. After the
    /// return `back` runs first.
    fn call(&mut self, case: &Case, address: usize, back: Option<&Code>) -> (Arrived, Returned) {
        let args = case.target_args();
        let [from, to] = case.conventions();
        let alike = from == to;
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
            alike,
            seed: case.seed ^ 0x7a26,
        });
        let call = Call {
            entry: &case.entry,
            args: &case.args,
            g: self.g,
            alike,
            closure: passed,
            target: address,
            back: back.map(Code::address),
            room: case.room,
        };
        let mut rng = Xorshift::new(case.seed ^ 0xca11);
        // SAFETY: the code is of the entry's convention and signature, and leads to the callee,
        // which takes any values; `back` jumps to where it is to.
        let mut returned = with_case(&case.what, || unsafe { self.caller.call(&call, &mut rng) });
        for (i, (found, expected)) in returned.values.iter().zip(&case.results).enumerate() {
            if found != expected {
                returned.wrong.push(Change::Value(ValueIndex::Result(i)));
            }
        }
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
        let (plan, adapter) = match (case.plan(), made) {
            (Ok(plan), Ok(adapter)) => (plan, adapter),
            (Err(refused), Err(JitError::Plan(error))) if error == refused => continue,
            (plan, made) => panic!("plan {plan:?}, adapter {made:?}\n{}", case.what),
        };
        let (arrived, returned) = bench.call(&case, adapter.address(), None);
        let what = format_args!("{}{plan}", case.what);
        assert_eq!(arrived.wrong, [], "at the callee: {what}");
        assert_eq!(returned.wrong, [], "at the caller: {what}");
        let [arrived_in_model, returned_in_model] = case.model(&plan);
        assert_eq!(arrived.values, arrived_in_model, "{what}");
        assert_eq!(returned.values, returned_in_model, "{what}");
        assert_eq!(returned.values, case.results, "{what}");
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
