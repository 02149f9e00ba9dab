//! The condition variable.

use std::fmt;
use std::sync::LockResult;
use std::time::{Duration, Instant};

use crate::runtime::gmp::status::WaitReason;
use crate::runtime::locks::mutex::MutexGuard;
use crate::runtime::locks::queue::{Place, Queue};

/// A condition variable for [`Mutex`](super::Mutex) that parks the goroutine that waits. On a
/// foreign thread it blocks the thread.
///
/// It has the shape of [`std::sync::Condvar`]. Waiters are notified in the order in which they
/// came. A notification is for those that wait at that moment, and no wait ends without one.
///
/// ```
/// use footbridge::runtime::{self, Condvar, Mutex, go};
///
/// static STATE: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());
/// runtime::run(|| {
///     let (mutex, condvar) = &STATE;
///     go(|| {
///         *STATE.0.lock().expect("no holder panics") = true;
///         STATE.1.notify_one();
///     });
///     let is_ready = mutex.lock().expect("no holder panics");
///     let is_ready = condvar.wait_while(is_ready, |ready| !*ready).expect("no holder panics");
///     assert!(*is_ready);
/// });
/// ```
pub struct Condvar {
    queue: Queue,
}

/// Whether a wait with a limit ended by its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    /// Whether the time was over. [`Condvar::wait_timeout`] has an example.
    pub fn timed_out(&self) -> bool {
        self.0
    }
}

impl Condvar {
    /// A new condition variable.
    ///
    /// ```
    /// use footbridge::runtime::Condvar;
    /// static CONDVAR: Condvar = Condvar::new();
    /// CONDVAR.notify_all(); // nothing waits
    /// ```
    pub const fn new() -> Self {
        Self { queue: Queue::new() }
    }

    /// Releases the mutex, parks until a notification, and locks the mutex again. No notification
    /// after the release is missed. [`Condvar`] has an example.
    ///
    /// # Errors
    /// A holder of the mutex has panicked; the error contains the guard.
    ///
    /// # Panics
    /// In [`systemstack`](crate::runtime::systemstack).
    #[track_caller]
    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        let mutex = guard.raw();
        // The guard stays, and stands for the mutex again when that is locked. Nothing below
        // unwinds in between.
        self.queue.lock().park(0, Place::Back, WaitReason::CondvarWait, || mutex.unlock());
        mutex.lock();
        guard.checked()
    }

    /// Waits as long as `condition` holds.
    ///
    /// # Errors
    /// As for [`Self::wait`].
    ///
    /// # Panics
    /// As for [`Self::wait`]; with the panic of `condition`.
    #[track_caller]
    pub fn wait_while<'a, T>(
        &self,
        mut guard: MutexGuard<'a, T>,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> LockResult<MutexGuard<'a, T>> {
        while condition(&mut guard) {
            guard = self.wait(guard)?;
        }
        Ok(guard)
    }

    /// [`Self::wait`], for `timeout` at most. Then the mutex is locked again, which may take
    /// longer.
    ///
    /// ```
    /// use std::time::Duration;
    /// use footbridge::runtime::{Condvar, Mutex};
    /// let (mutex, condvar) = (Mutex::new(7), Condvar::new());
    /// let guard = mutex.lock().expect("not poisoned");
    /// let (guard, result) =
    ///     condvar.wait_timeout(guard, Duration::from_millis(1)).expect("not poisoned");
    /// assert!(result.timed_out() && *guard == 7);
    /// ```
    ///
    /// # Errors
    /// As for [`Self::wait`].
    ///
    /// # Panics
    /// As for [`Self::wait`].
    #[track_caller]
    pub fn wait_timeout<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        timeout: Duration,
    ) -> LockResult<(MutexGuard<'a, T>, WaitTimeoutResult)> {
        let mutex = guard.raw();
        let release = || mutex.unlock();
        let in_time = self.queue.park_within(timeout, WaitReason::CondvarWait, release);
        mutex.lock();
        let result = WaitTimeoutResult(!in_time);
        match guard.checked() {
            Ok(guard) => Ok((guard, result)),
            Err(error) => Err(std::sync::PoisonError::new((error.into_inner(), result))),
        }
    }

    /// Waits as long as `condition` holds, for `timeout` at most.
    ///
    /// ```
    /// use std::time::Duration;
    /// use footbridge::runtime::{Condvar, Mutex};
    /// let (mutex, condvar) = (Mutex::new(7), Condvar::new());
    /// let guard = mutex.lock().expect("not poisoned");
    /// let (guard, result) = condvar
    ///     .wait_timeout_while(guard, Duration::from_millis(1), |number| *number == 7)
    ///     .expect("not poisoned");
    /// assert!(result.timed_out());
    /// let waited = condvar.wait_timeout_while(guard, Duration::MAX, |number| *number != 7);
    /// assert!(!waited.expect("not poisoned").1.timed_out());
    /// ```
    ///
    /// # Errors
    /// As for [`Self::wait`].
    ///
    /// # Panics
    /// As for [`Self::wait_while`].
    #[track_caller]
    pub fn wait_timeout_while<'a, T>(
        &self,
        mut guard: MutexGuard<'a, T>,
        timeout: Duration,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> LockResult<(MutexGuard<'a, T>, WaitTimeoutResult)> {
        let start = Instant::now();
        while condition(&mut guard) {
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok((guard, WaitTimeoutResult(true)));
            }
            guard = self.wait_timeout(guard, left)?.0;
        }
        Ok((guard, WaitTimeoutResult(false)))
    }

    /// Ends the wait of the goroutine or thread that has waited longest, if any waits.
    pub fn notify_one(&self) {
        let first = self.queue.lock().take();
        if let Some(first) = first {
            first.ready(true);
        }
    }

    /// Ends the waits of all that wait now.
    ///
    /// ```
    /// use footbridge::runtime::{self, Condvar, Mutex};
    /// let (open, condvar) = (Mutex::new(false), Condvar::new());
    /// runtime::run(|| {
    ///     runtime::scope(|s| {
    ///         for _ in 0..3 {
    ///             s.go(|| drop(condvar.wait_while(open.lock().unwrap(), |open| !*open)));
    ///         }
    ///         *open.lock().unwrap() = true;
    ///         condvar.notify_all();
    ///     });
    /// });
    /// ```
    pub fn notify_all(&self) {
        self.queue.lock().take_all().ready(true);
    }
}

impl Default for Condvar {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Condvar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Condvar").finish_non_exhaustive()
    }
}
