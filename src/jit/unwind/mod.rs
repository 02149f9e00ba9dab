//! How frames of emitted code are unwound: the tables for the process's unwinder (`dwarf.rs`), and
//! the states of a frame that the walks of this crate tell apart (`rules.rs`).

mod at_each_pc;
mod covered;
mod dwarf;
mod expression;
pub(crate) mod rules;
pub(crate) mod user_code;

pub(crate) use covered::{Covered, Words};
#[cfg(feature = "runtime")]
pub(crate) use dwarf::Unwinder;
pub(crate) use dwarf::register;
