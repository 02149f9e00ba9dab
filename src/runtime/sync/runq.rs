//! A queue that its owner fills and empties and others steal from: a ring with a head that all
//! compete for and a tail that only the owner moves.
//!
//! It never looks into what it holds: pointers go in and come out, each exactly once.
//!
//! The primitives come from `super`: the crate hands in the real ones, the model test loom's.

use std::ptr;

use super::primitive::{AtomicPtr, AtomicU32, Ordering};

/// A queue of `SLOTS` slots, a power of two.
pub(crate) struct RunQueue<T, const SLOTS: usize> {
    head: AtomicU32,
    tail: AtomicU32,
    ring: [AtomicPtr<T>; SLOTS],
}

/// What a thief got.
pub(crate) struct Stolen<T> {
    /// One, to run at once.
    pub(crate) first: *mut T,
    /// How many, this one and those that are in the thief's queue now.
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

    /// The owner writes to a slot when it has loaded a head that is past it, with Acquire. Who took
    /// the slot has read it before, and moved the head with Release.
    fn slot(&self, index: u32) -> &AtomicPtr<T> {
        &self.ring[index as usize % SLOTS]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.head.load(Ordering::Acquire) == self.tail.load(Ordering::Acquire)
    }

    /// Owner only. Gives the item back when the ring is full.
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

    /// Owner only.
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

    /// Owner only, when the ring is full: takes the older half of it, oldest first. Returns whether
    /// it did: otherwise thieves made room.
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
            // Nobody but the owner writes to slots.
            for i in 0..half {
                each(self.slot(head.wrapping_add(i)).load(Ordering::Relaxed));
            }
        }
        taken
    }

    /// Free slots, as seen by the owner.
    pub(crate) fn room(&self) -> usize {
        let head = self.head.load(Ordering::Acquire);
        SLOTS - self.tail.load(Ordering::Relaxed).wrapping_sub(head) as usize
    }

    /// The position of the next item that will be pushed. Owner only.
    pub(crate) fn tail_position(&self) -> u32 {
        self.tail.load(Ordering::Relaxed)
    }

    /// Whether all items that were pushed before [`Self::tail_position`] returned `tail` have left
    /// the queue. Positions wrap around: the answer is right while less than 2^31 items were pushed
    /// since. A stale head only makes it `false` for longer.
    pub(crate) fn has_passed(&self, tail: u32) -> bool {
        self.head.load(Ordering::Relaxed).wrapping_sub(tail).cast_signed() >= 0
    }

    /// Moves half of this queue, rounded up, to `to`, which is the thief's own and empty.
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
                continue; // head and tail were read at different times
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
