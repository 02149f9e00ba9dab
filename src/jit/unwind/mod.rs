//! How frames of emitted code are unwound: the tables for the process's unwinder (`dwarf.rs`), and
//! the states of a frame that the walks of this crate tell apart (`rules.rs`).

mod dwarf;
pub(crate) mod rules;
#[cfg(feature = "traceback")]
mod saved;
pub(crate) mod user_code;

#[cfg(feature = "runtime")]
pub(crate) use dwarf::Unwinder;
pub(crate) use dwarf::register;
#[cfg(feature = "traceback")]
pub(crate) use saved::saved_registers;
