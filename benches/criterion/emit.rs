//! `cargo bench --bench emit`: making stubs.

mod driver;
#[path = "../subjects/emit.rs"]
mod emit;
#[path = "../measure/meter.rs"]
mod meter;

fn main() {
    driver::drive("emit", emit::subjects());
}
