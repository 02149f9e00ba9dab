//! Starting goroutines, waiting for them, and sleeping.
//!
//! * [`go`] and [`Scope::go`] start a goroutine like the others of its run; [`Builder`] starts one
//!   with a name, with another stack, or one that may migrate, and reports why it could not.
//! * A [`JoinHandle`] waits for the result (`join.rs`), a [`scope()`] for all goroutines that
//!   borrow from it (`scope.rs`).
//! * How closure and result lie in the stack of their goroutine: `spawn.rs`.

mod builder;
mod join;
mod local;
mod panic_hook;
mod scope;
mod sleep;
mod spawn;
pub use builder::{Builder, SpawnFnError};
pub use join::{Abandoned, JoinHandle, JoinResult};
pub use local::{AccessError, LocalKey};
pub use scope::{Scope, ScopedJoinHandle, scope};
pub(super) use sleep::Limit;
pub use sleep::sleep;
pub(super) use spawn::{Settings, go_with};
pub use spawn::{SpawnError, go};
