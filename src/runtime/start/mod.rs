//! Starting and ending a run, and its settings.
//!
//! This is the top of the runtime: it may use every room, and only `runtime/mod.rs` uses it. What
//! emitted code calls is handed to the emitter here (`switch_stubs.rs`, `preempt_setup.rs`), so
//! that `jit` and the rooms below need not know it.
//!
//! | file | |
//! | --- | --- |
//! | `config.rs` | settings, and what a run refuses to start with |
//! | `run.rs` | start and stop, step by step |
//! | `switch_stubs.rs` | the stubs that switch stacks, once for the process |
//! | `preempt_setup.rs` | the stubs, the signal and the thread state of preemption |
//! | `bench_hooks.rs` | entries for benchmarks and tests |

mod bench_hooks;
mod config;
mod preempt_setup;
mod run;
mod switch_stubs;

#[doc(hidden)]
pub use bench_hooks::{measure_raw_switch, request_preemption};
pub use config::{Config, MAX_PROCESSORS, RunError};
