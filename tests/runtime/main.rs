//! The runtime from outside: goroutines, channels, scopes, timers, tracebacks, the FP control state.

mod bugs;
mod channels;
mod fp_control;
mod inspect;
mod runs;
mod scheduler;
mod tasks;
