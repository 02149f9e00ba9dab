//! sysmon's sleep, on a word of the runtime instance.
//!
//! The story, in time order. On the left sysmon, which sleeps only while all Ms are idle; on the
//! right an M that was idle:
//!
//! ```text
//!     sleep_while_idle: store ASLEEP           the M leaves the count of idle Ms
//!     fence                                    fence
//!     load the count of idle Ms                wake: load the word
//! ```
//!
//! Each side stores, crosses its fence, and loads what the other side stores. So one of the two
//! sees the other: sysmon does not sleep while an M runs goroutines. Both fences are full ones. An
//! M that has slept has crossed the kernel, so that a fence costs it nothing that counts.

use super::primitive::{AtomicU32, Ordering, fence};

/// The value of a new word.
pub(crate) const AWAKE: u32 = 0;

pub(crate) const ASLEEP: u32 = 1;

const ENDED: u32 = 2;

/// Sleeps while all Ms are idle. Returns whether sysmon has announced a sleep.
///
/// `sleep(word, value)` sleeps while the word has that value, and may return early.
pub(crate) fn sleep_while_idle(
    word: &AtomicU32,
    all_idle: impl Fn() -> bool,
    sleep: impl Fn(&AtomicU32, u32),
) -> bool {
    if !all_idle() || !announce_sleep(word) {
        return false;
    }
    while all_idle() && word.load(Ordering::SeqCst) == ASLEEP {
        sleep(word, ASLEEP);
    }
    // Fails where an M has ended the sleep, or the run has.
    end_sleep(word);
    true
}

/// Announces that sysmon will sleep. It fails where the run has ended.
fn announce_sleep(word: &AtomicU32) -> bool {
    let announced = exchange(word, AWAKE, ASLEEP);
    fence(Ordering::SeqCst);
    announced
}

/// Ends the sleep. sysmon and the Ms compete; one of them does it.
fn end_sleep(word: &AtomicU32) -> bool {
    exchange(word, ASLEEP, AWAKE)
}

/// Called by an M that has left the count of idle Ms. `wake_thread` wakes sysmon; one M at most
/// calls it for a sleep.
#[inline]
pub(crate) fn wake(word: &AtomicU32, wake_thread: impl FnOnce(&AtomicU32)) {
    fence(Ordering::SeqCst);
    if word.load(Ordering::Relaxed) == ASLEEP && end_sleep(word) {
        wake_thread(word);
    }
}

/// Ends sysmon, asleep or not. No other thread changes the word afterwards.
///
/// A swap and no store: sysmon must not find the old value when it falls asleep after this. (The
/// kernel would order a store, too, before it wakes the thread. The model has no kernel.)
pub(crate) fn end(word: &AtomicU32, wake_thread: impl FnOnce(&AtomicU32)) {
    word.swap(ENDED, Ordering::SeqCst);
    wake_thread(word);
}

/// Whether sysmon is to end.
pub(crate) fn has_ended(word: &AtomicU32) -> bool {
    word.load(Ordering::SeqCst) == ENDED
}

fn exchange(word: &AtomicU32, from: u32, to: u32) -> bool {
    word.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
}
