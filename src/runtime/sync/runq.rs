//! A run queue: a bounded ring that its owner fills and empties, and that other threads steal from.
//!
//! All threads compete for the head; only the owner moves the tail. The queue never dereferences
//! what it holds: pointers go in and come out, each exactly once.
//!
//! **Invariants.**
//!
//! * Head and tail count up and wrap around at 2^32. Slot `i % SLOTS` holds item `i` for `head <= i
//!   < tail`, and there are at most `SLOTS` of those.
//! * Only the owner writes to a slot, and only when it has loaded, with Acquire, a head that is
//!   past the slot's last item. The thread that took that item has read the slot before it moved
//!   the head with Release.
//! * A thief reads slots before its exchange on the head, and may read rubbish. It uses what it has
//!   read only if the exchange succeeds.
//!
//! Rejected: a deque whose owner pops the newest item (Chase and Lev). It needs no exchange of the
//! owner, but runs goroutines last in, first out: the oldest would starve.

use std::ptr;

use super::primitive::{AtomicPtr, AtomicU32, Ordering};

/// A queue of `SLOTS` slots, a power of two.
pub(crate) struct RunQueue<T, const SLOTS: usize> {
    head: AtomicU32,
    tail: AtomicU32,
    ring: [AtomicPtr<T>; SLOTS],
}

/// What a thief has taken.
pub(crate) struct Stolen<T> {
    /// The item that is not in the thief's queue, to be used at once.
    pub(crate) first: *mut T,
    /// How many items were taken, `first` included.
    pub(crate) count: u32,
}

impl<T, const SLOTS: usize> RunQueue<T, SLOTS> {
    pub(crate) fn new() -> Self {
        const { assert!(SLOTS.is_power_of_two(), "indices wrap around") };
        Self {
            head: AtomicU32::new(0),
            tail: AtomicU32::new(0),
            ring: std::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())),
        }
    }

    fn slot(&self, index: u32) -> &AtomicPtr<T> {
        &self.ring[index as usize % SLOTS]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.head.load(Ordering::Acquire) == self.tail.load(Ordering::Acquire)
    }

    /// Pushes an item at the end. Returns it if the ring is full. Called by the owner only.
    pub(crate) fn push(&self, item: *mut T) -> Result<(), *mut T> {
        let head = self.head.load(Ordering::Acquire);
        let tail = self.tail.load(Ordering::Relaxed);
        if tail.wrapping_sub(head) as usize == SLOTS {
            return Err(item);
        }
        self.slot(tail).store(item, Ordering::Relaxed);
        self.tail.store(tail.wrapping_add(1), Ordering::Release);
        Ok(())
    }

    /// Takes the oldest item, or returns null. Called by the owner only.
    pub(crate) fn pop(&self) -> *mut T {
        let tail = self.tail.load(Ordering::Relaxed);
        let mut head = self.head.load(Ordering::Acquire);
        while head != tail {
            let item = self.slot(head).load(Ordering::Relaxed);
            let next = head.wrapping_add(1);
            match self.head.compare_exchange_weak(head, next, Ordering::Release, Ordering::Acquire)
            {
                Ok(_) => return item,
                Err(now) => head = now,
            }
        }
        ptr::null_mut()
    }

    /// Takes the older half of a full ring, oldest first. Returns false if the ring is not full:
    /// thieves have made room. Called by the owner only.
    pub(crate) fn take_half(&self, mut each: impl FnMut(*mut T)) -> bool {
        let head = self.head.load(Ordering::Acquire);
        if self.tail.load(Ordering::Relaxed).wrapping_sub(head) as usize != SLOTS {
            return false;
        }
        let half = SLOTS as u32 / 2;
        let next = head.wrapping_add(half);
        let taken =
            self.head.compare_exchange(head, next, Ordering::Release, Ordering::Relaxed).is_ok();
        if taken {
            // The slots are read after the exchange, unlike a thief's: only the owner, which this
            // is, writes to them.
            for i in 0..half {
                each(self.slot(head.wrapping_add(i)).load(Ordering::Relaxed));
            }
        }
        taken
    }

    /// How many slots are free. Thieves only make more. Called by the owner only.
    pub(crate) fn room(&self) -> usize {
        let head = self.head.load(Ordering::Acquire);
        SLOTS - self.tail.load(Ordering::Relaxed).wrapping_sub(head) as usize
    }

    /// The position of the next item that will be pushed. Called by the owner only.
    pub(crate) fn tail_position(&self) -> u32 {
        self.tail.load(Ordering::Relaxed)
    }

    /// Whether all items that were pushed before [`Self::tail_position`] returned `tail` have left
    /// the queue. Positions wrap around: the answer is right while fewer than 2^31 items were
    /// pushed since. A stale head only makes it `false` for longer.
    pub(crate) fn has_passed(&self, tail: u32) -> bool {
        self.head.load(Ordering::Relaxed).wrapping_sub(tail).cast_signed() >= 0
    }

    /// Steals half of this queue, rounded up. `to` is the thief's own queue, and is empty.
    pub(crate) fn steal_into(&self, to: &Self) -> Option<Stolen<T>> {
        loop {
            let head = self.head.load(Ordering::Acquire);
            let tail = self.tail.load(Ordering::Acquire);
            let available = tail.wrapping_sub(head);
            let count = available - available / 2;
            if count == 0 {
                return None;
            }
            if count as usize > SLOTS / 2 {
                continue; // The head moved between the two loads.
            }
            let to_tail = to.tail.load(Ordering::Relaxed);
            for i in 0..count {
                let item = self.slot(head.wrapping_add(i)).load(Ordering::Relaxed);
                to.slot(to_tail.wrapping_add(i)).store(item, Ordering::Relaxed);
            }
            let next = head.wrapping_add(count);
            if self.head.compare_exchange(head, next, Ordering::Release, Ordering::Relaxed).is_ok()
            {
                let last = to_tail.wrapping_add(count - 1);
                let first = to.slot(last).load(Ordering::Relaxed);
                to.tail.store(last, Ordering::Release);
                return Some(Stolen { first, count });
            }
        }
    }
}
