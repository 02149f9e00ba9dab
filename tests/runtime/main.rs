//! Tests of the runtime's public API: goroutines, channels, scopes, timers, tracebacks and the FP
//! control state.

mod bugs;
mod channels;
mod ending;
mod fairness;
// MXCSR, the x87 unit, and JIT code that is preempted. What is the same on every machine is in
// `switch`.
#[cfg(target_arch = "x86_64")]
mod fp_control;
mod inspect;
mod locals;
mod locks;
mod panics;
mod refused;
mod runs;
mod scheduler;
mod switch;
mod tasks;
mod watchdog;
