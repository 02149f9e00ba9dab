//! Walking stacks.
//!
//! * The **exact walk** (`exact.rs`) visits JIT frames only, and skips native code by anchors. It
//!   may run in a signal handler.
//! * The **scan** (`scan.rs`) is the exact walk with the live pointers of each frame.
//! * The **full walk** (`full.rs`) also decodes native frames, for tracebacks (`traceback.rs`).
//! * `inspect.rs` suspends a goroutine, so that another thread can walk its stack.

mod exact;
mod full;
mod inspect;
mod scan;
mod traceback;
pub(crate) use exact::{Bounds, Start, exact_walk};
pub use exact::{JitFrame, WalkEnd};
pub use inspect::{Goroutine, ScanError, goroutines, this_goroutine};
pub use scan::{ScanFrame, scan_own_stack};
pub(crate) use traceback::all_from;
pub use traceback::{
    TraceFrame, Traceback, jit_frames, jit_frames_from, traceback, traceback_all,
    traceback_all_within,
};
