//! Tests of the runtime's public API: goroutines, channels, scopes, timers, tracebacks and the FP
//! control state.

mod bugs;
mod channels;
mod fp_control;
mod inspect;
mod runs;
mod scheduler;
mod tasks;
