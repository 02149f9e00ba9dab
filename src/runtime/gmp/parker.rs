#![allow(unsafe_code, reason = "names a goroutine by its address")]
//! A goroutine, or a thread that waits like one, as a value to ready it by.

use std::ptr;
use std::sync::atomic::Ordering;

use crate::runtime::gmp::g::G;
use crate::runtime::gmp::join_state;

/// The goroutine (or thread) that calls, as a value to hand to [`goready`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parker(pub(crate) *mut G);

// SAFETY: an address of an immortal structure; what may be done with it is `goready`'s contract.
unsafe impl Send for Parker {}

// SAFETY: as above.
unsafe impl Sync for Parker {}

impl Parker {
    pub(crate) const NONE: Self = Self(ptr::null_mut());

    pub(crate) fn into_raw(self) -> usize {
        self.0 as usize
    }

    pub(crate) fn from_raw(raw: usize) -> Self {
        Self(raw as *mut G)
    }

    /// Whether its run ended while it was parked: it will never run again.
    pub(crate) fn is_abandoned(self) -> bool {
        // SAFETY: immortal.
        unsafe { (*self.0).join.load(Ordering::Relaxed) == join_state::ABANDONED }
    }
}
