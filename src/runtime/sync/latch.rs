//! A latch that opens when a count has reached zero, and stays open.
//!
//! A run has one for its Ms. Each M counts down when it has left the scheduler for good, and no
//! thread of the run ends before the latch is open. Without it the first thread that left would
//! destroy its thread-locals while a goroutine of another thread still uses a borrow of them, which
//! safe code can hold: a scope lends a goroutine whatever its owner has on the stack, a reference
//! from `LocalKey::with` included.
//!
//! The primitives come from `super`: the crate hands in the real ones, the model test loom's.

use super::primitive::{AtomicU32, Ordering};

/// How many are still to count down.
pub(crate) struct CountLatch(AtomicU32);

impl CountLatch {
    pub(crate) fn new(count: u32) -> Self {
        Self(AtomicU32::new(count))
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

    /// Returns when the latch is open. `sleep(word, value)` sleeps while the word has that value, and
    /// may return early: one load serves the test and the sleep, since a second one may see 0, which
    /// no other thread changes any more.
    pub(crate) fn wait(&self, mut sleep: impl FnMut(&AtomicU32, u32)) {
        loop {
            match self.0.load(Ordering::Acquire) {
                0 => return,
                remaining => sleep(&self.0, remaining),
            }
        }
    }
}
