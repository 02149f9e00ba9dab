//! The names of native functions by debug information, with source lines and the functions that
//! were inlined.

use std::ffi::c_void;

use rustc_demangle::try_demangle;

use super::symbol_table;
use crate::runtime::os::symbols::with_symbol;
use crate::runtime::walk::trace_frame::TraceFrame;

/// The function at a pc, and those inlined into it, innermost first. Never empty: where debug
/// information says nothing, the symbol table may.
pub(in crate::runtime::walk) fn native_frames(pc: usize) -> Vec<TraceFrame> {
    let mut frames = Vec::new();
    let mut is_plain = false;
    backtrace::resolve(pc as *mut c_void, |symbol| {
        let Some(raw) = symbol.name() else { return };
        let raw = raw.as_str().unwrap_or("?");
        let at = symbol.filename().zip(symbol.lineno());
        let is_rust_file =
            symbol.filename().is_some_and(|file| file.extension() == Some("rs".as_ref()));
        let path = try_demangle(raw);
        is_plain = path.is_err();
        frames.push(match path {
            Err(_) if !is_rust_file => TraceFrame::C { name: raw.into() },
            path => TraceFrame::Rust {
                name: path.map_or_else(|_| raw.into(), |path| format!("{path:#}")),
                location: at.map(|(file, line)| format!("{}:{line}", file.display())),
            },
        });
    });
    // Debug information that has line tables only has names without paths. The symbol table knows
    // the path of the function that others were inlined into: the last one.
    if is_plain && let Some(TraceFrame::Rust { name, .. }) = frames.last_mut() {
        with_symbol(pc, |symbol, _module| {
            if let Some(Ok(path)) = symbol.map(|symbol| try_demangle(symbol.name)) {
                *name = format!("{path:#}");
            }
        });
    }
    if frames.is_empty() {
        return symbol_table::native_frames(pc);
    }
    frames
}
