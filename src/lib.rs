//! A JIT trampoline generator and call-bridge toolkit.
//!
//! Four worlds call each other in one process: machine code that was made at run time, Rust
//! functions on goroutines, C libraries, and a scheduler. This crate emits the stubs between
//! them, knows every byte of code it emitted, and can therefore walk, name and unwind all of it.
//!
//! * [`abi`] says where every value of a call lives, and in which order values move. It is pure.
//! * [`jit`] owns code memory and the registry of stubs, and emits.
//! * [`runtime`] runs goroutines, and bridges between them and JIT code.
//!
//! The front page of the repository has a program to start from: `examples/quickstart.rs`.

#![deny(unsafe_code, missing_docs)]
#![warn(unreachable_pub, clippy::unwrap_used)]

pub mod abi;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod environment;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub mod jit;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub mod runtime;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub use environment::{Environment, environment};

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
compile_error!(
    "footbridge executes on x86-64 Linux only, for now; on other hosts its `abi` layer builds as a \
     module of its own"
);

/// The program on the front page is tested.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
