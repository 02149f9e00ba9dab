//! The names of native functions by the symbol tables of their files.
//!
//! A Rust function has a symbol that demangles, a C function has one that does not.

use std::fmt;

use rustc_demangle::try_demangle;

use crate::runtime::os::symbols::with_symbol;
use crate::runtime::walk::trace_frame::TraceFrame;

/// The function at a pc. Never empty.
pub(in crate::runtime::walk) fn native_frames(pc: usize) -> Vec<TraceFrame> {
    with_symbol(pc, |symbol, _module| {
        vec![match symbol.map(|symbol| (symbol, try_demangle(symbol))) {
            Some((_, Ok(path))) => TraceFrame::Rust { name: format!("{path:#}"), location: None },
            Some((symbol, Err(_))) => TraceFrame::C { name: symbol.into() },
            None => TraceFrame::Unknown { pc },
        }]
    })
}

/// Writes a line about the native code at `pc`: its function, and its module if that is not the
/// program. Takes no lock and allocates nothing.
pub(crate) fn write_native(out: &mut dyn fmt::Write, pc: usize) -> fmt::Result {
    with_symbol(pc, |symbol, module| {
        match symbol.map(|symbol| (symbol, try_demangle(symbol))) {
            Some((_, Ok(path))) => write!(out, "rust {path:#}")?,
            Some((symbol, Err(_))) => write!(out, "c {symbol}")?,
            None => write!(out, "native code at {pc:#x}")?,
        }
        match module {
            Some(module) => writeln!(out, " ({module})"),
            None => writeln!(out),
        }
    })
}
