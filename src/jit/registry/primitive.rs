#![allow(unsafe_code, reason = "a cell that the protocol guards")]
//! What the protocol is built from. The model test has loom's in this place.

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;

pub(crate) use std::sync::atomic::{AtomicU64, Ordering};

/// A descriptor that is written once and read after its words were seen.
#[repr(transparent)]
pub(crate) struct Slot<D>(UnsafeCell<MaybeUninit<D>>);

// SAFETY: the protocol orders the one write before every read.
unsafe impl<D: Send + Sync> Sync for Slot<D> {}

impl<D: Copy> Slot<D> {
    /// # Safety
    /// No other access to the slot happens at the same time.
    pub(crate) unsafe fn write(&self, descriptor: D) {
        // SAFETY: the caller's promise.
        unsafe { (*self.0.get()).write(descriptor) };
    }

    /// # Safety
    /// The slot was written, and the write happens before this.
    pub(crate) unsafe fn read(&self) -> D {
        // SAFETY: the caller's promise.
        unsafe { (*self.0.get()).assume_init() }
    }
}
