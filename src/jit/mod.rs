//! Code memory, the registry of every stub, and what emits them.
//!
//! * A [`Jit`] is a handle to code memory. [`Jit::install`] publishes code that a program emits,
//!   with [`Annotations`] that say where goroutines may be preempted in it and where it has live
//!   pointers. What frames the code has is a [`FrameClass`].
//! * [`lookup`] answers what code is at an address, in signal handlers, too. A [`ForeignRegion`]
//!   makes code known that lies in a program's own memory.
//! * Stubs between JIT code and Rust are made by methods of [`Jit`] and [`Code`], and described in
//!   `runtime`. [`AdapterCode`] emits adapters for any machine.
//!
//! ```
//! use footbridge::dynasm::{DynasmApi, dynasm};
//! use footbridge::jit::{FrameClass, Jit, lookup};
//!
//! let jit = Jit::new()?;
//! // SAFETY: a System V leaf that changes rax only.
//! let add = unsafe {
//!     jit.install("add", FrameClass::Leaf, |ops| {
//!         dynasm!(ops; .arch x64; lea rax, [rdi + rsi]; ret);
//!     })?
//! };
//! // SAFETY: its convention and types.
//! let function = unsafe { add.as_fn::<extern "sysv64" fn(u64, u64) -> u64>() };
//! assert_eq!(function(40, 2), 42);
//! assert_eq!(lookup(function as usize).expect("it is installed").name(), "add");
//! # Ok::<(), footbridge::jit::JitError>(())
//! ```
//!
//! The way of a stub: a [`Signature`](crate::abi::Signature) gives two assignments, those give a
//! plan, the emitter turns the plan into bytes at their final address, the arena copies them
//! through the writable view, and the registry publishes them. Only then does the address leave.
//!
//! Emission is for any machine on any host ([`AdapterCode`]). What executes is for the host:
//!
//! | | x86-64 Linux | AArch64 Linux |
//! | --- | --- | --- |
//! | installed code, registry, unwinding of panics | yes | yes, without `Saved` frames |
//! | switches between goroutines | yes | yes |
//! | goroutine functions, entries, starts from JIT code | yes | refused |
//! | adapters that execute | yes | refused |
//! | polls, checks of the stack, preemption | yes | refused |
//!
//! What is refused is [`JitError::Unsupported`], or for frames [`JitError::FrameContract`].

pub mod dynasm;
pub(crate) mod emit;
mod error;
mod frame;
pub(crate) mod stubs;

pub use error::JitError;
pub use frame::FrameClass;
pub use stubs::adapter::{AdapterCode, AdapterSpec, Bind, Binding};

crate::on_executing_host! {
    mod annotations;
    mod arena;
    mod code;
    mod leaf;
    mod mem;
    mod registry;
    mod safe_point;
    mod scalar;
    mod stack_map;
    mod unwind;

    pub use annotations::Annotations;
    pub use code::{Code, Jit, JitBuilder};
    pub use emit::Ops;
    pub use frame::GRANULE_BYTES;
    pub use mem::{MemoryMode, Placement};
    pub use registry::{ForeignCode, ForeignRegion, StubInfo, StubKind, lookup};
    pub use safe_point::WhenUnsafe;
    pub use scalar::{CallResult, Scalar};
    pub use stack_map::{LiveAt, LiveSlot, StackMap};
}

crate::for_runtime! {
    pub(crate) use arena::StubSpec;
    pub(crate) use code::{SharedStub, StubHandle, as_fn, name_of};
    pub(crate) use mem::{is_bare_child, pin_module};
    pub(crate) use frame::{PAGE_BYTES, RED_ZONE_BYTES, entry_frame};
    pub(crate) use registry::{has_preemptible_code, lookup_return};
    pub(crate) use safe_point::SafePoint;
    pub(crate) use stack_map::FARTHEST_BYTES;
    pub(crate) use unwind::rules::FrameState;
    pub(crate) use unwind::Unwinder;
}
