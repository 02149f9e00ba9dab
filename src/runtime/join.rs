#![allow(unsafe_code, reason = "a task lies in a stack")]
//! Starting goroutines and waiting for their results.
//!
//! The closure of a goroutine, and later its result, lie at the top of its own stack, so that a
//! start allocates nothing. The G is given back when both the goroutine has ended and the handle
//! is gone; who comes second is decided by one exchange on `G::join`.

use std::any::Any;
use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::panic::{self, AssertUnwindSafe};
use std::ptr;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::g::{G, TaskType, WaitReason, join_state};
use super::life::{NewError, NewG, current_class, free_g, new_g, task_room};
use super::sched::{Parker, current, gopark, goready, may_park, refuse_park};
use super::stack::{SizeClass, StackError};
use super::tls::getg;

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

/// What a goroutine runs: first the closure, then its result, in the same place.
union Task<F, T> {
    f: ManuallyDrop<F>,
    result: ManuallyDrop<JoinResult<T>>,
}

impl<F: FnOnce() -> T, T> Task<F, T> {
    const TYPE: TaskType = TaskType { run: Self::run, drop_result: Self::drop_result };

    unsafe fn run(data: *mut u8) {
        let task = data.cast::<Self>();
        // SAFETY: `spawn` put the closure there, and a task is run once.
        unsafe {
            let f = ManuallyDrop::take(&mut (*task).f);
            let result = panic::catch_unwind(AssertUnwindSafe(f));
            (&raw mut (*task).result).write(ManuallyDrop::new(result));
        }
    }

    unsafe fn drop_result(data: *mut u8) {
        // SAFETY: the task has run, and nobody else takes the result.
        unsafe { ManuallyDrop::drop(&mut (*data.cast::<Self>()).result) };
    }
}

/// A goroutine could not be started. The closure is given back.
pub struct SpawnError<F> {
    /// Why.
    pub error: StackError,
    /// What was to be run.
    pub f: F,
}

impl<F> fmt::Debug for SpawnError<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpawnError").field("error", &self.error).finish_non_exhaustive()
    }
}

impl<F> fmt::Display for SpawnError<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a goroutine could not be started: {}", self.error)
    }
}

impl<F> std::error::Error for SpawnError<F> {}

/// Starts a goroutine of the types F and T, whatever their lifetimes.
///
/// # Safety
/// The goroutine ends before anything that `F` borrows does, and F and T may go to another thread.
unsafe fn spawn<F: FnOnce() -> T, T>(
    class: SizeClass,
    f: F,
    migratable: bool,
) -> Result<RawHandle<T>, SpawnError<F>> {
    let size = size_of::<Task<F, T>>();
    if size > task_room(class) || align_of::<Task<F, T>>() > 4096 {
        // Too large for the stack: the heap holds the closure and the result.
        // SAFETY: the caller's promise.
        return unsafe { spawn_boxed(class, Box::new(f), migratable) };
    }
    let new: NewG = match new_g(class, size, align_of::<Task<F, T>>()) {
        Ok(new) => new,
        Err(NewError { error }) => return Err(SpawnError { error, f }),
    };
    let task = new.data().cast::<Task<F, T>>();
    // SAFETY: room of that size and alignment was reserved there.
    unsafe { task.write(Task { f: ManuallyDrop::new(f) }) };
    let g = new.start(const { &Task::<F, T>::TYPE }, join_state::RUNNING, migratable, false);
    // SAFETY: the task is of these types.
    let result = unsafe { (&raw mut (*task).result).cast() };
    Ok(RawHandle { g, result, boxed: false })
}

/// # Safety
/// As for [`spawn`].
unsafe fn spawn_boxed<F: FnOnce() -> T, T>(
    class: SizeClass,
    f: Box<F>,
    migratable: bool,
) -> Result<RawHandle<T>, SpawnError<F>> {
    let out = Box::into_raw(Box::new(std::mem::MaybeUninit::<JoinResult<T>>::uninit()));
    let inner = Boxed { f, out };
    // SAFETY: the caller's promise; the room is a box that the handle or the goroutine frees.
    match unsafe { spawn_in_place(class, inner, migratable) } {
        Ok(g) => Ok(RawHandle { g, result: out.cast(), boxed: true }),
        Err((error, inner)) => {
            // SAFETY: from `into_raw` above, never written.
            drop(unsafe { Box::from_raw(inner.out) });
            Err(SpawnError { error, f: *inner.f })
        }
    }
}

/// A task whose closure and result lie on the heap.
struct Boxed<F, T> {
    f: Box<F>,
    out: *mut std::mem::MaybeUninit<JoinResult<T>>,
}

unsafe fn run_boxed<F: FnOnce() -> T, T>(data: *mut u8) {
    // SAFETY: `spawn_in_place` put the task there; its closure is taken once, and `out` stays.
    unsafe {
        let task = data.cast::<Boxed<F, T>>();
        // Called through the box: a closure that is too large for the stack stays off it.
        let f: Box<F> = std::ptr::read(&raw const (*task).f);
        let f: Box<dyn FnOnce() -> T + '_> = f;
        let result = panic::catch_unwind(AssertUnwindSafe(f));
        (*(*task).out).write(result);
    }
}

unsafe fn drop_boxed<F, T>(data: *mut u8) {
    // SAFETY: the task has run, and nobody else takes the result.
    unsafe {
        let out = (*data.cast::<Boxed<F, T>>()).out;
        (*out).assume_init_drop();
        drop(Box::from_raw(out));
    }
}

struct BoxedType<F, T>(PhantomData<(F, T)>);

impl<F: FnOnce() -> T, T> BoxedType<F, T> {
    const TYPE: TaskType = TaskType { run: run_boxed::<F, T>, drop_result: drop_boxed::<F, T> };
}

/// # Safety
/// As for [`spawn`].
unsafe fn spawn_in_place<F: FnOnce() -> T, T>(
    class: SizeClass,
    inner: Boxed<F, T>,
    migratable: bool,
) -> Result<*mut G, (StackError, Boxed<F, T>)> {
    let new = match new_g(class, size_of::<Boxed<F, T>>(), align_of::<Boxed<F, T>>()) {
        Ok(new) => new,
        Err(NewError { error }) => return Err((error, inner)),
    };
    // SAFETY: room of that size and alignment was reserved there.
    unsafe { new.data().cast::<Boxed<F, T>>().write(inner) };
    let task = const { &BoxedType::<F, T>::TYPE };
    Ok(new.start(task, join_state::RUNNING, migratable, false))
}

/// The handle without the lifetimes.
struct RawHandle<T> {
    g: *mut G,
    result: *mut JoinResult<T>,
    /// `result` is a box of its own.
    boxed: bool,
}

impl<T> RawHandle<T> {
    fn g(&self) -> &G {
        // SAFETY: immortal; it stays this goroutine's while the handle exists.
        unsafe { &*self.g }
    }

    fn is_finished(&self) -> bool {
        self.g().join.load(Ordering::Acquire) == join_state::DONE
    }

    fn join(self) -> JoinResult<T> {
        let must_wait = self.g().join.load(Ordering::Acquire) == join_state::RUNNING;
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
                            join_state::RUNNING,
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
        // SAFETY: the goroutine has ended and its result is ours; then nobody refers to the G.
        unsafe {
            let result = me.result.read();
            me.release();
            result
        }
    }

    /// # Safety
    /// The goroutine has ended, its result was taken or dropped, and the handle is not used again.
    unsafe fn release(&self) {
        if self.boxed {
            // SAFETY: made by `spawn_boxed`; what was in it is gone.
            drop(unsafe {
                Box::from_raw(self.result.cast::<std::mem::MaybeUninit<JoinResult<T>>>())
            });
        }
        free_g(self.g);
    }
}

impl<T> Drop for RawHandle<T> {
    fn drop(&mut self) {
        let exchanged = self.g().join.compare_exchange(
            join_state::RUNNING,
            join_state::DETACHED,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        if exchanged == Err(join_state::DONE) {
            // SAFETY: the goroutine has ended and nobody took its result.
            unsafe {
                std::ptr::drop_in_place(self.result);
                self.release();
            }
        }
    }
}

/// The right to wait for a goroutine. Dropping it lets the goroutine run on its own.
pub struct JoinHandle<T>(RawHandle<T>);

// SAFETY: the result goes from the goroutine to whoever joins, which needs T: Send only.
unsafe impl<T: Send> Send for JoinHandle<T> {}
// SAFETY: nothing but whether the goroutine has finished is reached through a shared reference.
unsafe impl<T: Send> Sync for JoinHandle<T> {}

impl<T> JoinHandle<T> {
    /// Waits for the goroutine to end. On a goroutine this parks; on a foreign thread it blocks.
    ///
    /// # Errors
    /// The payload of its panic, or [`Abandoned`].
    pub fn join(self) -> JoinResult<T> {
        self.0.join()
    }

    /// Whether `join` would return at once with a result.
    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }

    /// The number of the goroutine, as tracebacks print it.
    pub fn goid(&self) -> u64 {
        self.0.g().goid.load(Ordering::Relaxed)
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinHandle(goroutine {})", self.goid())
    }
}

/// Starts a goroutine. From its first instruction on it stays on one thread.
///
/// # Panics
/// On a thread that no [`run`](super::run) owns; when there is no memory for a stack (use
/// [`try_go`] to handle that).
pub fn go<F, T>(f: F) -> JoinHandle<T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    match try_go(f) {
        Ok(handle) => handle,
        Err(error) => panic!("{error}"),
    }
}

/// As [`go`], with the closure given back when no goroutine could be made.
///
/// # Errors
/// There is no memory for a stack.
///
/// # Panics
/// On a thread that no [`run`](super::run) owns.
pub fn try_go<F, T>(f: F) -> Result<JoinHandle<T>, SpawnError<F>>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    go_in(current_class(), f)
}

/// Starts a goroutine with a stack of the class, on a thread of a run.
pub(super) fn go_in<F, T>(class: SizeClass, f: F) -> Result<JoinHandle<T>, SpawnError<F>>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    // SAFETY: nothing is borrowed, and both types may go to another thread.
    unsafe { spawn(class, f, false) }.map(JoinHandle)
}

/// Starts a goroutine that may continue on another thread after each park.
///
/// # Safety
/// From a park on, the goroutine's code may run on another thread. JIT code parks in this sense
/// where it polls, where it is interrupted, and when a goroutine function returns to it, and so does
/// [`checkpoint`](super::checkpoint). So nowhere on its stack, in
/// whatever it calls, is there a value over a park that is not `Send`, or a reference to a
/// `thread_local!`. Compilers also keep the *address* of a thread-local in a register over a call: no
/// function uses a `thread_local!` both before and after a park, unless by way of a function that is
/// never inlined.
///
/// # Panics
/// As [`go`].
pub unsafe fn go_migratable<F, T>(f: F) -> JoinHandle<T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    // SAFETY: the caller's promise.
    match unsafe { go_migratable_in(current_class(), f) } {
        Ok(handle) => handle,
        Err(error) => panic!("{error}"),
    }
}

/// # Safety
/// As for [`go_migratable`].
pub(super) unsafe fn go_migratable_in<F, T>(
    class: SizeClass,
    f: F,
) -> Result<JoinHandle<T>, SpawnError<F>>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    // SAFETY: nothing is borrowed, and both types may go to another thread.
    unsafe { spawn(class, f, true) }.map(JoinHandle)
}

/// What the goroutines of a scope share with it.
///
/// Who runs the scope counts its starts for itself: a count that it shared with those that end would
/// go back and forth between two processors. All others use one word: how many have left, less those
/// that others than the scope have started. When the scope waits it settles the two, by one addition:
/// from then on the word is [`ALL_LEFT`] less those that still run. So whoever leaves knows by its own
/// addition whether it is the last one, and looks at nothing afterwards: the scope may be gone.
struct ScopeData {
    /// Whose scope it is.
    owner: *const G,
    /// How many the owner has started.
    started: Line<AtomicUsize>,
    left: Line<AtomicUsize>,
    panicked: AtomicBool,
    waiter: Mutex<Parker>,
}

// SAFETY: the owner is an address that is compared.
unsafe impl Sync for ScopeData {}

/// On a cache line of its own.
#[repr(align(64))]
struct Line<T>(T);

/// No count of goroutines comes near it, from zero up or down.
const ALL_LEFT: usize = 1 << (usize::BITS - 1);

impl ScopeData {
    fn new() -> Self {
        Self {
            owner: getg(),
            started: Line(AtomicUsize::new(0)),
            left: Line(AtomicUsize::new(0)),
            panicked: AtomicBool::new(false),
            waiter: Mutex::new(Parker::NONE),
        }
    }

    fn start(&self) {
        if ptr::eq(getg(), self.owner) {
            let started = self.started.0.load(Ordering::Relaxed);
            self.started.0.store(started + 1, Ordering::Relaxed);
        } else {
            self.left.0.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Takes [`Self::start`] back: nobody was started. Who calls runs, and is not the last one.
    fn cancel_start(&self) {
        if ptr::eq(getg(), self.owner) {
            let started = self.started.0.load(Ordering::Relaxed);
            self.started.0.store(started - 1, Ordering::Relaxed);
        } else {
            self.left.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Owner only. Whether all have left. Acquire: what they did is seen.
    fn is_done(&self) -> bool {
        self.left.0.load(Ordering::Acquire) == self.started.0.load(Ordering::Relaxed)
    }

    /// One leaves; the last one wakes the scope if that waits.
    fn leave(&self) {
        self.add_left(1);
    }

    /// Owner only, once: the scope has set the waiter, and parks until it is readied.
    fn wait(&self) {
        self.add_left(ALL_LEFT - self.started.0.load(Ordering::Relaxed));
    }

    fn add_left(&self, count: usize) {
        if self.left.0.fetch_add(count, Ordering::AcqRel).wrapping_add(count) == ALL_LEFT {
            let waiter = *self.waiter.lock().unwrap_or_else(PoisonError::into_inner);
            // SAFETY: the scope waits, and the word becomes this once: all have left, so that nobody
            // starts or leaves any more.
            unsafe { goready(waiter) };
        }
    }
}

/// Where goroutines can be started that borrow from the surroundings. See [`scope`].
pub struct Scope<'scope, 'env: 'scope> {
    data: ScopeData,
    scope: PhantomData<&'scope mut &'scope ()>,
    env: PhantomData<&'env mut &'env ()>,
}

/// Leaves the scope when it is dropped: by a panic, or behind the value of the goroutine.
struct Leave<'scope> {
    data: &'scope ScopeData,
    returned: bool,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if !self.returned {
            self.data.panicked.store(true, Ordering::Relaxed);
        }
        self.data.leave();
    }
}

/// A [`JoinHandle`] of a scope. A scope whose handle is forgotten (`mem::forget`) waits for ever.
pub struct ScopedJoinHandle<'scope, T>(JoinHandle<(T, Leave<'scope>)>);

impl<T> ScopedJoinHandle<'_, T> {
    /// Waits for the goroutine to end.
    ///
    /// # Errors
    /// The payload of its panic.
    pub fn join(self) -> JoinResult<T> {
        self.0.join().map(|(value, _leave)| value)
    }
}

impl<'scope> Scope<'scope, '_> {
    /// Starts a goroutine that ends before the scope does.
    ///
    /// # Panics
    /// As [`go`].
    pub fn go<F, T>(&'scope self, f: F) -> ScopedJoinHandle<'scope, T>
    where
        F: FnOnce() -> T + Send + 'scope,
        T: Send + 'scope,
    {
        match self.go_in(current_class(), f) {
            Ok(handle) => handle,
            Err(error) => panic!("a goroutine could not be started: {error}"),
        }
    }

    /// As [`Self::go`], with a stack of the class. If there is none the closure is dropped.
    pub(super) fn go_in<F, T>(
        &'scope self,
        class: SizeClass,
        f: F,
    ) -> Result<ScopedJoinHandle<'scope, T>, StackError>
    where
        F: FnOnce() -> T + Send + 'scope,
        T: Send + 'scope,
    {
        self.data.start();
        let data = &self.data;
        let body = move || {
            let mut leave = Leave { data, returned: false };
            let value = f();
            leave.returned = true;
            // The value may borrow from the scope: the scope waits until it is gone, too.
            (value, leave)
        };
        // SAFETY: the scope does not return before every goroutine has left it, and `scope` does
        // not unwind past that either. A goroutine leaves when its closure and its value are gone,
        // whoever drops the value; who joins takes it within 'scope.
        match unsafe { spawn(class, body, false) } {
            Ok(handle) => Ok(ScopedJoinHandle(JoinHandle(handle))),
            Err(SpawnError { error, .. }) => {
                self.data.cancel_start();
                Err(error)
            }
        }
    }
}

/// Runs `f` with a [`Scope`], then waits for every goroutine that was started in it.
///
/// ```
/// use footbridge::runtime;
/// let mut words = vec!["left", "right"];
/// runtime::run(|| {
///     runtime::scope(|s| {
///         for word in &mut words {
///             s.go(move || *word = &word[1..]);
///         }
///     });
/// });
/// assert_eq!(words, ["eft", "ight"]);
/// ```
///
/// # Panics
/// With the panic of `f`; or, when a goroutine of the scope panicked, whether it was joined or not.
pub fn scope<'env, F, T>(f: F) -> T
where
    F: for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> T,
{
    // The wait at the end must not be the place that finds out: it cannot unwind past goroutines
    // that still run.
    if !may_park() {
        refuse_park();
    }
    let scope = Scope { data: ScopeData::new(), scope: PhantomData, env: PhantomData };
    let result = panic::catch_unwind(AssertUnwindSafe(|| f(&scope)));
    let data = &scope.data;
    if !data.is_done() {
        let me = current();
        *data.waiter.lock().unwrap_or_else(PoisonError::into_inner) = me;
        // SAFETY: one readies this goroutine: the last one that leaves, or this one if all have left.
        unsafe { gopark(WaitReason::Scope, || data.wait()) };
    }
    match result {
        Err(payload) => panic::resume_unwind(payload),
        Ok(_) if data.panicked.load(Ordering::Relaxed) => panic!("a scoped goroutine panicked"),
        Ok(value) => value,
    }
}
