#![allow(unsafe_code, reason = "links raw structures")]
//! An inbox: many threads push items, and its owner drains all of them at once.
//!
//! It is a stack that is linked through the items, newest first. The owner reverses it. Nothing is
//! popped from the middle or one by one, so that the exchange of a push has no ABA problem: it
//! links to the newest item, whatever that is.
//!
//! Rejected: a bounded ring. A goroutine that was readied must not be refused.

use std::ptr;

use super::primitive::{AtomicPtr, Ordering};

/// Something with room for one link, which belongs to the owner of the item.
pub(crate) trait Linked {
    /// # Safety
    /// 1. `this` points to an item.
    /// 2. The caller owns it.
    unsafe fn set_link(this: *mut Self, next: *mut Self);

    /// # Safety
    /// 1. `this` points to an item.
    /// 2. The caller owns it.
    unsafe fn link(this: *mut Self) -> *mut Self;
}

/// A stack of items, newest first.
pub(crate) struct Inbox<T>(AtomicPtr<T>);

impl<T: Linked> Inbox<T> {
    pub(crate) fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    /// Pushes an item. Any thread may call this.
    ///
    /// Release: what the caller has written to the item happens before it is drained.
    ///
    /// # Safety
    /// 1. `item` points to an item that stays where it is.
    /// 2. The caller owns it, and gives it up here: it belongs to the thread that drains it.
    pub(crate) unsafe fn push(&self, item: *mut T) {
        let mut newest = self.0.load(Ordering::Relaxed);
        loop {
            // SAFETY: contracts (1) and (2); the item is the caller's until the exchange succeeds.
            unsafe { T::set_link(item, newest) };
            match self.0.compare_exchange_weak(newest, item, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => newest = now,
            }
        }
    }

    #[inline(always)]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.load(Ordering::Relaxed).is_null()
    }

    /// Takes everything out, and hands it over oldest first: it belongs to the calling thread then.
    /// Another thread than the owner must hand on what is the owner's.
    pub(crate) fn drain(&self, mut each: impl FnMut(*mut T)) {
        let mut newest = self.0.swap(ptr::null_mut(), Ordering::Acquire);
        let mut oldest: *mut T = ptr::null_mut();
        // SAFETY: pushed items are valid, and the swap has made all of them this thread's. An item
        // that was handed over is not touched afterwards.
        unsafe {
            while !newest.is_null() {
                let next = T::link(newest);
                T::set_link(newest, oldest);
                oldest = newest;
                newest = next;
            }
            while !oldest.is_null() {
                let next = T::link(oldest);
                each(oldest);
                oldest = next;
            }
        }
    }

    /// Forgets what is in it. Called when no other thread pushes.
    pub(crate) fn clear(&self) {
        self.0.store(ptr::null_mut(), Ordering::Relaxed);
    }
}
