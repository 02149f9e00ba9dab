#![allow(unsafe_code, reason = "links raw structures")]
//! Queues of goroutines, linked through the goroutines themselves. They never allocate, and so a
//! goroutine can be queued when there is no memory.
//!
//! A G is in at most one queue or pool at a time: all of them use `G::link`.

use std::cell::Cell;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::runtime::gmp::g::G;

/// A pointer that one thread writes, as to a `Cell`, and that sysmon compares with null. On the
/// machine its accesses are those of a `Cell`.
pub(crate) struct OwnedPtr<T>(AtomicPtr<T>);

impl<T> OwnedPtr<T> {
    pub(crate) const fn null() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    #[inline(always)]
    pub(crate) fn get(&self) -> *mut T {
        self.0.load(Ordering::Relaxed)
    }

    #[inline(always)]
    pub(crate) fn set(&self, value: *mut T) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// A load and a store: only the owner writes.
    #[inline(always)]
    pub(crate) fn replace(&self, value: *mut T) -> *mut T {
        let previous = self.get();
        self.set(value);
        previous
    }
}

/// A first-in-first-out queue of goroutines. One thread owns it, or a lock guards it.
pub(crate) struct GQueue {
    head: OwnedPtr<G>,
    tail: Cell<*mut G>,
}

impl GQueue {
    pub(crate) const fn new() -> Self {
        Self { head: OwnedPtr::null(), tail: Cell::new(ptr::null_mut()) }
    }

    #[inline(always)]
    pub(crate) fn push(&self, g: *mut G) {
        // SAFETY: a G is never freed, and a queued one belongs to its queue.
        unsafe {
            (*g).link.set(ptr::null_mut());
            match self.tail.get() {
                tail if tail.is_null() => self.head.set(g),
                tail => (*tail).link.set(g),
            }
        }
        self.tail.set(g);
    }

    /// Moves all of another queue to the end of this one.
    pub(crate) fn append(&self, other: &Self) {
        let first = other.head.replace(ptr::null_mut());
        if first.is_null() {
            return;
        }
        let last = other.tail.replace(ptr::null_mut());
        match self.tail.replace(last) {
            tail if tail.is_null() => self.head.set(first),
            // SAFETY: a G is never freed, and a queued one belongs to its queue.
            tail => unsafe { (*tail).link.set(first) },
        }
    }

    /// Other threads may call this, too: what they learn may be over.
    #[inline(always)]
    pub(crate) fn is_empty(&self) -> bool {
        self.head.get().is_null()
    }

    /// The goroutine that will be popped next, if any.
    pub(crate) fn first(&self) -> Option<&'static G> {
        // SAFETY: null, or a G, which is never freed.
        unsafe { self.head.get().as_ref() }
    }

    #[inline(always)]
    pub(crate) fn pop(&self) -> *mut G {
        let g = self.head.get();
        if !g.is_null() {
            // SAFETY: a G is never freed, and a queued one belongs to its queue.
            let next = unsafe { (*g).link.get() };
            self.head.set(next);
            if next.is_null() {
                self.tail.set(ptr::null_mut());
            }
        }
        g
    }
}

/// The global queue, in its lock.
pub(crate) struct GlobalQueue(pub(crate) GQueue);

// SAFETY: it is used behind a lock, and its goroutines belong to no thread.
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
