//! Executes adapters between all ordered pairs of the four conventions of this machine.
//!
//! * `round_trip`: random calls from a caller to a callee that control every register
//!   (`super::carry`), with and without a bound word. The model machine (`footbridge::abi::model`)
//!   must pass the same values.
//! * `compiled`: the same with functions that rustc compiles (`super::rust_source`).
//! * `planted`: planted defects show that each kind of report occurs, for each pair.
//!
//! `FOOTBRIDGE_ADAPTER_CASES` sets the number of random signatures of a pair. A few thousand fill
//! the code memory; use another seed for more. `FOOTBRIDGE_RUSTC_CASES` sets the number of
//! signatures for rustc, and `FOOTBRIDGE_SEED` the seed.
#![cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]

mod bench;
mod compiled;
mod planted;
mod round_trip;

use footbridge::abi::{Convention, Signature};
use support::settings::{number_or, seed_or};

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
