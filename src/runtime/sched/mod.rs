//! The scheduler: which goroutine runs next, on which thread, and what a thread does when there is
//! nothing to run.
//!
//! The data is in `gmp/`, the lock-free protocols are in `sync/`; this room has the policy. A file
//! here may use those above it in the table, and none below:
//!
//! | file | what it decides |
//! | --- | --- |
//! | `ready` | which queue a runnable goroutine goes to |
//! | `find` | which goroutine an M takes next |
//! | `idle` | what an M does while it sleeps |
//! | `schedule` | how an M goes to the next goroutine, and how long it searches for one |
//! | `fp_control` | which FP control state a goroutine runs in |
//! | `panic_probe`, `panic_state` | whose panics std counts on a thread |
//! | `park` | how a goroutine suspends itself |
//! | `preempt`, `async_preempt` | how it is suspended when its time slice is over |
//! | `lifecycle` | how it begins and ends |
//! | `systemstack` | calls on the system stack |
//! | `preempt_signal` | by which signal |
//! | `watchdog` | when a goroutine has kept its thread for too long |
//! | `sysmon` | when a time slice is over |
//! | `stats` | what is counted |
//!
//! The story of a goroutine, in time order:
//!
//! 1. `go` (`task/spawn.rs`) takes a dead G with its stack, or makes one (`lifecycle::newproc`). It
//!    puts the closure at the top of the stack, and queues the G on the run queue of this P. An
//!    idle M is woken to steal it (`ready`).
//! 2. An M takes it from a queue (`find`) and makes it current (`schedule::make_current`). From its
//!    first instruction on it belongs to that M, unless it is migratable.
//! 3. `gopark` makes it waiting (`park`). The goroutine itself takes the next one from a queue and
//!    switches to it directly. Only if there is none does it call the scheduler on the system stack
//!    (`schedule::schedule`).
//! 4. `goready` makes it runnable (`ready`): on its own thread by the run-next slot, from another
//!    thread by the inbox of its M.
//! 5. If it runs for a whole time slice, sysmon requests that it yields (`sysmon`, `preempt`).
//! 6. When its closure has returned or panicked, `lifecycle::goexit0` runs on the system stack,
//!    since the stack may be used again at once. It publishes the end to the goroutine that joins,
//!    and schedules.
//!
//! Why a park loses no wake-up: `sync/park.rs`. Why an M does not sleep over work, and why not all
//! of them wake for it: `sync/idle.rs`. Why a goroutine does not starve: `find.rs`.
//!
//! Rejected designs:
//!
//! * To schedule always on the system stack, as Go does. Two switches for each hop instead of one.
//! * To let any M resume any goroutine, as Go does. Rust values that are not `Send`, and addresses
//!   of thread-locals, may live over a park. So a goroutine is bound to its first M, unless its
//!   builder makes it migratable.
//! * To pass the P on while a goroutine blocks its thread in a system call. Nothing announces such
//!   calls yet.

pub(crate) mod async_preempt;
pub(crate) mod find;
pub(crate) mod fp_control;
pub(crate) mod idle;
pub(crate) mod lifecycle;
pub(crate) mod panic_probe;
pub(crate) mod panic_state;
pub(crate) mod park;
pub(crate) mod preempt;
pub(crate) mod preempt_signal;
pub(crate) mod ready;
pub(crate) mod schedule;
pub(crate) mod stats;
pub(crate) mod sysmon;
pub(crate) mod systemstack;
pub(crate) mod watchdog;
