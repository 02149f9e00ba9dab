//! The policy of the scheduler. Each file may use those above it:
//!
//! | file | what it decides |
//! | --- | --- |
//! | `ready` | which queue a runnable goroutine goes to |
//! | `find` | which goroutine an M takes next |
//! | `idle` | when an M sleeps |
//! | `schedule` | how an M goes to the next goroutine |
//! | `fp_control` | which FP control state a goroutine runs in |
//! | `park` | how a goroutine suspends itself |
//! | `preempt`, `async_preempt` | how it is suspended when its time slice is over |
//! | `lifecycle` | how it begins and ends |
//! | `systemstack` | calls on the system stack |
//! | `sysmon` | when a time slice is over |
//! | `stats` | what is counted |

pub(crate) mod async_preempt;
pub(crate) mod find;
pub(crate) mod fp_control;
pub(crate) mod idle;
pub(crate) mod lifecycle;
pub(crate) mod park;
pub(crate) mod preempt;
pub(crate) mod ready;
pub(crate) mod schedule;
pub(crate) mod stats;
pub(crate) mod sysmon;
pub(crate) mod systemstack;
