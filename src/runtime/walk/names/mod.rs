//! The names of native functions, for tracebacks and for reports of faults.
//!
//! What a name rests on is a matter of the crate's features, and each has a file:
//!
//! | features | `native_frames` | `write_native` |
//! | --- | --- | --- |
//! | `backtrace` | `debug_info.rs`: functions, those inlined into them, lines | `symbol_table.rs` |
//! | `traceback` | `symbol_table.rs`: functions | `symbol_table.rs` |
//! | neither | `address.rs`: the address | `address.rs` |
//!
//! `native_frames` allocates and takes locks. `write_native` does neither: a signal handler may
//! call it.

#[cfg(not(feature = "traceback"))]
mod address;
#[cfg(feature = "backtrace")]
mod debug_info;
#[cfg(feature = "traceback")]
mod symbol_table;

#[cfg(not(feature = "traceback"))]
pub(super) use address::native_frames;
#[cfg(not(feature = "traceback"))]
pub(crate) use address::write_native;
#[cfg(feature = "backtrace")]
pub(super) use debug_info::native_frames;
#[cfg(all(feature = "traceback", not(feature = "backtrace")))]
pub(super) use symbol_table::native_frames;
#[cfg(feature = "traceback")]
pub(crate) use symbol_table::write_native;
