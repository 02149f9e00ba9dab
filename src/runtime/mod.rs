//! Goroutines: scheduling, channels, bridges to JIT code, and tracebacks.
//!
//! * [`run()`] and [`Config`] make a runtime instance: threads that run goroutines until the main
//!   one returns.
//! * [`go`], [`scope()`] and [`Builder`] start goroutines. [`Chan`] and [`select`] connect them,
//!   [`JoinHandle`] waits for one.
//! * [`Mutex`], [`RwLock`], [`Condvar`], [`Once`], [`OnceLock`], [`WaitGroup`] and [`Barrier`] park
//!   the goroutine where std's block the thread. [`goroutine_local!`](crate::goroutine_local)
//!   declares statics of which each goroutine has a value of its own.
//! * [`GoroutineFn`], [`Entry`], [`SpawnFn`], [`Adapter`] and [`Polls`] are the bridges between JIT
//!   code and Rust, made by methods of [`Jit`](crate::jit::Jit) and [`Code`](crate::jit::Code).
//! * [`traceback`], [`jit_frames`] and [`scan_own_stack`] walk stacks. [`goroutines`] and
//!   [`traceback_all`] inspect all goroutines.
//!
//! Things that Go's runtime has, too, have Go's names. Safe code stays sound on a goroutine: after
//! its first instruction it stays on one thread (unless
//! [`Builder::go_migratable`] started it), so that values that are not `Send` may live over a park.
//! [What is shared on a thread](#what-is-shared-on-a-thread) has the exceptions.
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
//!
//! # What is shared on a thread
//!
//! Rust, C and the system keep state for each *thread*, and a thread runs many goroutines. From one
//! park of a goroutine to the next it has the thread to itself. During a park other goroutines of
//! the thread run, and find what it has left there. Parks are all calls of this crate that may
//! wait, [`gosched`], [`checkpoint`], and calls of functions that do one of these; in JIT code also
//! polls, returns of goroutine functions, and any instruction of preemptible code
//! ([`without_preemption`] excepts these).
//!
//! *Not caught, and the caller's duty:*
//!
//! * **A thread-local that is set for the time of a call** and reset when the call returns, such as
//!   those of the crate `scoped-tls`, or a context that a guard enters and leaves. Two goroutines
//!   of a thread may leave such calls in another order than the reverse of that in which they
//!   entered them. Then each restores what it had found, and the value of a call that has returned
//!   is left: a
//!   *dangling reference*, though all of the code is safe. Such a library relies on calls that
//!   nest. No crate with stackful coroutines can promise that; whose fault it is, is an open
//!   question: [rust-lang/unsafe-code-guidelines#602][ucg]. **A goroutine must
//!   not park in such a call.** Instead: pass the value as an argument, or keep an owned one (an
//!   `Arc`, say) in a `goroutine_local!`.
//! * **A lock of std, of `parking_lot` or of C that is held over a park.** Another goroutine of the
//!   thread that locks it blocks the thread, and with it the holder: a deadlock. (A guard that is
//!   not `Send` still cannot be moved into another goroutine: the compiler refuses that.) Instead:
//!   [`Mutex`] and [`RwLock`]. A std lock that is not held over a park is as good here as anywhere.
//! * **A borrow of a thread-local that is lent to another thread**, by `std::thread::scope` for
//!   example, over a park during which the run ends. The end of a run abandons goroutines, and a
//!   call that is abandoned never returns: it does not wait for the threads that it has started.
//!   The thread of the run ends, and destroys what it lent. So a goroutine that lends its thread's
//!   locals is joined before the run ends. (What lies on its own stack or on the heap is never
//!   freed.)
//! * **What blocks the thread**: `Condvar`, `Barrier`, `mpsc`, `thread::sleep`, `thread::park` of
//!   std, or a system call that waits. All goroutines of the thread wait as well, perhaps those
//!   that it waits for. Instead: this module's, [`Chan`] and [`sleep`].
//! * **The floating-point control state**, MXCSR and the x87 control word: what a goroutine sets is
//!   set for the others of its thread. Instead: [`keep_fp_control`].
//! * **`errno` and other state that C keeps by thread**: the locale of `uselocale`, the buffers of
//!   `strerror` or `gethostbyname`, signal masks, credentials, a namespace. A call that parks may
//!   change `errno`, like any call: read it before. What was set for the thread is set for its
//!   goroutines.
//!
//! *Caught, or sound:*
//!
//! * **A `RefCell` of a thread-local that is borrowed over a park.** The `borrow_mut` of another
//!   goroutine panics. The same goes for any `Cell` or `RefCell` pattern that takes the value out
//!   and puts it back: the other goroutine finds it gone. Instead: a `goroutine_local!`, whose
//!   borrows are one goroutine's own.
//! * **A reference to a thread-local that is kept over a park** is sound: the goroutine stays on
//!   the thread, and no thread of a run ends before the last goroutine of the run has stopped.
//! * **A park while a panic unwinds**, in a destructor, or in a panic hook. `thread::panicking()`
//!   and the poisoning of locks follow the goroutine, where
//!   [`environment`](crate::environment())`().panic_state` says that std's words were found. **A
//!   panic hook must not park** all the same: std holds its lock of hooks meanwhile. A thread that
//!   calls `set_hook` or `take_hook` waits for it, and then each later panic waits for that thread.
//! * **`errno` over what the goroutine did not ask for**: a preemption, a poll, a [`checkpoint`].
//!
//! [`std::thread::current`] is the thread, whose name, number and token of `park` all of its
//! goroutines share; [`this_goroutine`] is the goroutine.
//!
//! [ucg]: https://github.com/rust-lang/unsafe-code-guidelines/issues/602

mod arch;
mod bridge;
mod chan;
mod fault;
mod gmp;
mod locks;
mod os;
mod sched;
mod stack;
mod start;
mod sync;
mod task;
mod walk;

pub use crate::jit::Shortage;
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
pub use locks::{
    Barrier, BarrierWaitResult, Condvar, Mutex, MutexGuard, Once, OnceLock, OnceState, RwLock,
    RwLockReadGuard, RwLockWriteGuard, WaitGroup, WaitTimeoutResult,
};
pub use sched::fp_control::keep_fp_control;
pub use sched::park::{current, gopark, gosched};
pub use sched::preempt::{checkpoint, without_preemption};
pub use sched::ready::goready;
pub use sched::stats::{Refused, Stats, stats};
pub use sched::systemstack::systemstack;
pub use stack::StackError;
pub use start::{Config, MAX_PROCESSORS, RunError};
#[doc(hidden)]
pub use start::{measure_raw_switch, request_preemption};
pub use task::{
    Abandoned, AccessError, Builder, JoinHandle, JoinResult, LocalKey, Scope, ScopedJoinHandle,
    SpawnError, SpawnFnError, go, scope, sleep,
};
pub use walk::{
    Goroutine, JitFrame, ScanError, ScanFrame, TraceFrame, Traceback, WalkEnd, goroutines,
    jit_frames, jit_frames_from, scan_own_stack, this_goroutine, traceback, traceback_all,
    traceback_all_within,
};

pub(crate) use gmp::pools::probe_guards;
pub(crate) use os::futex::probe_fences;
pub(crate) use os::signals::{can_signal, handlers_without_alternate_stack};
pub(crate) use sched::panic_probe::describe_panic_state;
pub(crate) use sched::preempt_signal::describe as describe_preemption;
pub(crate) use stack::memory_report;

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
