//! Calls from and to functions that rustc compiles.

#![allow(unsafe_code, reason = "calls emitted code")]

use std::path::Path;

use footbridge::abi::model::Xorshift;
use footbridge::abi::{Convention, Language, Signature, Type, ValueIndex};
use footbridge::jit::Bind;
use footbridge::runtime::Adapter;
use support::settings::number_or;

use super::bench::{Bench, Case, with_bench};
use super::{CONVENTIONS, seed};
use crate::carry::{Change, data_bytes, vector_bytes, with_case};
use crate::draw::Kinds;
use crate::rust_source::{self, Found, Library};

/// Signatures that Rust can declare, of values that rustc passes as C compilers do. Half of them
/// are also valid in Go's conventions.
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

/// Compares the values that compiled code found, without padding.
fn assert_found(found: Vec<Found>, types: &[Type], values: &[Vec<u8>], what: &str) {
    let of = |found: Vec<Found>| -> Vec<Found> {
        let both = found.into_iter().zip(types);
        both.map(|(found, ty)| found.masked(&data_bytes(ty, Language::C))).collect()
    };
    let expected = types.iter().zip(values).map(|(ty, bytes)| Found::expected(ty, bytes));
    assert_eq!(of(found), expected.collect::<Vec<_>>(), "{what}");
}

/// Tests all calls between adapters and compiled functions of one signature. Returns the number of
/// calls.
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
                // SAFETY: the adapter has this convention and signature.
                with_case(&what, || unsafe { library.call(n, from, adapter.address()) });
                assert_eq!(library.hits(), 1, "{what}");
                assert_found(library.arguments(n), params, &case.args, &what);
                assert_found(library.results(n), results, &case.results, &what);
                calls += 1;
            }
            if from_rust {
                let adapter = bench.adapter(&case, bench.callee.address()).expect("an adapter");
                bench.expect(&case);
                bench.caller.prepare_for_compiled_caller();
                library.prepare(&case.args, &[]);
                // SAFETY: the adapter has this convention and signature.
                with_case(&what, || unsafe { library.call(n, from, adapter.address()) });
                let mut arrived = bench.callee.arrived();
                // Compiled code passes no closure. In Win64, rustc does not extend values on the
                // stack, and aligns copies by their types instead of to 16 bytes. A stub between
                // two sides of one convention does not change that. The values are compared below
                // nevertheless.
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

/// Calls a compiled function from the caller that controls every register.
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
    // SAFETY: the adapter was created for the case; the callee only stores its arguments.
    let mut returned = unsafe { bench.call_only(case, adapter.address(), None, None) };
    if from == to {
        // LLVM does not extend its results, whatever the attributes, and a stub between two sides
        // of one convention does not change that.
        returned.wrong.retain(|wrong| !matches!(wrong, Change::NotExtended(ValueIndex::Result(_))));
    }
    assert_eq!(returned.wrong, [], "{what}");
    assert_eq!(library.hits(), 1, "{what}");
    let types: Vec<Type> = case.target.params().iter().map(|value| value.ty().clone()).collect();
    assert_found(library.arguments(n), &types, &case.target_args(), what);
}

#[test]
fn functions_compiled_by_rustc_call_each_other_and_go() {
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
