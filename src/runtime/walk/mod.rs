//! Walks of stacks, and what they are good for.
//!
//! ```text
//!     exact ------> scan ----------> inspect: suspends a goroutine of another thread, so that it
//!       |             (live pointers)     |   can be walked
//!       +---------> full, names ----------+---> traceback
//!                     (native frames)
//! ```
//!
//! * The **exact walk** (`exact.rs`) visits JIT frames only, and skips native code by anchors. It
//!   takes no lock and allocates nothing: it may run in a signal handler. What decides anything (a
//!   collector's roots, the frames of an overflow report) rests on it.
//! * The **scan** (`scan.rs`) is the exact walk with the live pointers of each frame.
//! * The **full walk** (`full/`) also decodes native frames. It is for people to read, and nothing
//!   may be decided by it: unwind tables of others can be wrong or missing.
//! * `names/` gives native frames their names.
//! * `signal_safe.rs` writes tracebacks where neither a lock nor an allocation is allowed.
//!
//! A walk reads stacks that other code wrote. It never follows a word out of the stacks that it was
//! given ([`Bounds`]), and it ends at a word that the frame contract forbids.

mod exact;
mod full;
mod inspect;
mod names;
mod scan;
mod signal_safe;
mod trace_frame;
mod traceback;

pub(crate) use exact::{Bounds, Start, exact_walk};
pub use exact::{JitFrame, WalkEnd};
pub use inspect::{Goroutine, ScanError, goroutines, this_goroutine};
pub(crate) use names::write_native;
pub use scan::{ScanFrame, scan_own_stack};
pub(crate) use signal_safe::{
    TraceStart, prepare as prepare_signal_safe, prepare_within, write_frames, write_jit_frames,
};
pub use trace_frame::TraceFrame;
pub use traceback::{
    Traceback, jit_frames, jit_frames_from, traceback, traceback_all, traceback_all_within,
};
pub(crate) use traceback::{each_of, traceback_within};
