//! The word of a reader-writer lock: who holds it, and who gets it next.
//!
//! Those that wait stand in one queue, which has a lock of its own. The word has the flag
//! [`WRITER`], the number of readers in multiples of [`READER`], and [`QUEUED`]: the queue has a
//! waiter. `QUEUED` is written with the queue locked.
//!
//! **Fairness.** While there is a waiter, all others queue as well. The last holder hands the lock
//! over: to the first waiter if that is a writer, else to all readers in front of the first writer.
//! So the order of the queue is the order of the holders. Neither readers nor writers starve, and
//! nothing is decided by a clock.
//!
//! Unlike in `mutex_word`, a waiter never competes: readers that keep coming would let a writer
//! lose again and again.

use super::primitive::{AtomicU32, Ordering};

const WRITER: u32 = 1;
const QUEUED: u32 = 2;
/// One reader.
const READER: u32 = 4;

/// Locks for reading if no writer holds the lock and nothing waits.
#[inline(always)]
pub(crate) fn try_read(word: &AtomicU32) -> bool {
    let mut now = 0;
    loop {
        match word.compare_exchange(now, with_reader(now), Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => return true,
            Err(seen) if seen & (WRITER | QUEUED) != 0 => return false,
            Err(seen) => now = seen,
        }
    }
}

/// # Panics
/// If the count overflows: guards were forgotten.
#[inline(always)]
fn with_reader(word: u32) -> u32 {
    word.checked_add(READER).expect("a reader-writer lock has at most 2^30 - 1 readers")
}

/// Locks for writing if nothing holds the lock.
#[inline(always)]
pub(crate) fn try_write(word: &AtomicU32) -> bool {
    word.compare_exchange(0, WRITER, Ordering::Acquire, Ordering::Relaxed).is_ok()
}

/// Locks for reading or announces a waiter. Returns whether it was locked; otherwise the caller
/// queues, before it unlocks the queue. Called with the queue locked.
pub(crate) fn read_or_queue(word: &AtomicU32) -> bool {
    let mut now = word.load(Ordering::Relaxed);
    loop {
        let may_read = now & (WRITER | QUEUED) == 0;
        let next = if may_read { with_reader(now) } else { now | QUEUED };
        match word.compare_exchange(now, next, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => return may_read,
            Err(seen) => now = seen,
        }
    }
}

/// [`read_or_queue`] for a writer.
pub(crate) fn write_or_queue(word: &AtomicU32) -> bool {
    let mut now = word.load(Ordering::Relaxed);
    loop {
        let may_write = now == 0;
        let next = if may_write { WRITER } else { now | QUEUED };
        match word.compare_exchange(now, next, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => return may_write,
            Err(seen) => now = seen,
        }
    }
}

/// Releases a reader. Returns false if it was the last one and something waits: then the caller
/// locks the queue and calls [`hand_over`]. Until then `QUEUED` keeps all others from the lock.
///
/// Acquire: the last reader hands over what all readers have finished with.
#[inline(always)]
pub(crate) fn unlock_read(word: &AtomicU32) -> bool {
    word.fetch_sub(READER, Ordering::AcqRel) != READER | QUEUED
}

/// Releases a writer, unless something waits. Then it returns false, and the writer locks the queue
/// and calls [`hand_over`].
#[inline(always)]
pub(crate) fn unlock_write(word: &AtomicU32) -> bool {
    word.compare_exchange(WRITER, 0, Ordering::Release, Ordering::Relaxed).is_ok()
}

/// The waiters that the last holder took from the queue.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// There were none: those that were there are abandoned.
    None,
    Writer,
    /// This number of readers.
    Readers(u32),
}

/// Hands the lock over. Called by its last holder, with the queue locked. `more`: the queue has
/// other waiters. The caller readies those that it took afterwards.
///
/// A store does, since nothing else writes the word: `WRITER` or `QUEUED` is set, and the queue is
/// locked.
pub(crate) fn hand_over(word: &AtomicU32, next: Next, more: bool) {
    let state = match next {
        Next::None => 0,
        Next::Writer => WRITER,
        Next::Readers(n) => n * READER,
    };
    word.store(if more { state | QUEUED } else { state }, Ordering::Release);
}
