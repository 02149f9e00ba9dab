//! Random calls in all pairs of conventions.

use footbridge::abi::model::Xorshift;
use footbridge::abi::{Convention, Signature};
use footbridge::jit::{Bind, JitError};

use super::bench::{Bench, Case, with_bench};
use super::{CONVENTIONS, cases, seed};
use crate::carry::vector_bytes;
use crate::draw::Kinds;

/// Tests the harness alone: a callee called directly by its caller finds no violation.
#[test]
fn a_direct_call_passes_all_values() {
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

/// Tests a random signature, unbound and with both kinds of bound words. Returns the number of
/// calls.
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
        // One test for each pair, so that pairs run in parallel, and a fault names its pair.
        $(
            #[test]
            fn $name() {
                check_pair(Convention::$from, Convention::$to);
            }
        )*

        #[test]
        fn every_pair_has_a_test() {
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
