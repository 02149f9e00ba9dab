//! A JIT trampoline generator and call-bridge toolkit.
//!
//! Four worlds call each other in one process: machine code that was made at run time, Rust
//! functions on goroutines, C libraries, and a scheduler. This crate emits the stubs between
//! them, knows every byte of code it emitted, and can therefore walk, name and unwind all of it.
//!
//! * [`abi`] says where every value of a call lives, and in which order values move. It is pure.
//! * [`jit`] owns code memory and the registry of stubs, and emits.
#![cfg_attr(
    feature = "runtime",
    doc = "* [`runtime`] runs goroutines, and bridges between them and JIT code."
)]
#![cfg_attr(
    not(feature = "runtime"),
    doc = "* `runtime` is off: it runs goroutines, and bridges between them and JIT code."
)]
//!
//! # Example
//!
//! Machine code calls a Rust function that parks. A traceback shows both, and what is around them:
//!
#![cfg_attr(feature = "runtime", doc = "```")]
#![cfg_attr(not(feature = "runtime"), doc = "```ignore")]
//! use footbridge::abi::Convention;
//! use footbridge::dynasm::{DynasmLabelApi, dynasm};
//! use footbridge::jit::{FrameClass, Jit};
//! use footbridge::runtime::{self, Builder, Chan};
//!
//! let jit = Jit::new()?;
//! let recv = jit.named_goroutine_fn("recv", Convention::SystemV, |channel: *const Chan<u64>| {
//!     println!("{}", runtime::traceback());
//!     // SAFETY: the channel outlives the goroutine.
//!     unsafe { &*channel }.recv().unwrap_or(0)
//! })?;
//! let recv = recv.address();
//! // SAFETY: a System V function with a standard frame around a call.
//! let pump = unsafe {
//!     jit.install("pump", FrameClass::Standard, |ops| {
//!         dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; call extern recv; pop rbp; ret);
//!     })?
//! };
//! // SAFETY: its convention and type.
//! let pump = unsafe { pump.enter::<fn(*const Chan<u64>) -> u64>(Convention::SystemV)? };
//!
//! let received = runtime::run(|| {
//!     let channel = Chan::new(0);
//!     runtime::scope(|s| {
//!         let named = Builder::new().name("pump");
//!         // SAFETY: on a goroutine; the channel outlives the scope.
//!         let receiver = named.go_scoped(s, || unsafe { pump.call(&channel) }).expect("memory");
//!         channel.send(42).expect("open");
//!         receiver.join().expect("no panic")
//!     })
//! });
//! println!("received {received}");
//! # assert_eq!(received, 42);
//! # Ok::<(), footbridge::jit::JitError>(())
//! ```
//!
//! prints, but for some frames of Rust's library:
//!
//! ```text
//! goroutine 2 "pump" [running]:
//!     rust main::{{closure}} at src/main.rs:8
//!     jit recv+0x38 (goroutine function)
//!     jit pump+0x9
//!     jit pump+0x34 (enter)
//!     rust main::{{closure}}::{{closure}}::{{closure}} at src/main.rs:27
//!     jit goroutine entry+0x10 (goroutine entry)
//!
//! received 42
//! ```
//!
//! # Features
//!
//! All are on by default.
//!
//! | feature | what it adds | without it |
//! | --- | --- | --- |
//! | `runtime` | the module `runtime`, [`jit::Jit`]'s stubs for it, and `environment` | `jit` installs code of yours, finds and unwinds it. [`jit::AdapterCode`] emits adapters |
//! | `traceback` | native frames and their names in tracebacks (framehop, object) | tracebacks have JIT frames, and of native code a few addresses |
//! | `backtrace` | source lines and inlined functions (the crate `backtrace`) | names come from symbol tables |
//!
//! # Hosts
//!
//! Code executes on x86-64 Linux. On AArch64 Linux goroutines, channels, timers, panics and walks
//! run, and code can be installed. What is emitted on x86-64 only is refused there with
//! [`JitError::Unsupported`](jit::JitError::Unsupported): polls, goroutine functions, entries and
//! adapters that execute. On other hosts there is no `runtime`, and of `jit` what emits bytes
//! ([`jit::AdapterCode`]); `abi` is the same everywhere.

#![deny(unsafe_code, missing_docs, missing_debug_implementations)]
#![warn(unreachable_pub, clippy::unwrap_used)]
#![cfg_attr(
    any(
        not(all(any(target_arch = "x86_64", target_arch = "aarch64"), target_os = "linux")),
        footbridge_other_host
    ),
    allow(dead_code, unreachable_pub, reason = "no code executes there")
)]

/// Keeps items where the code that is emitted can be executed. `footbridge_other_host` is for CI,
/// which has one host. `cargo fmt` does not see modules that are declared in it; the line of
/// `.ci/run` does.
macro_rules! on_executing_host {
    ($($item:item)*) => {
        $(
            #[cfg(all(
                any(target_arch = "x86_64", target_arch = "aarch64"),
                target_os = "linux",
                not(footbridge_other_host)
            ))]
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

on_executing_host! {
    mod instrument;
}

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
