//! Code memory, the registry of every stub, and what emits them.
//!
//! The way of a stub: a [`Signature`](crate::abi::Signature) gives two assignments, those give a
//! plan, the emitter turns the plan into bytes at their final address, the arena copies them
//! through the writable view, and the registry publishes them. Only then does the address leave.
//!
//! Emission is for any machine on any host. What executes is for one host, and only there.

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
    mod eh_frame;
    mod mem;
    mod safe_point;
    mod registry;
    pub mod scalar;
    mod stack_map;

    pub use annotations::Annotations;
    pub use code::{Code, Jit, JitBuilder};
    pub use emit::x86_64::Ops;
    pub use mem::{MemoryMode, Placement};
    pub use safe_point::{UnsafePointRange, WhenUnsafe};
    pub use registry::{ForeignCode, ForeignRegion, GRANULE_BYTES, StubInfo, StubKind, lookup};
    pub use stack_map::{LiveAt, LiveSlot, StackMap};

    pub(crate) use arena::{Arena, STUB_BYTES, StubSpec};
    pub(crate) use code::{Installed, as_fn};
    pub(crate) use eh_frame::Unwinder;
    pub(crate) use eh_frame::entry_frame;
    pub(crate) use safe_point::SafePoint;
    pub(crate) use registry::{StubId, has_preemptible_code, lookup_return};
    pub(crate) use stack_map::FARTHEST_BYTES;
}
