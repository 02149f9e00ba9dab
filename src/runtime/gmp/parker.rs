#![allow(unsafe_code, reason = "names a goroutine by its address")]
//! A goroutine, or a thread that waits like one, as a value by which it is readied.

use std::ptr;
use std::sync::atomic::Ordering;

use crate::runtime::gmp::g::G;
use crate::runtime::gmp::join_state;

/// A goroutine (or a foreign thread), as a value to hand to [`goready`](crate::runtime::goready).
///
/// [`current`](crate::runtime::current) returns the caller's. A `Parker` is valid for good: it
/// names a structure that is never freed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parker(pub(crate) *mut G);

// SAFETY: the address of a G, which is never freed; `goready`'s contract says what may be done with
// it.
unsafe impl Send for Parker {}

// SAFETY: a `Parker` is a plain address.
unsafe impl Sync for Parker {}

impl Parker {
    pub(crate) const NONE: Self = Self(ptr::null_mut());

    pub(crate) fn into_raw(self) -> usize {
        self.0 as usize
    }

    pub(crate) fn from_raw(raw: usize) -> Self {
        Self(raw as *mut G)
    }

    /// Whether the goroutine's run ended while it was parked. Then it never runs again.
    pub(crate) fn is_abandoned(self) -> bool {
        // SAFETY: a G is never freed.
        unsafe { (*self.0).join.load(Ordering::Relaxed) == join_state::ABANDONED }
    }
}
