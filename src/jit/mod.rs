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
//!
//! # Unwinding in a signal handler
//!
//! Profilers unwind in a signal handler, by `_Unwind_Backtrace`. On x86-64 the rules of emitted
//! code are right at each instruction of it, whatever rbp holds in the code around it: the walk
//! continues in the callers, or ends at a stub that has none (the switches, the stubs that
//! preempt, a frame of class [`FrameClass::Barrier`]). On AArch64 they are right at calls only,
//! which is enough for panics and backtraces: at the two instructions of a prologue and at `ret`
//! such a walk goes wrong. The walks of this crate (`runtime::jit_frames_from`) are right on both,
//! take no lock, and may always be used in a handler.
//!
//! What no crate can mend:
//!
//! * libgcc **up to GCC 12** takes a lock in each lookup once any unwind table was registered in
//!   the process, as this crate does. A handler that unwinds with it while the thread that it
//!   interrupts unwinds too, in a panic or a backtrace, waits for ever. From GCC 13 on lookups
//!   take no lock, and only a handler that interrupts the registration itself (the first use of a
//!   [`Jit`], or [`ForeignRegion::new`]) may wait.
//! * Tables of other compilers may be wrong in prologues. Those that LLVM writes for `extern
//!   "win64"` functions on Linux are, while the vector registers are saved: libgcc faults on them
//!   in a handler, with or without emitted code on the stack.
//! * `perf` sees neither tables that are registered at run time nor memory but the stack: use
//!   frame pointers there (`perf record --call-graph fp`).

pub mod dynasm;
pub(crate) mod emit;
mod error;
mod frame;
pub(crate) mod stubs;

pub use error::{JitError, Shortage};
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
    pub(crate) use mem::{
        address_space_left, is_bare_child, mappings, max_mappings, pin_module, reserve_private,
    };
    pub(crate) use frame::{PAGE_BYTES, RED_ZONE_BYTES, entry_frame};
    pub(crate) use registry::{StubId, has_preemptible_code, lookup_return};
    pub(crate) use safe_point::SafePoint;
    pub(crate) use stack_map::FARTHEST_BYTES;
    pub(crate) use unwind::rules::FrameState;
    pub(crate) use unwind::Unwinder;
}
