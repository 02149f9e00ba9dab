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

    fn slot(&self, index: u32) -> &AtomicPtr<T> {
        &self.ring[index as usize % SLOTS]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.head.load(Ordering::Acquire) == self.tail.load(Ordering::Acquire)
    }

    /// Owner only. Gives the item back when the ring is full.
    pub(crate) fn push(&self, item: *mut T) -> Result<(), *mut T> {
        // Acquire pairs with the Release of whoever took slots: they are done reading them.
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Mutex;
    use std::sync::atomic::AtomicBool;

    use super::*;

    const SLOTS: usize = 256;
    type Queue = RunQueue<u8, SLOTS>;

    /// Numbers stand for items: queues never look into them.
    fn fake(n: usize) -> *mut u8 {
        n as *mut u8
    }

    #[test]
    fn it_is_first_in_first_out_and_bounded() {
        let queue = Queue::new();
        for round in 0..3 {
            for n in 1..=SLOTS {
                assert_eq!(queue.push(fake(n)), Ok(()), "round {round}");
            }
            assert_eq!(queue.push(fake(999)), Err(fake(999)));
            for n in 1..=SLOTS {
                assert_eq!(queue.pop(), fake(n));
            }
            assert!(queue.pop().is_null() && queue.is_empty());
        }
    }

    #[test]
    fn of_a_full_one_the_older_half_is_taken() {
        let queue = Queue::new();
        assert!(!queue.take_half(|_| panic!("it is not full")));
        (1..=SLOTS).for_each(|n| queue.push(fake(n)).expect("room"));
        let mut taken = Vec::new();
        assert!(queue.take_half(|item| taken.push(item as usize)));
        assert_eq!(taken, (1..=SLOTS / 2).collect::<Vec<_>>());
        assert_eq!((queue.pop(), queue.room()), (fake(SLOTS / 2 + 1), SLOTS / 2 + 1));
    }

    #[test]
    fn thieves_and_owner_share_everything_exactly_once() {
        const EACH: usize = 200_000;
        let queue: &'static Queue = Box::leak(Box::new(Queue::new()));
        let seen: &'static Mutex<Vec<usize>> = Box::leak(Box::default());
        let done: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(false)));
        let thieves: Vec<_> = (0..2)
            .map(|_| {
                std::thread::spawn(move || {
                    let own = Queue::new();
                    let mut mine = Vec::new();
                    loop {
                        let last_round = done.load(Ordering::Acquire);
                        let stolen = queue.steal_into(&own);
                        let (before, count) = match &stolen {
                            Some(Stolen { first, count }) => {
                                mine.push(*first as usize);
                                (mine.len() - 1, *count as usize)
                            }
                            None => (mine.len(), 0),
                        };
                        loop {
                            match own.pop() {
                                item if item.is_null() => break,
                                item => mine.push(item as usize),
                            }
                        }
                        assert_eq!(mine.len() - before, count);
                        if stolen.is_none() && last_round {
                            break;
                        }
                    }
                    seen.lock().expect("no thief panicked").extend(mine);
                })
            })
            .collect();
        let mut mine = Vec::new();
        let mut pop = || {
            let item = queue.pop();
            if !item.is_null() {
                mine.push(item as usize);
            }
            !item.is_null()
        };
        for n in 1..=EACH {
            while queue.push(fake(n)).is_err() {
                pop();
            }
            if n % 7 == 0 {
                pop();
            }
        }
        done.store(true, Ordering::Release);
        for thief in thieves {
            thief.join().expect("thief");
        }
        while pop() {}
        let mut all = seen.lock().expect("no thief panicked").clone();
        all.extend(mine);
        assert_eq!(all.len(), EACH);
        assert_eq!(all.into_iter().collect::<HashSet<_>>().len(), EACH);
    }
}
