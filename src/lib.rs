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
//! Code executes on x86-64 Linux. On other hosts there is no `runtime`, and of `jit` what emits bytes
//! ([`jit::AdapterCode`]); `abi` is the same everywhere.
//!
//! The front page of the repository has a program to start from: `examples/quickstart.rs`.

#![deny(unsafe_code, missing_docs)]
#![warn(unreachable_pub, clippy::unwrap_used)]
#![cfg_attr(
    any(not(all(target_arch = "x86_64", target_os = "linux")), footbridge_other_host),
    allow(dead_code, unreachable_pub, reason = "there is nobody who executes")
)]

/// Keeps items where the code that is emitted can be executed. `footbridge_other_host` is for CI,
/// which has one host. `cargo fmt` does not see modules that are declared in it; the line of
/// `.ci/run` does.
macro_rules! on_executing_host {
    ($($item:item)*) => {
        $(
            #[cfg(all(target_arch = "x86_64", target_os = "linux", not(footbridge_other_host)))]
            $item
        )*
    };
}
pub(crate) use on_executing_host;

/// Keeps items of `jit` that only `runtime` uses where there is a runtime.
macro_rules! for_runtime {
    ($($item:item)*) => {
        crate::on_executing_host! {
            $(
                #[cfg(feature = "runtime")]
                $item
            )*
        }
    };
}
pub(crate) use for_runtime;

pub mod abi;
pub mod jit;

pub use jit::dynasm;

for_runtime! {
    mod environment;
    pub mod runtime;

    pub use environment::{Environment, environment};
}

/// The program on the front page is tested.
#[cfg(all(doctest, feature = "runtime"))]
#[doc = include_str!("../README.md")]
struct Readme;
