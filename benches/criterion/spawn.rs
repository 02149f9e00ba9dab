//! `cargo bench --bench spawn`: starting goroutines, and the memory of parked ones.
//!
//! With `--quick`, a million of them are parked only if `FOOTBRIDGE_BENCH_MILLION` is set.

mod driver;
#[path = "../measure/meter.rs"]
mod meter;
#[path = "../subjects/spawn.rs"]
mod spawn;

use driver::Mode;

fn main() {
    if let Some(count) = spawn::parked_requested() {
        return spawn::hold_parked(count);
    }
    let mode = driver::drive("spawn", spawn::subjects());
    let million = std::env::var_os("FOOTBRIDGE_BENCH_MILLION").is_some();
    match mode {
        Mode::Silent => return,
        Mode::Smoke => spawn::report_parked(1_000),
        Mode::Quick | Mode::Full => spawn::report_parked(100_000),
    }
    if million || mode == Mode::Full {
        spawn::report_parked(1_000_000);
    }
}
