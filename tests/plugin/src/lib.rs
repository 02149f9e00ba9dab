//! A plugin that uses the crate.

#![allow(unsafe_code, reason = "exports functions by their names")]

use footbridge::jit::Jit;
use footbridge::runtime::{go, run};

/// Runs goroutines, and returns 42.
#[unsafe(no_mangle)]
pub extern "C" fn footbridge_plugin_runs() -> i32 {
    run(|| go(|| 42).join().unwrap_or(0))
}

/// Makes code memory and unwind sections without a run, and returns 42.
#[unsafe(no_mangle)]
pub extern "C" fn footbridge_plugin_emits() -> i32 {
    Jit::new().map_or(0, |_| 42)
}
