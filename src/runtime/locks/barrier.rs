//! Waiting for others to come.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::runtime::gmp::status::WaitReason;
use crate::runtime::locks::queue::{Place, Queue};

/// Lets a number of goroutines wait for one another. On a foreign thread it blocks the thread.
///
/// It has the shape of [`std::sync::Barrier`], and can be used again at once. A goroutine that is
/// abandoned at the end of its run while it waits does not count.
///
/// ```
/// use footbridge::runtime::{self, Barrier};
///
/// let barrier = Barrier::new(3);
/// let leaders: usize = runtime::run(|| {
///     runtime::scope(|s| {
///         let handles = [(); 3].map(|()| s.go(|| barrier.wait().is_leader()));
///         handles.into_iter().map(|handle| usize::from(handle.join().expect("no panic"))).sum()
///     })
/// });
/// assert_eq!(leaders, 1);
/// ```
pub struct Barrier {
    n: usize,
    /// How many wait, those included whose runs have ended meanwhile. Touched with the queue
    /// locked.
    waiting: AtomicUsize,
    queue: Queue,
}

/// Whether a wait was the one that ended the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BarrierWaitResult(bool);

impl BarrierWaitResult {
    /// Whether this call came last. It is one call of each `n`. [`Barrier`] has an example.
    pub fn is_leader(&self) -> bool {
        self.0
    }
}

impl Barrier {
    /// A barrier for `n` calls of [`Self::wait`]; 0 is 1.
    ///
    /// ```
    /// use footbridge::runtime::Barrier;
    /// assert!(Barrier::new(1).wait().is_leader());
    /// ```
    pub const fn new(n: usize) -> Self {
        Self { n, waiting: AtomicUsize::new(0), queue: Queue::new() }
    }

    /// Parks until `n` calls wait. What each did before is seen by all.
    ///
    /// # Panics
    /// Where it would have to park in [`systemstack`](crate::runtime::systemstack).
    #[track_caller]
    pub fn wait(&self) -> BarrierWaitResult {
        let queue = self.queue.lock();
        let mut waiting = self.waiting.load(Ordering::Relaxed) + 1;
        if waiting >= self.n {
            // One walk for each round: the count alone cannot tell that a run has ended.
            waiting = queue.remove_abandoned() + 1;
        }
        if waiting >= self.n {
            self.waiting.store(0, Ordering::Relaxed);
            queue.take_all().ready(true);
            return BarrierWaitResult(true);
        }
        // Stored when the call is sure to wait.
        let count = || self.waiting.store(waiting, Ordering::Relaxed);
        queue.park(0, Place::Back, WaitReason::Barrier, count);
        BarrierWaitResult(false)
    }
}

impl fmt::Debug for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Barrier").field("n", &self.n).finish_non_exhaustive()
    }
}
