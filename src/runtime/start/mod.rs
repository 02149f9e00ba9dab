//! Starting and ending a run, and its settings.

mod bench_hooks;
mod config;
mod preempt_setup;
mod run;
mod switch_stubs;
#[doc(hidden)]
pub use bench_hooks::{measure_raw_switch, request_preemption};
pub use config::{Config, MAX_PROCESSORS, RunError};
