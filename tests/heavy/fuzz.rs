//! Runs the body of the fuzz target (`tests/fuzz_body`) on random bytes and on mutated texts.
//!
//! `FOOTBRIDGE_FUZZ_SECONDS` sets the duration, `FOOTBRIDGE_SEED` the seed. A failing input is
//! printed as bytes, so that it can be kept as a test here.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};
use support::settings::{number_or, seed_or};

use footbridge::abi::model::Xorshift;

/// The texts that are mutated.
const SEEDS: [&str; 6] = [
    "fn()",
    "fn(i64, f64, ptr) -> (u8, bool)",
    "fn(struct { f32, f32, i8 }, [u16; 3], ...) -> complex<f64>",
    "fn(struct packed(2) align(16) { i8, union { v128, longdouble } }, i128)",
    "fn(string, slice, any, iface, func, chan, map)",
    "fn(ptr, ..., i32, struct {}, [[i8; 0]; 4294967295])",
];

#[test]
fn no_input_breaks_parser_planner_or_emitter() {
    let seconds = number_or("FOOTBRIDGE_FUZZ_SECONDS", 2);
    let seed = seed_or(5);
    let mut rng = Xorshift::new(seed);
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut inputs = 0;
    while Instant::now() < end {
        let input: Vec<u8> = if rng.below(3) == 0 {
            let mut text = SEEDS[rng.below(SEEDS.len())].as_bytes().to_vec();
            for _ in 0..rng.below(5) {
                let at = rng.below(text.len());
                match rng.below(4) {
                    0 => drop(text.remove(at)),
                    1 => text.insert(at, rng.bits() as u8),
                    2 => text[at] = b"(){}[]<>;,.-0 "[rng.below(14)],
                    _ => text.extend_from_within(at..),
                }
                if text.is_empty() {
                    text.push(b'f');
                }
            }
            text
        } else {
            (0..rng.below(200)).map(|_| (rng.bits() >> 40) as u8).collect()
        };
        let result = catch_unwind(AssertUnwindSafe(|| body::run(&input)));
        if let Err(panic) = result {
            eprintln!("seed {seed}, input {inputs}: {input:?}");
            resume_unwind(panic);
        }
        inputs += 1;
    }
    println!("{inputs} inputs");
    assert!(inputs > 100 * seconds, "only {inputs} inputs");
}
