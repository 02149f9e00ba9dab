//! Linux, with glibc or musl.
//!
//! What each file must provide is listed in `os/mod.rs`.

mod context;
pub(crate) mod errno;
pub(crate) mod fault;
pub(crate) mod futex;
pub(crate) mod memory;
#[cfg(feature = "traceback")]
pub(crate) mod modules;
pub(crate) mod signals;
pub(crate) mod stderr;
#[cfg(feature = "traceback")]
pub(crate) mod symbols;
pub(crate) mod threads;
pub(crate) mod tls_blocks;
