//! Bridges between JIT code and Rust: goroutine functions, entries, starts of goroutines, adapters,
//! polls.

mod adapter;
mod functions;
mod poll;
pub use adapter::Adapter;
#[doc(hidden)]
pub use functions::sealed;
pub(crate) use functions::spawn_fn;
pub use functions::{Entry, EntryType, GoroutineClosure, GoroutineFn, SpawnFn};
pub use poll::{PollLayout, Polls, poll_layout};
