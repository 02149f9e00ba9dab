#![allow(unsafe_code, reason = "links raw structures")]
//! Where other threads leave goroutines for the one thread that may run them: many push, the owner
//! takes all at once.
//!
//! The primitives come from `super`: the crate hands in the real ones, the model test loom's.

use std::ptr;

use super::primitive::{AtomicPtr, Ordering};

/// Something with room for one link, which whoever has it in a queue may use.
pub(crate) trait Linked {
    /// # Safety
    /// The caller has the item, and nobody else.
    unsafe fn set_link(this: *mut Self, next: *mut Self);

    /// # Safety
    /// As for [`Self::set_link`].
    unsafe fn link(this: *mut Self) -> *mut Self;
}

/// A stack of items, newest first.
pub(crate) struct Inbox<T>(AtomicPtr<T>);

impl<T: Linked> Inbox<T> {
    pub(crate) fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    /// Puts an item in. Any thread.
    ///
    /// # Safety
    /// The caller has the item, and nobody else; whoever takes it has it then.
    pub(crate) unsafe fn push(&self, item: *mut T) {
        let mut newest = self.0.load(Ordering::Relaxed);
        loop {
            // SAFETY: the caller's until the exchange succeeds.
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

    /// Takes everything out and hands it over, oldest first. Owner only.
    pub(crate) fn drain(&self, mut each: impl FnMut(*mut T)) {
        let mut newest = self.0.swap(ptr::null_mut(), Ordering::Acquire);
        let mut oldest: *mut T = ptr::null_mut();
        // SAFETY: the swap made the chain ours; what is handed over is not touched afterwards.
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

    /// Forgets what is in it.
    pub(crate) fn clear(&self) {
        self.0.store(ptr::null_mut(), Ordering::Relaxed);
    }
}
