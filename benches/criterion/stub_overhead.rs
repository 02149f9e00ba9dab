//! `cargo bench --bench stub_overhead`: calls through stubs, against plain indirect calls.

mod driver;
#[path = "../measure/meter.rs"]
mod meter;
#[path = "../subjects/stub_overhead.rs"]
mod stub_overhead;

fn main() {
    driver::drive("stub_overhead", stub_overhead::subjects());
}
