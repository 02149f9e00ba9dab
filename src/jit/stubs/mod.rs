//! What each kind of stub consists of. A kind is a folder: `mod.rs` decides and plans, and the file
//! of an architecture turns the plan into bytes. Every architecture's file compiles on every host.
//!
//! What an architecture cannot do yet is refused where it is decided, with
//! [`JitError::Unsupported`](super::JitError::Unsupported): see `host.rs`.

pub(crate) mod adapter;

crate::for_runtime! {
    pub(crate) mod enter;
    mod env;
    pub(crate) mod goroutine_fn;
    mod host;
    mod native_call;
    mod pinned;
    pub(crate) mod poll;
    pub(crate) mod preempt;
    mod shapes;
    pub(crate) mod spawn;
    pub(crate) mod stack_check;
    pub(crate) mod switch;

    pub(crate) use env::{BrokenCall, GobufLayout, MISALIGNED_STACK, StubEnv};
    pub(crate) use host::require_target;
}
