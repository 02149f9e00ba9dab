//! `cargo bench --bench switch`: switches between goroutines, against corosensei's.

mod driver;
#[path = "../measure/meter.rs"]
mod meter;
#[path = "../subjects/switch.rs"]
mod switch;

fn main() {
    driver::drive("switch", switch::subjects());
}
