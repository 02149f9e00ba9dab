//! Protocols and types between threads that know no goroutine.

mod cache_padded;
mod claim;

pub(in crate::runtime) use cache_padded::CachePadded;
pub(in crate::runtime) use claim::{Claim, TimedOut};

use super::primitive;
