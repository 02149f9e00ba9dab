#![allow(unsafe_code, reason = "links raw structures")]
//! Queues of goroutines, linked through the goroutines themselves.

use std::cell::Cell;
use std::ptr;

use crate::runtime::gmp::g::G;

/// A queue of goroutines linked through themselves. Owned by one thread, or behind a lock.
pub(crate) struct GQueue {
    head: Cell<*mut G>,
    tail: Cell<*mut G>,
}

impl GQueue {
    pub(crate) const fn new() -> Self {
        Self { head: Cell::new(ptr::null_mut()), tail: Cell::new(ptr::null_mut()) }
    }

    #[inline(always)]
    pub(crate) fn push(&self, g: *mut G) {
        // SAFETY: G structures are immortal, and a queued one belongs to its queue.
        unsafe {
            (*g).link.set(ptr::null_mut());
            match self.tail.get() {
                tail if tail.is_null() => self.head.set(g),
                tail => (*tail).link.set(g),
            }
        }
        self.tail.set(g);
    }

    /// Puts all of another queue behind this one.
    pub(crate) fn append(&self, other: &Self) {
        let first = other.head.replace(ptr::null_mut());
        if first.is_null() {
            return;
        }
        let last = other.tail.replace(ptr::null_mut());
        match self.tail.replace(last) {
            tail if tail.is_null() => self.head.set(first),
            // SAFETY: as in `push`.
            tail => unsafe { (*tail).link.set(first) },
        }
    }

    #[inline(always)]
    pub(crate) fn is_empty(&self) -> bool {
        self.head.get().is_null()
    }

    /// The one that is popped next, if any.
    pub(crate) fn first(&self) -> Option<&'static G> {
        // SAFETY: null, or immortal.
        unsafe { self.head.get().as_ref() }
    }

    #[inline(always)]
    pub(crate) fn pop(&self) -> *mut G {
        let g = self.head.get();
        if !g.is_null() {
            // SAFETY: as in `push`.
            let next = unsafe { (*g).link.get() };
            self.head.set(next);
            if next.is_null() {
                self.tail.set(ptr::null_mut());
            }
        }
        g
    }
}

pub(crate) struct GlobalQueue(pub(crate) GQueue);

// SAFETY: behind a lock.
unsafe impl Send for GlobalQueue {}

#[cfg(test)]
mod tests {
    use crate::runtime::gmp::g::allocate;

    use super::*;

    #[test]
    fn queue_is_first_in_first_out() {
        let queue = GQueue::new();
        let gs: Vec<*mut G> = (0..5).map(|_| ptr::from_ref(allocate()).cast_mut()).collect();
        assert!(queue.pop().is_null());
        for &g in &gs {
            queue.push(g);
        }
        for &g in &gs {
            assert_eq!(queue.pop(), g);
        }
        assert!(queue.pop().is_null());
        queue.push(gs[3]);
        assert_eq!(queue.pop(), gs[3]);
    }
}
