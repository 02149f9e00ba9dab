//! Goroutines: scheduling, channels, bridges to JIT code, and tracebacks.
//!
//! * [`run()`] and [`Config`] make a runtime instance: threads that run goroutines until the main
//!   one returns.
//! * [`go`], [`scope()`] and [`Builder`] start goroutines. [`Chan`] and [`select`] connect them,
//!   [`JoinHandle`] waits for one.
//! * [`GoroutineFn`], [`Entry`], [`SpawnFn`], [`Adapter`] and [`Polls`] are the bridges between JIT
//!   code and Rust, made by methods of [`Jit`](crate::jit::Jit) and [`Code`](crate::jit::Code).
//! * [`traceback`], [`jit_frames`] and [`scan_own_stack`] walk stacks. [`goroutines`] and
//!   [`traceback_all`] inspect all goroutines.
//!
//! Things that Go's runtime has, too, have Go's names. Safe code stays sound on a goroutine: after
//! its first instruction it stays on one thread (unless
//! [`Builder::go_migratable`] started it), so that values that are not `Send` may live over a park.
//!
//! ```
//! use footbridge::runtime::{self, Chan, go};
//!
//! let sum = runtime::run(|| {
//!     let numbers = Chan::new(4);
//!     let producer = numbers.clone();
//!     let handle = go(move || {
//!         for n in 1..=10u64 {
//!             producer.send(n).expect("only this goroutine closes it");
//!         }
//!         producer.close();
//!     });
//!     let sum: u64 = numbers.iter().sum();
//!     handle.join().expect("the producer does not panic");
//!     sum
//! });
//! assert_eq!(sum, 55);
//! ```

mod arch;
mod bridge;
mod chan;
mod fault;
mod gmp;
mod os;
mod sched;
mod stack;
mod start;
mod sync;
mod task;
mod walk;

pub use arch::{Registers, VectorState};
#[doc(hidden)]
pub use bridge::sealed;
pub use bridge::{
    Adapter, Entry, EntryType, GoroutineClosure, GoroutineFn, PollLayout, Polls, SpawnFn,
    poll_layout,
};
pub use chan::{
    Case, Chan, IntoIter, Iter, RecvError, RecvTimeoutError, SendError, SendTimeoutError, TryIter,
    TryRecvError, TrySendError, select, select_timeout, try_select,
};
pub use gmp::parker::Parker;
pub use gmp::pools::{StackUsage, stack_usage};
pub use gmp::status::{Status, WaitReason};
pub use sched::fp_control::keep_fp_control;
pub use sched::park::{current, gopark, gosched};
pub use sched::preempt::{checkpoint, without_preemption};
pub use sched::ready::goready;
pub use sched::stats::{Refused, Stats, stats};
pub use sched::systemstack::systemstack;
pub use stack::{Shortage, StackError};
pub use start::{Config, MAX_PROCESSORS, RunError};
#[doc(hidden)]
pub use start::{measure_raw_switch, request_preemption};
pub use task::{
    Abandoned, Builder, JoinHandle, JoinResult, Scope, ScopedJoinHandle, SpawnError, SpawnFnError,
    go, scope, sleep,
};
pub use walk::{
    Goroutine, JitFrame, ScanError, ScanFrame, TraceFrame, Traceback, WalkEnd, goroutines,
    jit_frames, jit_frames_from, scan_own_stack, this_goroutine, traceback, traceback_all,
    traceback_all_within,
};

pub(crate) use gmp::pools::probe_guards;
pub(crate) use os::futex::probe_fences;
pub(crate) use os::signals::handlers_without_alternate_stack;
pub(crate) use sched::preempt_signal::describe as describe_preemption;

/// Runs `f` as the main goroutine of a run with the default [`Config`]; see [`Config::run`].
///
/// ```
/// use footbridge::runtime::{self, go};
///
/// let answer = runtime::run(|| go(|| 6 * 7).join().expect("no panic"));
/// assert_eq!(answer, 42);
/// ```
///
/// # Panics
/// With the panic of `f`; if the run cannot start, with the [`RunError`] (use [`Config::run`] to
/// handle that).
#[track_caller]
pub fn run<R>(f: impl FnOnce() -> R) -> R {
    match Config::default().run(f) {
        Ok(result) => result,
        Err(error) => panic!("{error}"),
    }
}
