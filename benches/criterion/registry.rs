//! `cargo bench --bench registry`: look-ups and walks, against the structures that others use.

mod driver;
#[path = "../measure/meter.rs"]
mod meter;
#[path = "../subjects/registry.rs"]
mod registry;

fn main() {
    driver::drive("registry", registry::subjects());
}
