//! Linux.

mod context;
pub(crate) mod futex;
pub(crate) mod memory;
pub(crate) mod modules;
pub(crate) mod signals;
pub(crate) mod stderr;
pub(crate) mod symbols;
pub(crate) mod threads;
