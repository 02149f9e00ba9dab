//! Native functions without names: the address is all that is told.

use std::fmt;

use crate::runtime::walk::trace_frame::TraceFrame;

/// The frame at a pc.
pub(in crate::runtime::walk) fn native_frames(pc: usize) -> Vec<TraceFrame> {
    vec![TraceFrame::Unknown { pc }]
}

/// Writes a line about the native code at `pc`.
pub(crate) fn write_native(out: &mut dyn fmt::Write, pc: usize, _with_offset: bool) -> fmt::Result {
    writeln!(out, "native code at {pc:#x}")
}
