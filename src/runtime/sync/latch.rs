//! A latch that opens when a count has reached zero, and stays open.
//!
//! A run has one for its Ms. Each M counts down when it has left the scheduler for good, and no
//! thread of the run ends before the latch is open. Without it the first thread that left would
//! destroy its thread-locals while a goroutine of another thread still uses a borrow of them, which
//! safe code can hold: a scope lends a goroutine everything that its owner has on the stack, a
//! reference from `LocalKey::with` included.
//!
//! std's `Barrier` does not do: the thread that starts the run counts down for threads that could
//! not be made, and does not wait itself.

use super::primitive::{AtomicU32, Ordering};

/// How many are still to count down. 0 is final: the latch is open.
pub(crate) struct CountLatch(AtomicU32);

impl CountLatch {
    pub(crate) fn new(count: u32) -> Self {
        Self(AtomicU32::new(count))
    }

    /// Counts one down, and returns when the latch is open. `wake_all` and `sleep` are as for
    /// [`Self::count_down`] and [`Self::wait`].
    pub(crate) fn count_down_and_wait(
        &self,
        wake_all: impl FnOnce(&AtomicU32),
        sleep: impl FnMut(&AtomicU32, u32),
    ) {
        self.count_down(1, wake_all);
        self.wait(sleep);
    }

    /// Counts `n` down. `wake_all` wakes all threads that sleep on the word; it is called if this
    /// opens the latch.
    ///
    /// Release: what the caller did before happens before every wait returns. Acquire: the caller
    /// that opens the latch need not wait.
    pub(crate) fn count_down(&self, n: u32, wake_all: impl FnOnce(&AtomicU32)) {
        if self.0.fetch_sub(n, Ordering::AcqRel) == n {
            wake_all(&self.0);
        }
    }

    /// Returns when the latch is open. `sleep(word, value)` sleeps while the word has that value,
    /// and may return early.
    ///
    /// One load serves both the test and the sleep. A second one may see 0, and the thread would
    /// sleep until the word is not 0, which never comes.
    fn wait(&self, mut sleep: impl FnMut(&AtomicU32, u32)) {
        loop {
            match self.0.load(Ordering::Acquire) {
                0 => return,
                remaining => sleep(&self.0, remaining),
            }
        }
    }
}
