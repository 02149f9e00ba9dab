#![allow(unsafe_code, reason = "a cell that is written once")]
//! Initialising once.

use std::cell::UnsafeCell;
use std::fmt;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crate::runtime::gmp::parker::Parker;
use crate::runtime::gmp::status::WaitReason;
use crate::runtime::locks::queue::{Locked, Place, Queue};
use crate::runtime::sched::park::{current, may_park, refuse_park};

// What `Once::state` is. It is written with the queue locked.
const NEW: u32 = 0;
const POISONED: u32 = 1;
const RUNNING: u32 = 2;
/// Final. Release: what was initialised is seen by every thread that loads it by Acquire.
const DONE: u32 = 3;

/// Runs an initialiser once. Goroutines that come meanwhile park; foreign threads block.
///
/// It has the shape of [`std::sync::Once`]. An initialiser that panics poisons it.
///
/// So does an initialiser whose goroutine is abandoned at the end of its run: calls that come
/// afterwards find the `Once` poisoned. Calls that waited already still wait, until
/// [`Self::call_once_force`] has run another initialiser.
///
/// ```
/// use footbridge::runtime::{self, Once, go, gosched};
///
/// static ONCE: Once = Once::new();
/// runtime::run(|| {
///     let handles = [(); 3].map(|()| {
///         go(|| {
///             ONCE.call_once(gosched); // it may park
///             assert!(ONCE.is_completed());
///         })
///     });
///     handles.into_iter().for_each(|handle| handle.join().expect("no panic"));
/// });
/// ```
pub struct Once {
    state: AtomicU32,
    /// While the state is `RUNNING`: the [`Parker`] of the goroutine or thread that runs the
    /// closure. Touched with the queue locked.
    runner: AtomicUsize,
    queue: Queue,
}

/// What [`Once::call_once_force`] tells its closure.
#[derive(Debug)]
pub struct OnceState {
    is_poisoned: bool,
}

impl OnceState {
    /// Whether an earlier initialiser has panicked. [`Once::call_once_force`] has an example.
    pub fn is_poisoned(&self) -> bool {
        self.is_poisoned
    }
}

impl Once {
    /// A new `Once`, whose initialiser has not run.
    ///
    /// ```
    /// use footbridge::runtime::Once;
    /// static ONCE: Once = Once::new();
    /// assert!(!ONCE.is_completed());
    /// ```
    pub const fn new() -> Self {
        Self { state: AtomicU32::new(NEW), runner: AtomicUsize::new(0), queue: Queue::new() }
    }

    /// Runs `f` if no call has run its closure yet, or waits for the call that does. Then all that
    /// the closure did is seen. [`Once`] has an example.
    ///
    /// A closure that calls this for the same `Once` waits for ever.
    ///
    /// # Panics
    /// With the panic of `f`; if an earlier closure has panicked; where it would have to park in
    /// [`systemstack`](crate::runtime::systemstack).
    #[inline]
    #[track_caller]
    pub fn call_once(&self, f: impl FnOnce()) {
        if !self.is_completed() {
            let mut f = Some(f);
            self.call(false, &mut |_| (f.take().expect("called once"))());
        }
    }

    /// [`Self::call_once`] also after earlier closures have panicked.
    ///
    /// ```
    /// use footbridge::runtime::Once;
    /// let once = Once::new();
    /// let panics = || once.call_once(|| panic!("the first attempt"));
    /// assert!(std::panic::catch_unwind(panics).is_err());
    /// once.call_once_force(|state| assert!(state.is_poisoned()));
    /// assert!(once.is_completed());
    /// ```
    ///
    /// # Panics
    /// With the panic of `f`; where it would have to park in
    /// [`systemstack`](crate::runtime::systemstack).
    #[inline]
    #[track_caller]
    pub fn call_once_force(&self, f: impl FnOnce(&OnceState)) {
        if !self.is_completed() {
            let mut f = Some(f);
            self.call(true, &mut |state| (f.take().expect("called once"))(state));
        }
    }

    /// Whether a closure has run to its end.
    #[inline]
    pub fn is_completed(&self) -> bool {
        self.state.load(Ordering::Acquire) == DONE
    }

    /// Waits until a closure has run to its end.
    ///
    /// ```
    /// use footbridge::runtime::{self, Once, go};
    /// static ONCE: Once = Once::new();
    /// runtime::run(|| {
    ///     go(|| ONCE.call_once(|| ()));
    ///     ONCE.wait();
    ///     assert!(ONCE.is_completed());
    /// });
    /// ```
    ///
    /// # Panics
    /// If an earlier closure has panicked; where it would have to park in
    /// [`systemstack`](crate::runtime::systemstack).
    #[track_caller]
    pub fn wait(&self) {
        while !self.is_completed() {
            let queue = self.queue.lock();
            match self.state_of(&queue) {
                DONE => return,
                POISONED => {
                    drop(queue);
                    refuse_poisoned();
                }
                _ => drop(queue.park(0, Place::Back, WaitReason::Once, || {})),
            }
        }
    }

    /// The state. It is poisoned also if the closure runs on a goroutine whose run has ended.
    fn state_of(&self, _queue: &Locked<'_>) -> u32 {
        match self.state.load(Ordering::Acquire) {
            RUNNING if Parker::from_raw(self.runner.load(Ordering::Relaxed)).is_abandoned() => {
                POISONED
            }
            state => state,
        }
    }

    #[cold]
    #[track_caller]
    fn call(&self, ignores_poison: bool, f: &mut dyn FnMut(&OnceState)) {
        loop {
            let queue = self.queue.lock();
            match self.state_of(&queue) {
                DONE => return,
                RUNNING => drop(queue.park(0, Place::Back, WaitReason::Once, || {})),
                POISONED if !ignores_poison => {
                    drop(queue);
                    refuse_poisoned();
                }
                state => {
                    self.runner.store(current().into_raw(), Ordering::Relaxed);
                    self.state.store(RUNNING, Ordering::Relaxed);
                    drop(queue);
                    let mut end = End { once: self, state: POISONED };
                    f(&OnceState { is_poisoned: state == POISONED });
                    end.state = DONE;
                    return;
                }
            }
        }
    }
}

#[cold]
#[track_caller]
fn refuse_poisoned() -> ! {
    panic!(
        "the closure of an earlier call of this Once has panicked, or its run has ended before it \
         did, so that what it initialises may be half-done: use call_once_force to run another one"
    )
}

/// Ends the call of a closure when it is dropped, and wakes all that wait for that.
struct End<'a> {
    once: &'a Once,
    state: u32,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        let queue = self.once.queue.lock();
        self.once.state.store(self.state, Ordering::Release);
        queue.take_all().ready(true);
    }
}

impl Default for Once {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Once {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Once").field("completed", &self.is_completed()).finish_non_exhaustive()
    }
}

/// A cell that is written once. Goroutines that come while it is initialised park; foreign threads
/// block.
///
/// It has the shape of [`std::sync::OnceLock`]. An initialiser that panics leaves it empty,
/// and so does one whose goroutine is abandoned at the end of its run: the next call initialises
/// the cell. Calls that waited already wait for that.
///
/// ```
/// use footbridge::runtime::{self, OnceLock, go};
///
/// static TABLE: OnceLock<Vec<u32>> = OnceLock::new();
/// runtime::run(|| {
///     let length = go(|| TABLE.get_or_init(|| vec![1, 2, 3]).len());
///     assert_eq!(length.join().expect("no panic"), 3);
/// });
/// assert_eq!(TABLE.get().map(Vec::len), Some(3));
/// ```
pub struct OnceLock<T> {
    once: Once,
    /// Initialised if `once` is completed.
    value: UnsafeCell<MaybeUninit<T>>,
    owns: PhantomData<T>,
}

// SAFETY: one goroutine writes the value, and shared references to it are given to any thread.
unsafe impl<T: Sync + Send> Sync for OnceLock<T> {}

// SAFETY: the value goes with the cell.
unsafe impl<T: Send> Send for OnceLock<T> {}

impl<T: RefUnwindSafe + UnwindSafe> RefUnwindSafe for OnceLock<T> {}

impl<T: UnwindSafe> UnwindSafe for OnceLock<T> {}

impl<T> OnceLock<T> {
    /// An empty cell.
    ///
    /// ```
    /// use footbridge::runtime::OnceLock;
    /// static CELL: OnceLock<u8> = OnceLock::new();
    /// assert_eq!(CELL.get(), None);
    /// ```
    pub const fn new() -> Self {
        let value = UnsafeCell::new(MaybeUninit::uninit());
        Self { once: Once::new(), value, owns: PhantomData }
    }

    /// What is in the cell, if it is initialised.
    #[inline]
    pub fn get(&self) -> Option<&T> {
        // SAFETY: completed, so that the value was written, and nothing writes while it is shared.
        self.once.is_completed().then(|| unsafe { (*self.value.get()).assume_init_ref() })
    }

    /// [`Self::get`] without another holder.
    ///
    /// ```
    /// use footbridge::runtime::OnceLock;
    /// let mut cell = OnceLock::from(1);
    /// *cell.get_mut().expect("full") = 2;
    /// assert_eq!(cell.into_inner(), Some(2));
    /// ```
    pub fn get_mut(&mut self) -> Option<&mut T> {
        // SAFETY: completed, so that the value was written.
        self.once.is_completed().then(|| unsafe { self.value.get_mut().assume_init_mut() })
    }

    /// Writes the cell, if it is empty. Waits for another call that initialises it.
    ///
    /// ```
    /// use footbridge::runtime::OnceLock;
    /// let cell = OnceLock::new();
    /// assert_eq!(cell.set(1), Ok(()));
    /// assert_eq!((cell.set(2), cell.get()), (Err(2), Some(&1)));
    /// ```
    ///
    /// # Errors
    /// It is full; the error contains the value.
    ///
    /// # Panics
    /// Where it would have to park in [`systemstack`](crate::runtime::systemstack).
    #[track_caller]
    pub fn set(&self, value: T) -> Result<(), T> {
        let mut value = Some(value);
        self.get_or_init(|| value.take().expect("called once"));
        value.map_or(Ok(()), Err)
    }

    /// What is in the cell; `f` makes it if the cell is empty. Waits for another call that does.
    /// [`OnceLock`] has an example.
    ///
    /// # Panics
    /// With the panic of `f`, which leaves the cell empty; where it would have to park in
    /// [`systemstack`](crate::runtime::systemstack).
    #[track_caller]
    pub fn get_or_init(&self, f: impl FnOnce() -> T) -> &T {
        if let Some(value) = self.get() {
            return value;
        }
        self.once.call_once_force(|_| {
            let value = f();
            // SAFETY: the closure runs alone, and no reference exists before it has ended.
            unsafe { (*self.value.get()).write(value) };
        });
        self.get().expect("a closure has run to its end")
    }

    /// Waits until the cell is full.
    ///
    /// ```
    /// use footbridge::runtime::{self, OnceLock, go};
    /// static CELL: OnceLock<u8> = OnceLock::new();
    /// runtime::run(|| {
    ///     go(|| CELL.set(7));
    ///     assert_eq!(*CELL.wait(), 7);
    /// });
    /// ```
    ///
    /// # Panics
    /// Where it would have to park in [`systemstack`](crate::runtime::systemstack).
    #[track_caller]
    pub fn wait(&self) -> &T {
        while !self.once.is_completed() {
            if !may_park() {
                refuse_park();
            }
            let queue = self.once.queue.lock();
            if self.once.state.load(Ordering::Acquire) != DONE {
                queue.park(0, Place::Back, WaitReason::Once, || {});
            }
        }
        self.get().expect("a closure has run to its end")
    }

    /// Takes what is in the cell, which is empty then.
    ///
    /// ```
    /// use footbridge::runtime::OnceLock;
    /// let mut cell = OnceLock::from(1);
    /// assert_eq!((cell.take(), cell.get()), (Some(1), None));
    /// ```
    pub fn take(&mut self) -> Option<T> {
        let is_full = self.once.is_completed();
        self.once = Once::new();
        // SAFETY: it was full, and is not used again: the cell is empty.
        is_full.then(|| unsafe { self.value.get_mut().assume_init_read() })
    }

    /// What is in the cell. [`Self::get_mut`] has an example.
    pub fn into_inner(mut self) -> Option<T> {
        self.take()
    }
}

impl<T> Drop for OnceLock<T> {
    fn drop(&mut self) {
        drop(self.take());
    }
}

impl<T> Default for OnceLock<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> From<T> for OnceLock<T> {
    fn from(value: T) -> Self {
        let mut cell = Self::new();
        cell.value.get_mut().write(value);
        *cell.once.state.get_mut() = DONE;
        cell
    }
}

impl<T: fmt::Debug> fmt::Debug for OnceLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_tuple("OnceLock");
        match self.get() {
            Some(value) => out.field(value),
            None => out.field(&format_args!("<uninit>")),
        };
        out.finish()
    }
}
