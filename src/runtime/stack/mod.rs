//! Goroutine stacks: fixed, lazily committed, each with a guard below it.

mod error;
mod guard;
mod size_class;
mod slots;
pub use error::{Shortage, StackError};
pub(crate) use guard::guards_report;
pub(crate) use size_class::{LARGEST_BYTES, SizeClass};
pub(crate) use slots::{Stack, allocate_slot, allocated_slots, decommit};
