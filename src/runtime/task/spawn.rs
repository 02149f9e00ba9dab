#![allow(unsafe_code, reason = "a task lies in a stack")]
//! Starting a goroutine.
//!
//! The closure of a goroutine, and later its result, lie at the top of its own stack, so that a
//! start allocates nothing. What does not fit there lies on the heap.

use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::panic::{self, AssertUnwindSafe};

use crate::runtime::gmp::g::{G, TaskType};
use crate::runtime::gmp::join_state;
use crate::runtime::gmp::name::Name;
use crate::runtime::sched::lifecycle::{NewError, NewGoroutine, current_class, newproc, task_room};
use crate::runtime::stack::{SizeClass, StackError};
use crate::runtime::task::join::{JoinHandle, JoinResult, RawHandle};

/// What a goroutine runs: first the closure, then its result, in the same place.
union Task<F, T> {
    f: ManuallyDrop<F>,
    result: ManuallyDrop<JoinResult<T>>,
}

impl<F: FnOnce() -> T, T> Task<F, T> {
    const TYPE: TaskType =
        TaskType { run: Self::run, drop_result: Self::drop_result, is_boxed: false };

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
        // SAFETY: the task has run, and its result was not taken.
        unsafe { ManuallyDrop::drop(&mut (*data.cast::<Self>()).result) };
    }
}

/// A goroutine could not be started. Contains the closure.
#[non_exhaustive]
pub struct SpawnError<F> {
    /// Why.
    pub error: StackError,
    /// What was to be run.
    pub f: F,
}

impl<F> SpawnError<F> {
    /// The closure that was not run.
    ///
    /// ```
    /// use footbridge::runtime::{self, Builder};
    /// let refused = runtime::run(|| Builder::new().stack_bytes(9 << 20).go(|| 7).map(drop));
    /// let f = refused.expect_err("the largest stack has 8 MiB").into_inner();
    /// assert_eq!(f(), 7);
    /// ```
    pub fn into_inner(self) -> F {
        self.f
    }
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

impl<F> std::error::Error for SpawnError<F> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

/// How a goroutine is started.
pub(crate) struct Settings {
    pub(crate) class: SizeClass,
    pub(crate) name: Option<Name>,
    pub(crate) migratable: bool,
}

impl Settings {
    /// Those of the run that this thread belongs to.
    ///
    /// # Panics
    /// On a thread that no run owns.
    #[track_caller]
    pub(super) fn of_run() -> Self {
        Self { class: current_class(), name: None, migratable: false }
    }
}

/// Starts a goroutine of the types F and T, whatever their lifetimes.
///
/// # Safety
/// 1. The goroutine ends before anything that `F` borrows does.
/// 2. F and T may go to another thread.
/// 3. With `settings.migratable`: as for [`Builder::go_migratable`](super::Builder::go_migratable).
pub(super) unsafe fn spawn<F: FnOnce() -> T, T>(
    settings: Settings,
    f: F,
) -> Result<RawHandle<T>, SpawnError<F>> {
    let size = size_of::<Task<F, T>>();
    if size > task_room(settings.class) || align_of::<Task<F, T>>() > 4096 {
        // Too large for the stack: the heap holds the closure and the result.
        // SAFETY: the caller's promise.
        return unsafe { spawn_boxed(settings, Box::new(f)) };
    }
    let Settings { class, name, migratable } = settings;
    let new: NewGoroutine = match newproc(class, size, align_of::<Task<F, T>>()) {
        Ok(new) => new,
        Err(NewError { error }) => return Err(SpawnError { error, f }),
    };
    let task = new.data().cast::<Task<F, T>>();
    // SAFETY: room of that size and alignment was reserved there.
    unsafe { task.write(Task { f: ManuallyDrop::new(f) }) };
    let task_type = const { &Task::<F, T>::TYPE };
    let g = new.start(task_type, join_state::JOINABLE, migratable, false, name);
    // SAFETY: only an address in the G's stack is computed, which stays mapped until the handle
    // gives up the G. The task has these types.
    let result = unsafe { (&raw mut (*task).result).cast() };
    Ok(RawHandle { g, result })
}

/// # Safety
/// As for [`spawn`].
unsafe fn spawn_boxed<F: FnOnce() -> T, T>(
    settings: Settings,
    f: Box<F>,
) -> Result<RawHandle<T>, SpawnError<F>> {
    let out = Box::into_raw(Box::new(std::mem::MaybeUninit::<JoinResult<T>>::uninit()));
    let inner = Boxed { f, out };
    // SAFETY: the caller's promise; the room is a box that the handle or the goroutine frees.
    match unsafe { spawn_in_place(settings, inner) } {
        Ok(g) => Ok(RawHandle { g, result: out.cast() }),
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
    // SAFETY: the task has run, and its result was not taken.
    unsafe {
        let out = (*data.cast::<Boxed<F, T>>()).out;
        (*out).assume_init_drop();
        drop(Box::from_raw(out));
    }
}

struct BoxedType<F, T>(PhantomData<(F, T)>);

impl<F: FnOnce() -> T, T> BoxedType<F, T> {
    const TYPE: TaskType =
        TaskType { run: run_boxed::<F, T>, drop_result: drop_boxed::<F, T>, is_boxed: true };
}

/// # Safety
/// As for [`spawn`].
unsafe fn spawn_in_place<F: FnOnce() -> T, T>(
    Settings { class, name, migratable }: Settings,
    inner: Boxed<F, T>,
) -> Result<*mut G, (StackError, Boxed<F, T>)> {
    let new = match newproc(class, size_of::<Boxed<F, T>>(), align_of::<Boxed<F, T>>()) {
        Ok(new) => new,
        Err(NewError { error }) => return Err((error, inner)),
    };
    // SAFETY: room of that size and alignment was reserved there.
    unsafe { new.data().cast::<Boxed<F, T>>().write(inner) };
    let task = const { &BoxedType::<F, T>::TYPE };
    Ok(new.start(task, join_state::JOINABLE, migratable, false, name))
}

/// Starts a goroutine. From its first instruction on it stays on one thread.
///
/// It shares that thread, and what Rust and C keep for each thread, with other goroutines. So it
/// must not park while a library has set a thread-local for the time of a call (`scoped-tls`), nor
/// while it holds a lock of std: [what is shared on a
/// thread](crate::runtime#what-is-shared-on-a-thread).
///
/// [`Builder`](super::Builder) gives it a name or another stack, and returns an error where this
/// panics.
///
/// ```
/// use footbridge::runtime::{self, go};
/// let squares: Vec<u64> = runtime::run(|| {
///     let handles: Vec<_> = (1..=3).map(|n| go(move || n * n)).collect();
///     handles.into_iter().map(|handle| handle.join().expect("no panic")).collect()
/// });
/// assert_eq!(squares, [1, 4, 9]);
/// ```
///
/// # Panics
/// On a thread that no [`run`](crate::runtime::run) owns; when there is no memory for a stack.
#[track_caller]
pub fn go<F, T>(f: F) -> JoinHandle<T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    match go_with(Settings::of_run(), f) {
        Ok(handle) => handle,
        Err(error) => panic!("{error}"),
    }
}

/// Starts a goroutine that stays on its thread, whatever the settings say; on a thread of a run.
pub(crate) fn go_with<F, T>(settings: Settings, f: F) -> Result<JoinHandle<T>, SpawnError<F>>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let settings = Settings { migratable: false, ..settings };
    // SAFETY: nothing is borrowed, both types may go to another thread, and it does not migrate.
    unsafe { spawn(settings, f) }.map(JoinHandle)
}
