#![allow(unsafe_code, reason = "a cell that the protocol guards")]
//! What the protocol is built from. The model test has loom's in this place.

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::AtomicPtr;

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

/// The first block of descriptors has as many; each further block is twice as large.
pub(crate) const FIRST_BLOCK: usize = 512;
/// How many blocks there can be: enough for all numbers of 32 bits.
pub(crate) const BLOCKS: usize = 33 - FIRST_BLOCK.ilog2() as usize;

/// Where a block of descriptors is. It is set once, before a word refers to a slot in it.
pub(crate) struct BlockCell<D>(AtomicPtr<Slot<D>>);

impl<D> BlockCell<D> {
    pub(crate) const fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    pub(crate) fn set(&self, block: &'static [Slot<D>]) {
        self.0.store(block.as_ptr().cast_mut(), Ordering::Relaxed);
    }

    pub(crate) fn is_set(&self) -> bool {
        !self.0.load(Ordering::Relaxed).is_null()
    }

    /// # Safety
    /// 1. The block was set, which happens before this, and has a slot at `index`.
    #[inline(always)]
    pub(crate) unsafe fn slot(&self, index: usize) -> &'static Slot<D> {
        // SAFETY: 1. is the caller's promise.
        unsafe { &*self.0.load(Ordering::Relaxed).add(index) }
    }
}
