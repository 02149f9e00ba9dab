#![allow(unsafe_code, reason = "results lie in the stacks of others")]
//! Waiting for the result of a goroutine.
//!
//! The G returns to the pool when both the goroutine has ended and the handle is gone; one exchange
//! on `G::join` decides which of the two comes second.

use std::any::Any;
use std::fmt;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::sync::atomic::Ordering;

use crate::runtime::gmp::g::G;
use crate::runtime::gmp::join_state;
use crate::runtime::gmp::name::Label;
use crate::runtime::gmp::status::WaitReason;
use crate::runtime::sched::lifecycle::gfput;
use crate::runtime::sched::park::{current, gopark, may_park, refuse_park};
use crate::runtime::sched::ready::goready;

/// What a goroutine leaves: its value, or what it panicked with.
pub type JoinResult<T> = Result<T, Box<dyn Any + Send + 'static>>;

/// What [`JoinHandle::join`] fails with when the run ended before the goroutine did. It comes as
/// the payload: `payload.is::<Abandoned>()`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abandoned;

impl fmt::Display for Abandoned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the run ended before the goroutine did")
    }
}

impl std::error::Error for Abandoned {}

/// The handle without the lifetimes.
///
/// Two words, which travel in registers. A third one, a flag, went through memory as a byte and was
/// read back as a word: the stall took a seventh of the time in which a goroutine starts and ends.
pub(crate) struct RawHandle<T> {
    pub(super) g: *mut G,
    pub(super) result: *mut JoinResult<T>,
}

impl<T> RawHandle<T> {
    fn g(&self) -> &G {
        // SAFETY: a G is never freed. No other goroutine gets this one while the handle exists.
        unsafe { &*self.g }
    }

    fn label(&self) -> Label<'_> {
        let g = self.g();
        // SAFETY: the handle exists, so no other goroutine gets the G, and its name stays.
        Label { id: g.id.load(Ordering::Relaxed), name: unsafe { g.name.get() } }
    }

    fn is_finished(&self) -> bool {
        self.g().join.load(Ordering::Acquire) == join_state::FINISHED
    }

    #[track_caller]
    fn join(self) -> JoinResult<T> {
        let must_wait = self.g().join.load(Ordering::Acquire) == join_state::JOINABLE;
        if must_wait && !may_park() {
            refuse_park();
        }
        let me = ManuallyDrop::new(self);
        let join = &me.g().join;
        if must_wait {
            let waiter = current();
            // SAFETY: if the exchange succeeds, `goexit0` (or the end of the run) finds the
            // address and readies this goroutine once. If it fails, the goroutine has ended; then
            // this one readies itself, which its own thread (or, for a migratable one, the system
            // stack that `unlock` runs on) may do.
            unsafe {
                gopark(WaitReason::Join, || {
                    // Once registered, the goroutine may run elsewhere: nothing of its stack is
                    // touched any more.
                    let registered = join
                        .compare_exchange(
                            join_state::JOINABLE,
                            waiter.into_raw(),
                            Ordering::AcqRel,
                            Ordering::Acquire,
                        )
                        .is_ok();
                    if !registered {
                        goready(waiter);
                    }
                });
            }
        }
        if join.load(Ordering::Acquire) == join_state::ABANDONED {
            return Err(Box::new(Abandoned));
        }
        // SAFETY: the goroutine has ended and its result is ours; afterwards nothing refers to the
        // G.
        unsafe {
            let result = me.result.read();
            me.release();
            result
        }
    }

    /// # Safety
    /// 1. The goroutine has ended, and its result was taken or dropped.
    /// 2. The handle is not used again.
    unsafe fn release(&self) {
        let task = self.g().task.get().expect("set before the goroutine was queued");
        if task.is_boxed {
            // SAFETY: made by `spawn_boxed`; what was in it is gone.
            drop(unsafe { Box::from_raw(self.result.cast::<MaybeUninit<JoinResult<T>>>()) });
        }
        gfput(self.g);
    }
}

impl<T> Drop for RawHandle<T> {
    fn drop(&mut self) {
        let exchanged = self.g().join.compare_exchange(
            join_state::JOINABLE,
            join_state::DETACHED,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        if exchanged == Err(join_state::FINISHED) {
            // SAFETY: the goroutine has ended and its result was not taken.
            unsafe {
                std::ptr::drop_in_place(self.result);
                self.release();
            }
        }
    }
}

/// The right to wait for a goroutine. Dropping it lets the goroutine run on its own.
pub struct JoinHandle<T>(pub(super) RawHandle<T>);

// SAFETY: the result goes from the goroutine to the thread that joins, which needs T: Send only.
unsafe impl<T: Send> Send for JoinHandle<T> {}

// SAFETY: a shared reference reaches the state, the number and the name of the goroutine only.
unsafe impl<T: Send> Sync for JoinHandle<T> {}

impl<T> JoinHandle<T> {
    /// Waits for the goroutine to end. On a goroutine this parks; on a foreign thread it blocks.
    ///
    /// ```
    /// use footbridge::runtime::{self, go};
    /// let sum = runtime::run(|| go(|| 20 + 22).join().expect("no panic"));
    /// assert_eq!(sum, 42);
    /// ```
    ///
    /// # Errors
    /// The payload of its panic, or [`Abandoned`].
    ///
    /// # Panics
    /// Where it would have to park in [`systemstack`](crate::runtime::systemstack). The goroutine
    /// runs on.
    #[track_caller]
    pub fn join(self) -> JoinResult<T> {
        self.0.join()
    }

    /// Whether `join` would return at once with a result.
    ///
    /// ```
    /// use footbridge::runtime::{self, go, gosched};
    /// runtime::run(|| {
    ///     let handle = go(|| ());
    ///     while !handle.is_finished() {
    ///         gosched();
    ///     }
    ///     handle.join().expect("no panic");
    /// });
    /// ```
    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }

    /// The number of the goroutine, as tracebacks print it.
    ///
    /// ```
    /// use footbridge::runtime::{self, go, this_goroutine};
    /// runtime::run(|| {
    ///     let handle = go(|| this_goroutine().expect("on a goroutine").id());
    ///     let id = handle.id();
    ///     assert_eq!(handle.join().expect("no panic"), id);
    /// });
    /// ```
    pub fn id(&self) -> u64 {
        self.0.label().id
    }

    /// The name of the goroutine, if [`Builder::name`](super::Builder::name) gave it one.
    ///
    /// ```
    /// use footbridge::runtime::{self, Builder, go};
    /// runtime::run(|| {
    ///     let pump = Builder::new().name("pump").go(|| ()).expect("memory");
    ///     assert_eq!(pump.name(), Some("pump"));
    ///     assert_eq!(go(|| ()).name(), None);
    /// });
    /// ```
    pub fn name(&self) -> Option<&str> {
        self.0.label().name
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinHandle({})", self.0.label())
    }
}
