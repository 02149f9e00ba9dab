//! `cargo bench --bench preempt`: the cost of polls in code that is not preempted, and the latency
//! of preemption.

mod driver;
#[path = "../measure/meter.rs"]
mod meter;
#[path = "../subjects/preempt.rs"]
mod preempt;

use driver::Mode;

fn main() {
    match driver::drive("preempt", preempt::subjects()) {
        Mode::Silent => {}
        Mode::Smoke => preempt::Effort { samples: 20, work: 1_000_000, rounds: 1 }.report(),
        Mode::Quick | Mode::Full => preempt::Effort::FULL.report(),
    }
}
