//! The cost of every operation, in one table: `cargo run --release --example overhead`.
//!
//! The numbers are those of the benches without criterion: the minimum over rounds, with the peers
//! measured in the same run. "Recorded" numbers were taken once, on the machine that the benches
//! were written on, and mean little elsewhere.

#[path = "../benches/subjects/emit.rs"]
mod emit;
#[path = "../benches/measure/meter.rs"]
mod meter;
#[path = "../benches/subjects/preempt.rs"]
mod preempt;
#[path = "../benches/subjects/registry.rs"]
mod registry;
#[path = "../benches/subjects/spawn.rs"]
mod spawn;
#[path = "../benches/subjects/stub_overhead.rs"]
mod stub_overhead;
#[path = "../benches/subjects/switch.rs"]
mod switch;

use meter::Meter;

fn main() {
    if let Some(count) = spawn::parked_requested() {
        return spawn::hold_parked(count);
    }
    if cfg!(debug_assertions) {
        println!("This is a debug build: its numbers mean nothing. Add --release.\n");
    }
    println!("{}", footbridge::environment());
    for (group, mut subjects) in [
        ("switch", switch::subjects()),
        ("stub_overhead", stub_overhead::subjects()),
        ("registry", registry::subjects()),
        ("emit", emit::subjects()),
        ("spawn", spawn::subjects()),
        ("preempt", preempt::subjects()),
    ] {
        Meter::FULL.print(group, &mut subjects);
    }
    preempt::Effort::FULL.report();
    spawn::report_parked(100_000);
    spawn::report_parked(1_000_000);
}
