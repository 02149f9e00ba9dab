//! Holding a goroutine still while another thread looks at its stack.
//!
//! Whoever makes a goroutine current stores its status (running), crosses a light fence, and looks
//! whether somebody wants it still. Whoever wants it still says so, crosses a heavy fence, and looks
//! at the status. One of the two sees the other: so a goroutine that is seen parked, with its
//! context saved, stays so until it is let go. No switch pays for this with more than a load.
//!
//! A status alone does not tell that the context is saved: a goroutine parks by itself, and waits
//! already when it still runs towards the switch. The saved pc tells: switch stubs clear it when
//! they continue a context, and write it last when they save one.
//!
//! The primitives come from `super`: the crate hands in the real ones, the model test loom's.

use super::primitive::{AtomicU32, AtomicUsize, Ordering, heavy_fence, light_fence};

const FREE: u32 = 0;

pub(crate) const REQUESTED: u32 = 1;

/// As REQUESTED, and an M sleeps on the word until the goroutine is let go.
pub(crate) const AWAITED: u32 = 2;

// The statuses that the protocol is about; `g.rs` has all.
pub(crate) const RUNNABLE: u32 = 1;

pub(crate) const RUNNING: u32 = 2;

pub(crate) const WAITING: u32 = 4;

/// What somebody who wants a goroutine still finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    /// It will not run until it is let go.
    Suspended,
    /// It runs, or is on its way to or from a switch.
    Running,
    /// It is no goroutine any more.
    Dead,
}

/// Whether somebody wants a goroutine still. One at a time does.
pub(crate) struct SuspendState(AtomicU32);

impl SuspendState {
    pub(crate) fn new() -> Self {
        Self(AtomicU32::new(FREE))
    }

    /// Asks for it. [`found`] tells when it is so.
    pub(crate) fn request(&self) {
        self.0.store(REQUESTED, Ordering::Relaxed);
        heavy_fence();
    }

    /// Lets the goroutine go. Returns whether a thread sleeps on the [`Self::word`].
    pub(crate) fn resume(&self) -> bool {
        self.0.swap(FREE, Ordering::Release) == AWAITED
    }

    /// For whoever has just stored RUNNING: whether it must not go on.
    #[inline(always)]
    pub(crate) fn is_requested(&self) -> bool {
        light_fence();
        // Acquire: who looked has read the stack before it let go, and may have changed what is on it.
        self.0.load(Ordering::Acquire) != FREE
    }

    /// What whoever was told so does next. Returns whether it must wait: then it sleeps while the
    /// word is [`AWAITED`], stores RUNNING, and looks again. Otherwise it gives way.
    pub(crate) fn await_resume(&self, status: &AtomicU32, saved_pc: &AtomicUsize) -> bool {
        if saved_pc.load(Ordering::Relaxed) == 0 {
            // Its context is not saved: it was about to leave its stack, and nobody else is there to
            // run. Who wants it still does not find it so before it has left.
            return false;
        }
        status.store(RUNNABLE, Ordering::Release);
        // Fails where it was let go meanwhile; then nobody sleeps on the word.
        let _ = self.0.compare_exchange(REQUESTED, AWAITED, Ordering::Relaxed, Ordering::Relaxed);
        true
    }

    pub(crate) fn word(&self) -> &AtomicU32 {
        &self.0
    }
}

/// Looks at a goroutine that was asked to be still.
pub(crate) fn found(status: &AtomicU32, saved_pc: &AtomicUsize) -> Found {
    match status.load(Ordering::Acquire) {
        RUNNABLE | WAITING if saved_pc.load(Ordering::Acquire) != 0 => Found::Suspended,
        RUNNABLE | WAITING | RUNNING => Found::Running,
        _ => Found::Dead,
    }
}
