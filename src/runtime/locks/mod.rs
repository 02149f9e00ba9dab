//! Locks in the shape of std's that park the goroutine, where std's block the thread.
//!
//! | file | what waits there |
//! | --- | --- |
//! | `mutex` | for the one holder to release it |
//! | `rwlock` | for the readers or the writer to release it |
//! | `condvar` | for a notification |
//! | `once` | for the goroutine that initialises |
//! | `wait_group` | for a count to become zero |
//! | `barrier` | for others to come |
//! | `queue` | the queue that all of them have |
//! | `poison` | how a panic marks what it left half-done |
//!
//! A goroutine that waits stands in a queue, by a [`Waiter`](super::chan::waiters::Waiter) in its
//! own stack, so that nothing is allocated. Foreign threads wait in the same queues, and sleep. The
//! words of mutex and reader-writer lock, and the rules by which they are passed on, are in
//! `sync/`.
//!
//! A goroutine that its run abandons while it holds a lock never releases it. The same holds if the
//! lock was passed on to it and it has not run since: nothing can tell whether it has.

mod barrier;
mod condvar;
mod mutex;
mod once;
mod poison;
mod queue;
mod rwlock;
mod wait_group;
pub use barrier::{Barrier, BarrierWaitResult};
pub use condvar::{Condvar, WaitTimeoutResult};
pub use mutex::{Mutex, MutexGuard};
pub use once::{Once, OnceLock, OnceState};
pub use rwlock::{RwLock, RwLockReadGuard, RwLockWriteGuard};
pub use wait_group::WaitGroup;
