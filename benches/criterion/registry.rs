//! `cargo bench --bench registry`: lookups and walks, against other data structures.

mod driver;
#[path = "../measure/meter.rs"]
mod meter;
#[path = "../subjects/registry.rs"]
mod registry;

fn main() {
    driver::drive("registry", registry::subjects());
}
