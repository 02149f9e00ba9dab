//! A value on cache lines of its own.

use std::ops::Deref;

/// A value that shares no cache line with its neighbours, so that threads which write to those do
/// not take its line away. 64 bytes: a line of x86-64 and of most AArch64 processors.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct CachePadded<T>(T);

impl<T> CachePadded<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(value)
    }
}

impl<T> Deref for CachePadded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
