#![allow(unsafe_code, reason = "guards lead to the data of a lock")]
//! The reader-writer lock. Its word, and the rule by which it is handed over:
//! `sync/rwlock_word.rs`.

use std::cell::UnsafeCell;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::atomic::AtomicU32;
use std::sync::{LockResult, TryLockError, TryLockResult};

use crate::runtime::gmp::status::WaitReason;
use crate::runtime::locks::poison::{Held, Poison};
use crate::runtime::locks::queue::{Place, Queue, Several};
use crate::runtime::sched::park::{may_park, refuse_park};
use crate::runtime::sync::rwlock_word::{self, Next};

/// What a waiter tells the queue: it reads.
const READS: usize = 0;
/// It writes.
const WRITES: usize = 1;

/// A reader-writer lock without data.
struct RawRwLock {
    word: AtomicU32,
    queue: Queue,
}

impl RawRwLock {
    const fn new() -> Self {
        Self { word: AtomicU32::new(0), queue: Queue::new() }
    }

    #[inline]
    #[track_caller]
    fn read(&self) {
        if !rwlock_word::try_read(&self.word) {
            self.wait(READS, WaitReason::RwLockRead, rwlock_word::read_or_queue);
        }
    }

    #[inline]
    #[track_caller]
    fn write(&self) {
        if !rwlock_word::try_write(&self.word) {
            self.wait(WRITES, WaitReason::RwLockWrite, rwlock_word::write_or_queue);
        }
    }

    #[cold]
    #[track_caller]
    fn wait(&self, what: usize, reason: WaitReason, lock_or_queue: fn(&AtomicU32) -> bool) {
        // Before a waiter is announced, which would stay announced.
        if !may_park() {
            refuse_park();
        }
        let queue = self.queue.lock();
        if !lock_or_queue(&self.word) {
            // The last holder hands it over.
            queue.park(what, Place::Back, reason, || {});
        }
    }

    #[inline]
    fn unlock_read(&self) {
        if !rwlock_word::unlock_read(&self.word) {
            self.hand_over();
        }
    }

    #[inline]
    fn unlock_write(&self) {
        if !rwlock_word::unlock_write(&self.word) {
            self.hand_over();
        }
    }

    #[cold]
    fn hand_over(&self) {
        let queue = self.queue.lock();
        let mut taken = Several::new();
        let next = match queue.take() {
            None => Next::None,
            Some(writer) if writer.what() == WRITES => {
                taken.add(writer);
                Next::Writer
            }
            Some(reader) => {
                taken.add(reader);
                let mut readers = 1;
                while let Some(reader) = queue.take_if(|what| what == READS) {
                    taken.add(reader);
                    readers += 1;
                }
                Next::Readers(readers)
            }
        };
        rwlock_word::hand_over(&self.word, next, !queue.is_empty());
        drop(queue);
        taken.ready(true);
    }
}

/// A reader-writer lock that parks the goroutine that waits for it. On a foreign thread it blocks
/// the thread.
///
/// It has the shape of [`std::sync::RwLock`], poisoning by writers included. It is granted in the
/// order in which readers and writers came, and readers that are next to one another in that order
/// get it together: neither readers nor writers starve. So a goroutine that reads must not read
/// again: a writer may wait in between, and neither would ever get it.
///
/// What [`Mutex`](super::Mutex) says of guards over a park and of abandoned holders holds here,
/// too.
///
/// ```
/// use footbridge::runtime::{self, RwLock};
///
/// let words = RwLock::new(vec!["first"]);
/// runtime::run(|| {
///     runtime::scope(|s| {
///         s.go(|| words.write().expect("no writer panics").push("second"));
///         s.go(|| assert_eq!(words.read().expect("no writer panics")[0], "first"));
///     });
/// });
/// assert_eq!(words.read().expect("no writer has panicked").len(), 2);
/// ```
pub struct RwLock<T: ?Sized> {
    raw: RawRwLock,
    poison: Poison,
    data: UnsafeCell<T>,
}

// SAFETY: the data goes with the lock.
unsafe impl<T: ?Sized + Send> Send for RwLock<T> {}

// SAFETY: readers on several threads share the data, and a writer on any thread may replace it.
unsafe impl<T: ?Sized + Send + Sync> Sync for RwLock<T> {}

// A panic of a writer poisons it.
impl<T: ?Sized> UnwindSafe for RwLock<T> {}

impl<T: ?Sized> RefUnwindSafe for RwLock<T> {}

/// The right to read what is in an [`RwLock`]. Dropping it releases the lock.
#[must_use = "the lock is released when the guard is dropped"]
#[clippy::has_significant_drop]
pub struct RwLockReadGuard<'a, T: ?Sized> {
    lock: &'a RwLock<T>,
    /// As std's guard it is not `Send`.
    not_send: PhantomData<*const ()>,
}

/// The right to write what is in an [`RwLock`]. Dropping it releases the lock.
#[must_use = "the lock is released when the guard is dropped"]
#[clippy::has_significant_drop]
pub struct RwLockWriteGuard<'a, T: ?Sized> {
    lock: &'a RwLock<T>,
    held: Held,
    /// As std's guard it is not `Send`.
    not_send: PhantomData<*const ()>,
}

// SAFETY: a shared guard gives shared access.
unsafe impl<T: ?Sized + Sync> Sync for RwLockReadGuard<'_, T> {}

// SAFETY: a shared guard gives shared access.
unsafe impl<T: ?Sized + Sync> Sync for RwLockWriteGuard<'_, T> {}

impl<T> RwLock<T> {
    /// A lock that nothing holds.
    ///
    /// ```
    /// use footbridge::runtime::RwLock;
    /// static SETTING: RwLock<u32> = RwLock::new(1);
    /// assert_eq!(*SETTING.read().expect("not poisoned"), 1);
    /// ```
    pub const fn new(value: T) -> Self {
        Self { raw: RawRwLock::new(), poison: Poison::new(), data: UnsafeCell::new(value) }
    }

    /// Returns the value. That the lock is moved shows that no guard exists.
    ///
    /// ```
    /// use footbridge::runtime::RwLock;
    /// assert_eq!(RwLock::new(7).into_inner().expect("not poisoned"), 7);
    /// ```
    ///
    /// # Errors
    /// A writer has panicked; the error contains the value.
    pub fn into_inner(self) -> LockResult<T> {
        let Self { poison, data, .. } = self;
        poison.check(data.into_inner())
    }
}

impl<T: ?Sized> RwLock<T> {
    /// Locks it for reading; parks until that is possible. [`RwLock`] has an example.
    ///
    /// # Errors
    /// A writer has panicked. It is locked all the same, and the error contains the guard.
    ///
    /// # Panics
    /// Where it would have to park in [`systemstack`](crate::runtime::systemstack).
    #[inline]
    #[track_caller]
    pub fn read(&self) -> LockResult<RwLockReadGuard<'_, T>> {
        self.raw.read();
        self.poison.check(self.read_guard())
    }

    /// Locks it for writing; parks until that is possible. [`RwLock`] has an example.
    ///
    /// # Errors
    /// A writer has panicked. It is locked all the same, and the error contains the guard.
    ///
    /// # Panics
    /// Where it would have to park in [`systemstack`](crate::runtime::systemstack).
    #[inline]
    #[track_caller]
    pub fn write(&self) -> LockResult<RwLockWriteGuard<'_, T>> {
        self.raw.write();
        self.poison.check(self.write_guard())
    }

    /// Locks it for reading if that is possible without waiting: no writer holds it or waits for
    /// it.
    ///
    /// ```
    /// use footbridge::runtime::RwLock;
    /// let lock = RwLock::new(());
    /// let (first, second) = (lock.try_read(), lock.try_read());
    /// assert!(first.is_ok() && second.is_ok() && lock.try_write().is_err());
    /// ```
    ///
    /// # Errors
    /// A writer holds it or waits for it, or has panicked.
    #[inline]
    pub fn try_read(&self) -> TryLockResult<RwLockReadGuard<'_, T>> {
        let guard = rwlock_word::try_read(&self.raw.word).then(|| self.read_guard());
        self.poison.check_try(guard)
    }

    /// Locks it for writing if that is possible without waiting.
    ///
    /// ```
    /// use std::sync::TryLockError;
    /// use footbridge::runtime::RwLock;
    /// let lock = RwLock::new(());
    /// let guard = lock.try_write().expect("free");
    /// assert!(matches!(lock.try_read(), Err(TryLockError::WouldBlock)));
    /// drop(guard);
    /// assert!(lock.try_read().is_ok());
    /// ```
    ///
    /// # Errors
    /// It is locked, or a writer has panicked.
    #[inline]
    pub fn try_write(&self) -> TryLockResult<RwLockWriteGuard<'_, T>> {
        let guard = rwlock_word::try_write(&self.raw.word).then(|| self.write_guard());
        self.poison.check_try(guard)
    }

    /// The caller has locked it for reading.
    #[inline]
    fn read_guard(&self) -> RwLockReadGuard<'_, T> {
        RwLockReadGuard { lock: self, not_send: PhantomData }
    }

    /// The caller has locked it for writing.
    #[inline]
    fn write_guard(&self) -> RwLockWriteGuard<'_, T> {
        RwLockWriteGuard { lock: self, held: self.poison.hold(), not_send: PhantomData }
    }

    /// Whether a writer has panicked.
    ///
    /// ```
    /// use footbridge::runtime::{self, RwLock, go};
    /// static LOCK: RwLock<()> = RwLock::new(());
    /// runtime::run(|| {
    ///     let panics = go(|| {
    ///         let _guard = LOCK.write();
    ///         panic!("with the lock held");
    ///     });
    ///     assert!(panics.join().is_err());
    /// });
    /// assert!(LOCK.is_poisoned());
    /// LOCK.clear_poison();
    /// assert!(LOCK.read().is_ok());
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
    /// use footbridge::runtime::RwLock;
    /// let mut lock = RwLock::new(1);
    /// *lock.get_mut().expect("not poisoned") = 2;
    /// assert_eq!(*lock.read().expect("not poisoned"), 2);
    /// ```
    ///
    /// # Errors
    /// A writer has panicked; the error contains the reference.
    pub fn get_mut(&mut self) -> LockResult<&mut T> {
        let Self { poison, data, .. } = self;
        poison.check(data.get_mut())
    }
}

impl<T: ?Sized> Drop for RwLockReadGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.lock.raw.unlock_read();
    }
}

impl<T: ?Sized> Drop for RwLockWriteGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.lock.poison.release(&self.held);
        self.lock.raw.unlock_write();
    }
}

impl<T: ?Sized> Deref for RwLockReadGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the guard holds the lock for reading.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T: ?Sized> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the guard holds the lock for writing.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T: ?Sized> DerefMut for RwLockWriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard holds the lock for writing, and is borrowed exclusively.
        unsafe { &mut *self.lock.data.get() }
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for RwLockReadGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for RwLockWriteGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + fmt::Display> fmt::Display for RwLockReadGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + fmt::Display> fmt::Display for RwLockWriteGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("RwLock");
        match self.try_read() {
            Ok(guard) => out.field("data", &&*guard),
            Err(TryLockError::Poisoned(error)) => out.field("data", &&**error.get_ref()),
            Err(TryLockError::WouldBlock) => out.field("data", &format_args!("<locked>")),
        };
        out.field("poisoned", &self.is_poisoned()).finish_non_exhaustive()
    }
}

impl<T: Default> Default for RwLock<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> From<T> for RwLock<T> {
    fn from(value: T) -> Self {
        Self::new(value)
    }
}
