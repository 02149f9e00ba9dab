//! Goroutine stacks: fixed, lazily committed, each with a guard below it.
//!
//! | file | |
//! | --- | --- |
//! | `size_class.rs` | the five sizes, and the size of a guard |
//! | `slots.rs` | address space: segments, slots in them, and decommitting |
//! | `guard.rs` | how a guard is made on this kernel |
//! | `error.rs` | why there is no stack, and what to do about it |
//!
//! A stack never moves, and its address space is never returned: addresses into it may be anywhere.
//! Which goroutine has which stack is decided in `gmp/pools.rs`; this room knows no goroutine.

mod error;
mod guard;
mod size_class;
mod slots;

pub use error::StackError;
pub(crate) use guard::{guards_report, memory_report};
pub(crate) use size_class::{LARGEST_BYTES, SizeClass};
pub(crate) use slots::{AtomicStack, Stack, allocate_slot, allocated_slots, decommit};
