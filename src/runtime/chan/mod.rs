//! Channels, bounded and rendezvous, and select over several of them.
//!
//! The rules are Go's. A value goes to a waiting receiver directly, else into the buffer, else the
//! sender parks. A closed channel delivers what is in its buffer and is an error afterwards. Unlike
//! in Go, a send to a closed channel is an error, too, which returns the value; a close wakes the
//! senders that wait.
//!
//! A goroutine that waits stands in a queue of the channel, by a [`Waiter`](waiters::Waiter) in its
//! own stack: stacks do not move, and `send`, `recv` and `select` do not return before their
//! waiters are out of every queue. A waiter of a select stands in several queues, and one with a
//! limit of time has a timer besides: the peer that gets the claim ([`Claim`](super::sync::Claim))
//! ends the wait, and a value passes only with the claim. So a value whose receiver timed out is
//! still the sender's, or in the buffer, or goes to the next receiver.
//!
//! A channel works from foreign threads too: they block where a goroutine parks.

mod channel;
mod error;
mod select;
pub(super) mod waiters;
pub use channel::{Chan, IntoIter, Iter, TryIter};
pub use error::{
    RecvError, RecvTimeoutError, SendError, SendTimeoutError, TryRecvError, TrySendError,
};
pub use select::{Case, select, select_timeout, try_select};
