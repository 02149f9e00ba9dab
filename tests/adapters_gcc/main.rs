//! Tests adapters between System V and Win64 against gcc: random signatures, with a caller and a
//! callee compiled by gcc, and checks of all state around the call.
//!
//! `FOOTBRIDGE_ADAPTER_GCC_CASES` sets the number of signatures, and `FOOTBRIDGE_SEED` the seed.
//! `FOOTBRIDGE_ADAPTER_GCC_SIGNATURE` replaces the random signatures with one, as text.
//!
//! Each signature is called in four pairs of conventions, and twice in each: by a function of
//! gcc's, and with its argument area at the end of a stack. In both, all bits that the caller's
//! convention leaves unspecified are garbage, and values in memory are next to unmapped pages.
//! `call.rs` has the checks, `observer.rs` the mechanism.
//!
//! `planted.rs` shows that each check fails when it should.
#![cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]
#![allow(unsafe_code, reason = "calls emitted and compiled code")]

mod call;
mod image;
mod observer;
mod planted;
mod text;

use std::collections::BTreeMap;
use support::gcc::has_gcc_and_avx2;
use support::settings::{number_or, seed_or};

use call::{Buffers, Call, Caller, Ends, Failure, Kind};
use footbridge::abi::model::Xorshift;
use footbridge::abi::{AssignError, Assignment, Convention, Signature, Type, VectorWidth};
use footbridge::jit::{Bind, Jit, JitError, lookup};
use footbridge::runtime::Adapter;
use observer::{Observer, Point};
use support::c_types::{random_bytes, random_signature};
use text::{FUNCTIONS, Source};

/// The conventions that gcc supports on Linux.
const CONVENTIONS: [Convention; 2] = [Convention::SystemV, Convention::Win64];

/// The largest number of parameters, in turn. Many parameters take gcc long, and are mostly on the
/// stack.
const MOST_PARAMS: [usize; 3] = [8, 8, 24];

/// The number of signatures in one C file.
const FILE_SIGNATURES: usize = 32;

/// The value that an adapter binds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Bound {
    Nothing,
    FirstArgument(u64),
    Closure(u64),
}

/// A signature with values.
struct Case {
    signature: Signature,
    bound: Bound,
    target_signature: Signature,
    /// In the order of [`CONVENTIONS`].
    entries: [Assignment; 2],
    targets: [Assignment; 2],
    args: Vec<Vec<u8>>,
    target_args: Vec<Vec<u8>>,
    result: Option<Vec<u8>>,
    seed: u64,
}

fn assign(signature: &Signature) -> Result<[Assignment; 2], AssignError> {
    let [system_v, win64] = CONVENTIONS;
    Ok([system_v.assign(signature)?, win64.assign(signature)?])
}

impl Case {
    fn new(signature: Signature, bound: Bound, rng: &mut Xorshift) -> Result<Case, AssignError> {
        let entries = assign(&signature)?;
        let mut bytes = |types: &[Type]| -> Vec<Vec<u8>> {
            types.iter().map(|ty| random_bytes(rng, ty)).collect()
        };
        let args = bytes(signature.params());
        let result = bytes(signature.results()).pop();
        let mut target_signature = signature.clone();
        let mut target_args = args.clone();
        if let Bound::FirstArgument(word) = bound {
            let mut params = signature.params().to_vec();
            params.insert(0, Type::Ptr);
            target_args.insert(0, word.to_le_bytes().to_vec());
            target_signature = Signature::new(params, signature.results());
            if let Some(named) = signature.named_params() {
                target_signature = target_signature.variadic_after(named + 1);
            }
        }
        let targets = assign(&target_signature)?;
        let seed = rng.bits();
        Ok(Case {
            signature,
            bound,
            target_signature,
            entries,
            targets,
            args,
            target_args,
            result,
            seed,
        })
    }

    /// The adapter from one convention to another, given by their indices. `target` is
    /// [`Point::Arrive`], or code that ends there.
    fn adapter(&self, jit: Jit, from: usize, to: usize, target: u64) -> Result<Adapter, JitError> {
        let target = target as usize;
        let [from, to] = [from, to].map(|index| CONVENTIONS[index]);
        let bind = match self.bound {
            Bound::Nothing => None,
            Bound::FirstArgument(word) => Some(Bind::FirstArgument(word)),
            Bound::Closure(word) => Some(Bind::Closure(word)),
        };
        // SAFETY: a call that arrives continues in gcc's function of the target's convention and
        // signature, with the bound word. `Call::run` makes calls in the entry's.
        unsafe {
            match bind {
                None => jit.adapter(&self.signature, from, to, target),
                Some(bind) => jit.bound_adapter(&self.signature, from, to, target, bind),
            }
        }
    }

    /// The call from one convention to another, given by their indices.
    fn call<'a>(&'a self, from: usize, to: usize, functions: &[u64]) -> Call<'a> {
        Call {
            entry: &self.entries[from],
            target: &self.targets[to],
            args: &self.args,
            target_args: &self.target_args,
            result: self.result.as_deref(),
            closure: match self.bound {
                Bound::Closure(word) => Some(word),
                _ => None,
            },
            code: Point::Arrive.address(),
            callee: functions[2 + to],
            ends: Ends::Random,
            seed: self.seed,
        }
    }
}

/// Random cases, and the number of refused signatures for each reason.
fn random_cases(
    count: usize,
    seed: u64,
    mut bound: impl FnMut(&mut Xorshift) -> Bound,
) -> (Vec<Case>, BTreeMap<String, usize>) {
    let mut rng = Xorshift::new(seed);
    let mut refusals = BTreeMap::new();
    let mut cases = Vec::new();
    let widest = match std::arch::is_x86_feature_detected!("avx512f") {
        true => VectorWidth::V512,
        false => VectorWidth::V256,
    };
    if let Ok(text) = std::env::var("FOOTBRIDGE_ADAPTER_GCC_SIGNATURE") {
        let signature: Signature = text.parse().expect("a signature");
        for _ in 0..16 {
            let bound = bound(&mut rng);
            cases.push(Case::new(signature.clone(), bound, &mut rng).expect("assignable"));
        }
        return (cases, refusals);
    }
    while cases.len() < count {
        let signature = random_signature(&mut rng, MOST_PARAMS[cases.len() % 3], widest);
        let bound = bound(&mut rng);
        match Case::new(signature, bound, &mut rng) {
            Ok(case) => cases.push(case),
            Err(error) => *refusals.entry(reason(&error)).or_default() += 1,
        }
    }
    (cases, refusals)
}

/// The rule of an error, without its subject.
fn reason(error: &AssignError) -> String {
    match error {
        AssignError::Unsupported { convention, rule, .. } => format!("{convention}: {rule}"),
        other => other.to_string(),
    }
}

/// gcc's functions for all cases, [`FUNCTIONS`] for each.
fn compile(cases: &[Case], buffers: &Buffers) -> Vec<u64> {
    let mut sources = Vec::new();
    for (file, cases) in cases.chunks(FILE_SIGNATURES).enumerate() {
        let mut source = Source::default();
        for (i, case) in cases.iter().enumerate() {
            source.add(
                file * FILE_SIGNATURES + i,
                (&case.signature, &case.entries),
                (&case.target_signature, &case.targets),
            );
        }
        sources.push(source);
    }
    text::load(&sources, buffers)
}

/// The failures. A few calls are described.
struct Report {
    seed: u64,
    calls: usize,
    failed: usize,
    text: String,
}

impl Report {
    const MOST: usize = 5;

    fn new(seed: u64) -> Report {
        Report { seed, calls: 0, failed: 0, text: String::new() }
    }

    fn describe(&self, number: usize, call: &Call<'_>, case: &Case, caller: Caller) -> String {
        let name = |side: &Assignment| {
            side.convention().expect("an assignment of a convention").to_string()
        };
        format!(
            "seed {}, case {number}, {} -> {}, {:?}, called by {}: {}\n  entry:  {}\n  target: {}\n",
            self.seed,
            name(call.entry),
            name(call.target),
            case.bound,
            match caller {
                Caller::Gcc(_) => "gcc",
                Caller::Bare => "no function",
            },
            case.signature,
            call.entry,
            call.target,
        )
    }

    fn add(&mut self, description: &str, failures: &[Failure]) {
        self.calls += 1;
        if failures.is_empty() {
            return;
        }
        self.failed += 1;
        if self.failed <= Self::MOST {
            self.text.push_str(description);
            for failure in failures {
                self.text.push_str(&format!("    {failure}\n"));
            }
        }
    }

    fn assert_passed(&self) {
        let Report { seed, calls, failed, text } = self;
        assert!(*failed == 0, "FOOTBRIDGE_SEED={seed}: {failed} of {calls} calls failed\n{text}");
    }
}

/// Without an adapter: a caller and a callee of the same convention. A failure here is a defect of
/// this test, or of an assignment.
#[test]
fn direct_calls_pass() {
    if !has_gcc_and_avx2() {
        return;
    }
    let count = number_or("FOOTBRIDGE_ADAPTER_GCC_CASES", 200).div_ceil(10) as usize;
    let seed = seed_or(1);
    let (cases, _) = random_cases(count, seed, |_| Bound::Nothing);
    let mut buffers = Buffers::new();
    let functions = compile(&cases, &buffers);
    let mut report = Report::new(seed);
    let observer = Observer::new();
    for (number, case) in cases.iter().enumerate() {
        let functions = &functions[FUNCTIONS * number..];
        for convention in 0..2 {
            let call = case.call(convention, convention, functions);
            for caller in [Caller::Gcc(functions[convention]), Caller::Bare] {
                let what = report.describe(number, &call, case, caller);
                report.add(&what, &call.run(&observer, &mut buffers, caller, &what));
            }
        }
    }
    report.assert_passed();
    assert_eq!(report.calls, 4 * cases.len());
}

/// Most signatures bind nothing.
fn random_bound(rng: &mut Xorshift) -> Bound {
    match rng.below(6) {
        0 => Bound::Closure(rng.bits()),
        1 | 2 => Bound::FirstArgument(rng.bits()),
        _ => Bound::Nothing,
    }
}

#[test]
fn adapters_pass_calls_between_gcc_functions() {
    if !has_gcc_and_avx2() {
        return;
    }
    let count = number_or("FOOTBRIDGE_ADAPTER_GCC_CASES", 200) as usize;
    let seed = seed_or(1);
    let (cases, refusals) = random_cases(count, seed, random_bound);
    let refused: usize = refusals.values().sum();
    println!("seed {seed}: {} signatures, and {refused} that were refused:", cases.len());
    for (reason, count) in &refusals {
        println!("{count:6} {reason}");
    }
    assert!(refused < cases.len(), "most signatures are refused");

    let mut buffers = Buffers::new();
    let functions = compile(&cases, &buffers);
    let jit = Jit::new().expect("code memory");
    let mut report = Report::new(seed);
    let mut frames: BTreeMap<String, usize> = BTreeMap::new();
    let observer = Observer::new();
    for (number, case) in cases.iter().enumerate() {
        let functions = &functions[FUNCTIONS * number..];
        for (from, to) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let mut call = case.call(from, to, functions);
            let adapter = match case.adapter(jit, from, to, Point::Arrive.address()) {
                Ok(adapter) => adapter,
                Err(error) => {
                    let what = report.describe(number, &call, case, Caller::Bare);
                    let failure = Failure { kind: Kind::Refused, text: error.to_string() };
                    report.add(&what, &[failure]);
                    continue;
                }
            };
            call.code = adapter.address() as u64;
            let class = lookup(adapter.address()).expect("a stub").frame_class();
            *frames.entry(format!("{class:?}")).or_default() += 1;
            for caller in [Caller::Gcc(functions[from]), Caller::Bare] {
                let what = report.describe(number, &call, case, caller);
                report.add(&what, &call.run(&observer, &mut buffers, caller, &what));
            }
        }
    }
    println!("frames: {frames:?}");
    report.assert_passed();
    assert_eq!(report.calls, 8 * cases.len());
}
