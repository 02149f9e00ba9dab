//! Bridges between JIT code and Rust on one goroutine and one stack.
//!
//! | from | to | by | file |
//! | --- | --- | --- | --- |
//! | JIT code | a Rust closure | [`GoroutineFn`] | `functions.rs` |
//! | JIT code | a new goroutine | [`SpawnFn`] | `functions.rs` |
//! | Rust | JIT code, or an adapter | [`Entry`] | `entry.rs` |
//! | code of one convention | code of another one | [`Adapter`] | `adapter.rs` |
//! | JIT code | the scheduler, if the time slice is over | [`Polls`] | `poll.rs` |
//!
//! `jit/stubs` plans and emits the stubs. This room gives them types, what they are bound to, and
//! what they need of the runtime: where the current goroutine and its fields are.
//!
//! All handles share their stub: a clone is a handle to the same stub, and the last one that is
//! dropped retires it. The code and what it is bound to stay, since frames may return to it.

mod adapter;
mod arity;
mod entry;
mod functions;
mod poll;
pub use adapter::Adapter;
pub use entry::{Entry, EntryType};
pub use functions::{GoroutineClosure, GoroutineFn, SpawnFn};
pub use poll::{PollLayout, Polls, poll_layout};

/// What keeps other crates from implementing the traits of this room. Public for this crate's own
/// tests, which make stubs for signatures that are known at run time only.
#[doc(hidden)]
pub mod sealed {
    pub trait GoroutineClosure<Args> {}
    pub trait EntryType {}
}
