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
use footbridge::jit::{Code, FrameClass, Jit, JitError, Ops};
use footbridge::runtime::Config;

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

/// What an adapter is bound to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Binding {
    Nothing,
    Closure(u64),
    FirstArgument(u64),
}

/// One call: both sides, and what goes through.
struct Case {
    signature: Signature,
    entry: Assignment,
    target: Assignment,
    binding: Binding,
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
        binding: Binding,
        seed: u64,
    ) -> Option<Case> {
        let mut target_signature = signature.clone();
        if let Binding::FirstArgument(_) = binding {
            let params: Vec<Type> = [Type::Ptr].iter().chain(signature.params()).cloned().collect();
            target_signature = Signature::new(params, signature.results());
            if let Some(named) = signature.named_params() {
                target_signature = target_signature.variadic_after(named + 1);
            }
        }
        let (entry, target) = (from.assign(signature).ok()?, to.assign(&target_signature).ok()?);
        let mut rng = Xorshift::new(seed);
        let args = random_values(entry.params(), &mut rng);
        let results = random_values(entry.results(), &mut rng);
        let what = format!(
            "{from} -> {to}, {binding:?}, seed {seed:#x}\n{signature}\nentry:  {entry}\ntarget: {target}\n"
        );
        let signature = signature.clone();
        Some(Case { signature, entry, target, binding, args, results, seed, room: None, what })
    }

    fn conventions(&self) -> [Convention; 2] {
        [&self.entry, &self.target].map(|side| side.convention().expect("of a convention"))
    }

    /// The values of the target's parameters.
    fn target_args(&self) -> Vec<Vec<u8>> {
        let mut args = self.args.clone();
        if let Binding::FirstArgument(word) = self.binding {
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
            bound_param: matches!(self.binding, Binding::FirstArgument(_)).then_some(0),
            arg_scratch: scratch,
            result_scratch: scratch,
        })
    }

    /// What the model machine carries: the arguments that arrive, and the results that return.
    fn model(&self, plan: &Plan) -> [Vec<Vec<u8>>; 2] {
        let fault = |fault| -> ! { panic!("{fault}\n{}\n{plan}", self.what) };
        let mut machine = Machine::new(&self.entry, &self.target, plan, self.seed);
        if let Binding::FirstArgument(word) = self.binding {
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
    /// The call of a case by way of the code at `address`, which leads to the callee.
    fn call(
        &mut self,
        case: &Case,
        address: usize,
        back: Option<&Code>,
        direct: bool,
    ) -> (Arrived, Returned) {
        let args = case.target_args();
        self.callee.expect(&Expected {
            target: &case.target,
            args: &args,
            results: &case.results,
            closure: match case.binding {
                Binding::Closure(word) => Some(word),
                _ => None,
            },
            g: self.g,
            direct,
            seed: case.seed ^ 0x7a26,
        });
        let call = Call {
            entry: &case.entry,
            args: &case.args,
            g: self.g,
            direct,
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
            for _ in 0..4 * cases() {
                let signature = kinds.signature(&mut rng);
                let pair = [convention; 2];
                let Some(case) = Case::new(&signature, pair, Binding::Nothing, rng.bits()) else {
                    continue;
                };
                calls += 1;
                let callee = bench.callee.address();
                let (arrived, returned) = bench.call(&case, callee, None, true);
                assert_eq!(arrived.wrong, [], "{}", case.what);
                assert_eq!(returned.wrong, [], "{}", case.what);
                assert_eq!(arrived.values, case.args, "{}", case.what);
                assert_eq!(returned.values, case.results, "{}", case.what);
            }
            assert!(calls > cases(), "only {calls} {convention}");
        });
    }
}
