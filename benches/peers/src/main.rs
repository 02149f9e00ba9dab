#![allow(dead_code, reason = "the subjects of the benches are shared, and used in part")]
//! Compares footbridge with its peers in one run: Cranelift, Go if a toolchain is found, and
//! corosensei. `cargo run --release --manifest-path benches/peers/Cargo.toml`; `-- --test` only
//! checks that it runs.
//!
//! This is a package of its own, so that the tests of footbridge do not compile the peers.

mod cranelift;
#[path = "../../subjects/emit.rs"]
mod emit;
mod go;
mod goroutines;
#[path = "../../measure/meter.rs"]
mod meter;
#[path = "../../subjects/spawn.rs"]
mod spawn;
#[path = "../../subjects/switch.rs"]
mod switch;
mod table;
mod workloads;

use meter::{Meter, Subject};

const CRANELIFT: &str = "cranelift-jit, adapter, 6 arguments";

fn main() {
    if let Some(count) = spawn::parked_requested() {
        return spawn::hold_parked(count);
    }
    let is_test = std::env::args().any(|argument| argument == "--test");
    let meter = if is_test { Meter::SMOKE } else { Meter::FULL };
    let mut adapters = [
        Subject::new(CRANELIFT, cranelift::adapters).limit(emit::LIMIT),
        emit::known_adapters().faster_than(CRANELIFT, 25.0),
        emit::new_adapters().faster_than(CRANELIFT, 25.0),
    ];
    meter.print("adapters", &mut adapters);
    goroutines::compare(go::Go::find().as_ref(), is_test);
}
