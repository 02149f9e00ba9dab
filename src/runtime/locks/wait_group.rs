//! Waiting for a count to become zero.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::runtime::gmp::status::WaitReason;
use crate::runtime::locks::queue::{Place, Queue};

/// Waits for a number of goroutines to be done: Go's `sync.WaitGroup`.
///
/// [`scope`](crate::runtime::scope()) and [`JoinHandle`](crate::runtime::JoinHandle) wait for the
/// end of goroutines, and see their panics. A wait group waits for what they say, in any number of
/// rounds. On a foreign thread it blocks the thread.
///
/// ```
/// use footbridge::runtime::{self, WaitGroup, go};
///
/// static GROUP: WaitGroup = WaitGroup::new();
/// runtime::run(|| {
///     for _ in 0..3 {
///         GROUP.add(1);
///         go(|| GROUP.done());
///     }
///     GROUP.wait();
///     assert_eq!(GROUP.count(), 0);
/// });
/// ```
pub struct WaitGroup {
    /// It becomes zero with the queue locked. Otherwise a wait of the next round could be in the
    /// queue before the waiters of this round are taken out.
    count: AtomicUsize,
    queue: Queue,
}

impl WaitGroup {
    /// A group that waits for nothing.
    ///
    /// ```
    /// use footbridge::runtime::WaitGroup;
    /// WaitGroup::new().wait(); // returns at once
    /// ```
    pub const fn new() -> Self {
        Self { count: AtomicUsize::new(0), queue: Queue::new() }
    }

    /// Adds `n` to the count of calls of [`Self::done`] that waits are for. Call it before you
    /// start the goroutines: a wait that finds the count at zero returns. [`WaitGroup`] has an
    /// example.
    ///
    /// # Panics
    /// If the count would exceed `usize::MAX`.
    #[track_caller]
    pub fn add(&self, n: usize) {
        let add = |count: usize| count.checked_add(n);
        let added = self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        assert!(added.is_ok(), "the count of a WaitGroup exceeds usize::MAX");
    }

    /// Subtracts one from the count. A wait that it ends sees what the caller did before.
    ///
    /// # Panics
    /// If the count is zero: there are more calls than [`Self::add`] has announced.
    #[track_caller]
    pub fn done(&self) {
        let sub = |count: usize| if count > 1 { Some(count - 1) } else { None };
        if self.count.fetch_update(Ordering::AcqRel, Ordering::Relaxed, sub).is_err() {
            self.done_last();
        }
    }

    /// [`Self::done`] when the count may become zero.
    #[track_caller]
    fn done_last(&self) {
        let queue = self.queue.lock();
        let sub = |count: usize| count.checked_sub(1);
        match self.count.fetch_update(Ordering::AcqRel, Ordering::Relaxed, sub) {
            // A goroutine that waits has checked the count with the queue locked: it saw the count
            // at zero or is in the queue.
            Ok(1) => queue.take_all().ready(true),
            Ok(_) => {}
            Err(_) => {
                drop(queue);
                panic!("WaitGroup::done was called more often than WaitGroup::add announced");
            }
        }
    }

    /// Parks until the count is zero. Afterwards the group can be used again.
    ///
    /// # Panics
    /// Where it would have to park in [`systemstack`](crate::runtime::systemstack).
    #[track_caller]
    pub fn wait(&self) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let queue = self.queue.lock();
        if self.count.load(Ordering::Acquire) != 0 {
            queue.park(0, Place::Back, WaitReason::WaitGroupWait, || {});
        }
    }

    /// How many calls of [`Self::done`] are waited for now.
    ///
    /// ```
    /// use footbridge::runtime::WaitGroup;
    /// let group = WaitGroup::new();
    /// group.add(2);
    /// group.done();
    /// assert_eq!(group.count(), 1);
    /// ```
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}

impl Default for WaitGroup {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for WaitGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WaitGroup").field("count", &self.count()).finish_non_exhaustive()
    }
}
