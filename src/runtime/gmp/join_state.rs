//! The states of the word `G::join`, by which the end of a goroutine and its handle meet.
//!
//! A goroutine's G returns to the pool when the goroutine has ended *and* its handle is gone. One
//! exchange on the word by each side decides which of the two comes second, and that side returns
//! the G. Besides these states the word may have the address of the G that waits for the end.
//!
//! ```text
//!     JOINABLE -- join registers --> (address) -- goexit0 --> FINISHED    and readies the waiter
//!     JOINABLE -- goexit0 -------------------------------> FINISHED    the handle has the result
//!     JOINABLE -- the handle is dropped --> DETACHED -- goexit0 --> the pool
//!                                           (the goroutine has dropped its result itself)
//!     JOINABLE, (address), DETACHED -- the run ends first --> ABANDONED
//! ```

/// Not finished; the handle exists and nothing waits for the end.
pub(crate) const JOINABLE: usize = 0;

/// Finished; the result is the handle's.
pub(crate) const FINISHED: usize = 1;

/// Not finished; the handle is gone.
pub(crate) const DETACHED: usize = 2;

/// The run ended before the goroutine did, which never runs again.
pub(crate) const ABANDONED: usize = 3;

/// The smallest value that is an address: a G is aligned to 64 bytes.
pub(crate) const MIN_WAITER: usize = 64;
