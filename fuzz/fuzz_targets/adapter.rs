//! `cargo +nightly fuzz run adapter`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| body::run(data));
