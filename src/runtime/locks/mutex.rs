#![allow(unsafe_code, reason = "guards lead to the data of a lock")]
//! The mutex. Its word, and the rule by which it is passed on: `sync/mutex_word.rs`.

use std::cell::UnsafeCell;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{LockResult, TryLockError, TryLockResult};

use crate::runtime::gmp::parker::Parker;
use crate::runtime::gmp::status::WaitReason;
use crate::runtime::locks::poison::{Held, Poison};
use crate::runtime::locks::queue::{Place, Queue};
use crate::runtime::sched::park::{may_park, refuse_park};
use crate::runtime::sync::mutex_word::{self, Next};

/// What a waiter tells the queue: it has not lost yet.
const NEW: usize = 0;
/// It has lost, and is handed the mutex next.
const LOST: usize = 1;

/// A mutex without data.
pub(super) struct RawMutex {
    word: AtomicU32,
    /// The [`Parker`] of the waiter that was readied last to compete, or 0. Written with the queue
    /// locked. Acquiring the mutex makes it visible.
    woken: AtomicUsize,
    queue: Queue,
}

impl RawMutex {
    const fn new() -> Self {
        Self { word: AtomicU32::new(0), woken: AtomicUsize::new(0), queue: Queue::new() }
    }

    #[inline]
    fn try_lock(&self) -> bool {
        mutex_word::try_lock(&self.word)
    }

    #[inline]
    #[track_caller]
    pub(super) fn lock(&self) {
        if !self.try_lock() {
            self.lock_contended();
        }
    }

    #[cold]
    #[track_caller]
    fn lock_contended(&self) {
        // Before a waiter is announced, which would stay announced.
        if !may_park() {
            refuse_park();
        }
        let (mut what, mut place) = (NEW, Place::Back);
        loop {
            let queue = self.queue.lock();
            let clears_woken = what == LOST || self.is_woken_abandoned();
            if mutex_word::lock_or_queue(&self.word, clears_woken) {
                return;
            }
            if queue.park(what, place, WaitReason::MutexLock, || {}) {
                return; // The holder has handed it over.
            }
            (what, place) = (LOST, Place::Front);
        }
    }

    /// Releases the mutex, which the caller holds. Neither parks nor unwinds.
    #[inline]
    pub(super) fn unlock(&self) {
        if !mutex_word::unlock(&self.word, || self.is_woken_abandoned()) {
            self.pass_on();
        }
    }

    /// Whether the run of the waiter that was readied last to compete has ended. It may also be
    /// true of one that has competed long since; then `WOKEN` is not set on its account, and the
    /// result has no effect. Called by the holder, or with the queue locked.
    fn is_woken_abandoned(&self) -> bool {
        let woken = self.woken.load(Ordering::Relaxed);
        woken != 0 && Parker::from_raw(woken).is_abandoned()
    }

    #[cold]
    fn pass_on(&self) {
        let queue = self.queue.lock();
        let first = queue.take();
        let next = match &first {
            None => Next::None,
            Some(first) if first.what() == LOST => Next::Owns,
            Some(first) => {
                self.woken.store(first.parker().into_raw(), Ordering::Relaxed);
                Next::Competes
            }
        };
        mutex_word::pass_on(&self.word, next, !queue.is_empty());
        drop(queue);
        if let Some(first) = first {
            first.ready(next == Next::Owns);
        }
    }
}

/// A mutex that parks the goroutine that waits for it. On a foreign thread it blocks the thread.
///
/// It has the shape of [`std::sync::Mutex`], poisoning included, which blocks the *thread* and all
/// goroutines that belong to it. So a guard of this mutex may be held over a park.
///
/// Waiters get it in the order in which they came, but for goroutines that run while the first
/// waiter is on its way: that one loses once at most, and is handed the mutex at the next release.
///
/// A goroutine that is abandoned at the end of its run while it holds a mutex never releases it,
/// like a guard that is forgotten: threads and goroutines of other runs that wait for it wait for
/// ever. They also do if the goroutine was abandoned after the mutex was passed on to it, and
/// before it ran. If it was abandoned when it had been woken for a mutex that was released, and
/// before it ran, the next goroutine or thread that uses the mutex passes it on: until then those
/// that waited already still wait.
///
/// ```
/// use footbridge::runtime::{self, Mutex, gosched};
///
/// let total = Mutex::new(0);
/// runtime::run(|| {
///     runtime::scope(|s| {
///         for n in 1..=10 {
///             let total = &total;
///             s.go(move || {
///                 let mut total = total.lock().expect("no holder panics");
///                 let before = *total;
///                 gosched(); // the others park meanwhile
///                 *total = before + n;
///             });
///         }
///     });
/// });
/// assert_eq!(total.into_inner().expect("no holder has panicked"), 55);
/// ```
pub struct Mutex<T: ?Sized> {
    raw: RawMutex,
    poison: Poison,
    data: UnsafeCell<T>,
}

// SAFETY: the data goes with the mutex.
unsafe impl<T: ?Sized + Send> Send for Mutex<T> {}

// SAFETY: one holder at a time has access, on any thread.
unsafe impl<T: ?Sized + Send> Sync for Mutex<T> {}

// A panic of a holder poisons it.
impl<T: ?Sized> UnwindSafe for Mutex<T> {}

impl<T: ?Sized> RefUnwindSafe for Mutex<T> {}

/// The right to use what is in a [`Mutex`]. Dropping it releases the mutex.
#[must_use = "the mutex is released when the guard is dropped"]
#[clippy::has_significant_drop]
pub struct MutexGuard<'a, T: ?Sized> {
    mutex: &'a Mutex<T>,
    held: Held,
    /// As std's guard it is not `Send`.
    not_send: PhantomData<*const ()>,
}

// SAFETY: a shared guard gives shared access.
unsafe impl<T: ?Sized + Sync> Sync for MutexGuard<'_, T> {}

impl<T> Mutex<T> {
    /// A mutex that is not locked.
    ///
    /// ```
    /// use footbridge::runtime::Mutex;
    /// static COUNT: Mutex<u32> = Mutex::new(0);
    /// *COUNT.lock().expect("not poisoned") += 1;
    /// ```
    pub const fn new(value: T) -> Self {
        Self { raw: RawMutex::new(), poison: Poison::new(), data: UnsafeCell::new(value) }
    }

    /// Returns the value. That the lock is moved shows that no guard exists.
    ///
    /// ```
    /// use footbridge::runtime::Mutex;
    /// assert_eq!(Mutex::new(7).into_inner().expect("not poisoned"), 7);
    /// ```
    ///
    /// # Errors
    /// A holder has panicked; the error contains the value.
    pub fn into_inner(self) -> LockResult<T> {
        let Self { poison, data, .. } = self;
        poison.check(data.into_inner())
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Locks it; parks until that is possible. [`Mutex`] has an example.
    ///
    /// A goroutine that locks a mutex that it holds already waits for ever.
    ///
    /// # Errors
    /// A holder has panicked. It is locked all the same, and the error contains the guard.
    ///
    /// # Panics
    /// Where it would have to park in [`systemstack`](crate::runtime::systemstack).
    #[inline]
    #[track_caller]
    pub fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        self.raw.lock();
        self.poison.check(self.guard())
    }

    /// Locks it if that is possible without waiting.
    ///
    /// ```
    /// use std::sync::TryLockError;
    /// use footbridge::runtime::Mutex;
    /// let mutex = Mutex::new(());
    /// let guard = mutex.try_lock().expect("free");
    /// assert!(matches!(mutex.try_lock(), Err(TryLockError::WouldBlock)));
    /// drop(guard);
    /// assert!(mutex.try_lock().is_ok());
    /// ```
    ///
    /// # Errors
    /// It is locked, or a holder has panicked.
    #[inline]
    pub fn try_lock(&self) -> TryLockResult<MutexGuard<'_, T>> {
        let guard = self.raw.try_lock().then(|| self.guard());
        self.poison.check_try(guard)
    }

    /// The caller has locked it.
    #[inline]
    fn guard(&self) -> MutexGuard<'_, T> {
        MutexGuard { mutex: self, held: self.poison.hold(), not_send: PhantomData }
    }

    /// Whether a holder has panicked.
    ///
    /// ```
    /// use footbridge::runtime::{self, Mutex, go};
    /// static MUTEX: Mutex<()> = Mutex::new(());
    /// runtime::run(|| {
    ///     let panics = go(|| {
    ///         let _guard = MUTEX.lock();
    ///         panic!("with the mutex locked");
    ///     });
    ///     assert!(panics.join().is_err());
    /// });
    /// assert!(MUTEX.is_poisoned());
    /// MUTEX.clear_poison();
    /// assert!(MUTEX.lock().is_ok());
    /// ```
    pub fn is_poisoned(&self) -> bool {
        self.poison.get()
    }

    /// Clears the poison mark: the value is right again. [`Self::is_poisoned`] has an example.
    pub fn clear_poison(&self) {
        self.poison.clear();
    }

    /// What is in it, without locking: nothing else can hold it.
    ///
    /// ```
    /// use footbridge::runtime::Mutex;
    /// let mut mutex = Mutex::new(1);
    /// *mutex.get_mut().expect("not poisoned") = 2;
    /// assert_eq!(*mutex.lock().expect("not poisoned"), 2);
    /// ```
    ///
    /// # Errors
    /// A holder has panicked; the error contains the reference.
    pub fn get_mut(&mut self) -> LockResult<&mut T> {
        let Self { poison, data, .. } = self;
        poison.check(data.get_mut())
    }
}

impl<'a, T: ?Sized> MutexGuard<'a, T> {
    /// The lock that it holds, for [`Condvar`](super::Condvar).
    pub(super) fn raw(&self) -> &'a RawMutex {
        &self.mutex.raw
    }

    /// The guard after its mutex was released and locked again.
    pub(super) fn checked(self) -> LockResult<Self> {
        let mutex = self.mutex;
        mutex.poison.check(self)
    }
}

impl<T: ?Sized> Drop for MutexGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.mutex.poison.release(&self.held);
        self.mutex.raw.unlock();
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the guard holds the mutex.
        unsafe { &*self.mutex.data.get() }
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard holds the mutex, and is borrowed exclusively.
        unsafe { &mut *self.mutex.data.get() }
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + fmt::Display> fmt::Display for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Mutex");
        match self.try_lock() {
            Ok(guard) => out.field("data", &&*guard),
            Err(TryLockError::Poisoned(error)) => out.field("data", &&**error.get_ref()),
            Err(TryLockError::WouldBlock) => out.field("data", &format_args!("<locked>")),
        };
        out.field("poisoned", &self.is_poisoned()).finish_non_exhaustive()
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> From<T> for Mutex<T> {
    fn from(value: T) -> Self {
        Self::new(value)
    }
}
