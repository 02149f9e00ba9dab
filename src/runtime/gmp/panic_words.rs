//! The panic state that std keeps for a thread: how many panics are under way, and whether one of
//! them is in the panic hook.
//!
//! This file is data. `sched/panic_probe.rs` finds std's words, and `sched/panic_state.rs` says
//! whose state is in them when.

use std::sync::atomic::{AtomicU8, AtomicUsize};

/// std's words of a thread, where std has them. Only the thread itself touches them.
#[repr(C)]
pub(crate) struct PanicWords {
    /// Panics that were not caught yet.
    pub(crate) count: AtomicUsize,
    /// 1: the panic hook runs. Another panic aborts the process meanwhile.
    pub(crate) in_hook: AtomicU8,
}

/// What an M refers to where std's words were not found. They stay zero.
pub(crate) static NO_WORDS: PanicWords =
    PanicWords { count: AtomicUsize::new(0), in_hook: AtomicU8::new(0) };

/// Contents of the words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PanicState {
    pub(crate) count: usize,
    pub(crate) in_hook: u8,
}

impl PanicState {
    /// No panic is under way.
    pub(crate) const CALM: Self = Self { count: 0, in_hook: 0 };
}
