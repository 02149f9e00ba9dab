#![allow(dead_code, reason = "the subjects of the benches are shared, and used in part")]
//! Peers that take long to compile, beside footbridge in one run: `cargo run --release
//! --manifest-path benches/peers/Cargo.toml`, with `-- --test` just to see whether it runs.
//!
//! A package of its own, so that the tests of footbridge do not wait for them.

mod cranelift;
#[path = "../../subjects/emit.rs"]
mod emit;
#[path = "../../measure/meter.rs"]
mod meter;

use meter::{Meter, Subject};

const CRANELIFT: &str = "cranelift-jit, adapter, 6 arguments";

fn main() {
    let is_test = std::env::args().any(|argument| argument == "--test");
    let meter = if is_test { Meter::SMOKE } else { Meter::FULL };
    let mut adapters = [
        Subject::new(CRANELIFT, cranelift::adapters).limit(emit::LIMIT),
        emit::known_adapters().faster_than(CRANELIFT, 25.0),
        emit::new_adapters().faster_than(CRANELIFT, 25.0),
    ];
    meter.print("adapters", &mut adapters);
}
