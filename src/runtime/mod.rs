//! Goroutines: scheduling, channels, bridges to JIT code, and tracebacks.
//!
//! The names are Go's where the thing is. A goroutine is sound Rust: after its first instruction it
//! stays on one thread, so that values that are not `Send` may live over a park.
//!
//! ```
//! use footbridge::runtime::{self, Chan, go};
//!
//! let sum = runtime::run(|| {
//!     let numbers = Chan::new(4);
//!     let producer = numbers.clone();
//!     let handle = go(move || {
//!         for n in 1..=10u64 {
//!             producer.send(n).expect("nobody closes it but this goroutine");
//!         }
//!         producer.close();
//!     });
//!     let sum: u64 = numbers.iter().sum();
//!     handle.join().expect("the producer does not panic");
//!     sum
//! });
//! assert_eq!(sum, 55);
//! ```

mod adapter;
mod bridge;
mod chan;
mod checked;
mod config;
mod float_modes;
mod freeze;
mod futex;
mod g;
mod goroutines;
mod handshake;
mod idle;
mod latch;
mod life;
mod m;
mod mailbox;
mod name;
mod overflow;
mod poll;
mod pool;
mod preempt;
mod run;
mod runq;
mod save_area;

mod sched;
mod signal;
mod stack;
mod stats;
mod switch;
mod symbol;
mod sync;
mod sysmon;
mod task;
mod throw;
mod timers;
mod tls;
mod traceback;
mod walk;

/// What the lock-free parts are built from. The model tests put loom's in this place.
mod primitive {
    pub(crate) use std::sync::atomic::{
        AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering, fence,
    };

    pub(crate) use super::futex::{heavy_fence, light_fence};
}

pub use adapter::Adapter;
#[doc(hidden)]
pub use bridge::sealed;
pub use bridge::{Entry, EntryType, GoroutineClosure, GoroutineFn, SpawnFn};
pub use chan::{
    Case, Chan, IntoIter, Iter, RecvError, RecvTimeoutError, SendError, SendTimeoutError, TryIter,
    TryRecvError, TrySendError, select, select_timeout, try_select,
};
pub use config::{Config, MAX_PROCESSORS, RunError, VectorState};
pub use float_modes::keep_float_modes;
pub use g::{Status, WaitReason};
pub use goroutines::{Goroutine, ScanError, goroutines, this_goroutine};
#[doc(hidden)]
pub use life::measure_raw_switch;
pub use poll::{PollLayout, Polls, poll_layout};
pub use pool::{StackUsage, stack_usage};
#[doc(hidden)]
pub use preempt::request_preemption;
pub use preempt::{checkpoint, without_preemption};

pub use sched::{Parker, current, gopark, goready, gosched};
pub use stack::{Shortage, StackError};
pub use stats::{Refused, Stats, stats};
pub use switch::systemstack;
pub use task::{
    Abandoned, Builder, JoinHandle, JoinResult, Scope, ScopedJoinHandle, SpawnError, SpawnFnError,
    go, scope, sleep,
};
pub use traceback::{
    TraceFrame, Traceback, jit_frames, jit_frames_from, traceback, traceback_all,
    traceback_all_within,
};
pub use walk::{JitFrame, Registers, ScanFrame, WalkEnd, scan_own_stack};

pub(crate) use futex::probe_fences;
pub(crate) use pool::probe_guards;
pub(crate) use save_area::saved_state;
pub(crate) use signal::handlers_without_alternate_stack;

/// Runs `f` as the main goroutine of a run with the default [`Config`]; see [`Config::run`].
///
/// # Panics
/// With the panic of `f`; if the run cannot start, with the [`RunError`] (use [`Config::run`] to
/// handle that).
pub fn run<R>(f: impl FnOnce() -> R) -> R {
    match Config::default().run(f) {
        Ok(result) => result,
        Err(error) => panic!("{error}"),
    }
}
