//! Walking stacks.
//!
//! * The **exact walk** (`exact.rs`) visits JIT frames only, and skips native code by anchors. It
//!   may run in a signal handler.
//! * The **scan** (`scan.rs`) is the exact walk with the live pointers of each frame.
//! * The **full walk** (`full.rs`) also decodes native frames, for tracebacks.

mod exact;
mod full;
mod modules;
mod scan;

pub(crate) use exact::{Bounds, Start, exact_walk};
pub use exact::{JitFrame, Registers, WalkEnd};
pub(crate) use full::{Frame, FullWalker};
pub(crate) use scan::scan;
pub use scan::{ScanFrame, scan_own_stack};
