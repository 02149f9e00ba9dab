//! Lock-free protocols between threads, on words and raw items. None of them knows what a goroutine
//! is, so that the models under loom run these files as they are.

mod cache_padded;
mod claim;
pub(crate) mod idle;
pub(crate) mod inbox;
pub(crate) mod latch;
pub(crate) mod preempt_request;
mod primitive;
pub(crate) mod runq;
pub(crate) mod suspend;
pub(crate) mod sysmon_sleep;
pub(crate) use cache_padded::CachePadded;
pub(crate) use claim::{Claim, TimedOut};
