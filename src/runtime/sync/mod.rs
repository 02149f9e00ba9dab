//! Lock-free protocols between threads, on words and raw items.
//!
//! | file | between |
//! | --- | --- |
//! | `runq` | the owner of a run queue and thieves |
//! | `inbox` | the owner of an inbox and threads that push |
//! | `status` | the threads that move a goroutine from one status to the next |
//! | `park` | a goroutine (or foreign thread) that parks and the thread that readies it |
//! | `suspend` | a thread that suspends a goroutine and the M that comes to run it |
//! | `idle` | Ms that fall asleep and threads that publish work |
//! | `preempt_request` | an M that begins a tick, its signal handler, and preempters |
//! | `sysmon_sleep` | sysmon that falls asleep and Ms that wake |
//! | `latch` | the threads of a run that ends |
//! | `claim` | the peers and the timer that may end one wait |
//! | `mutex_word` | those that lock a mutex |
//! | `rwlock_word` | those that lock a reader-writer lock |
//!
//! Nothing here knows what a goroutine or an M is. The steps of a protocol are functions that take
//! its words, and closures for what lies in between: `sched/` calls them with futexes and queues,
//! the models in `tests/models` with loom's. So a step that is moved here is moved in both.
//!
//! Invariants of this room:
//!
//! * Files take their primitives from `super::primitive` only. The models put loom's in its place
//!   and run these files as they are.
//! * No operation has an order that is stronger than Relaxed without a mutant that fails, or a
//!   reason that `tests/models` lists. An operation is found there by its file, function and text,
//!   so an edit here may need one there: the models say so.
//! * Steps that a switch makes are `#[inline(always)]`.

mod cache_padded;
mod claim;
pub(crate) mod idle;
pub(crate) mod inbox;
pub(crate) mod latch;
pub(crate) mod mutex_word;
pub(crate) mod park;
pub(crate) mod preempt_request;
mod primitive;
pub(crate) mod runq;
pub(crate) mod rwlock_word;
pub(crate) mod status;
pub(crate) mod suspend;
pub(crate) mod sysmon_sleep;
pub(crate) use cache_padded::CachePadded;
pub(crate) use claim::{Claim, TimedOut};
