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
        vec![match symbol.map(|symbol| (symbol, try_demangle(symbol.name))) {
            Some((_, Ok(path))) => TraceFrame::Rust { name: format!("{path:#}"), location: None },
            Some((symbol, Err(_))) => TraceFrame::C { name: symbol.name.into() },
            None => TraceFrame::Unknown { pc },
        }]
    })
}

/// Writes a line about the native code at `pc`: its function, with the offset in it on request, and
/// its module if that is not the program. Takes no lock and allocates nothing.
pub(crate) fn write_native(out: &mut dyn fmt::Write, pc: usize, with_offset: bool) -> fmt::Result {
    with_symbol(pc, |symbol, module| {
        match symbol.map(|symbol| (symbol, try_demangle(symbol.name))) {
            Some((_, Ok(path))) => write!(out, "rust {path:#}")?,
            Some((symbol, Err(_))) => write!(out, "c {}", symbol.name)?,
            None => write!(out, "native code at {pc:#x}")?,
        }
        if let Some(symbol) = symbol.filter(|_| with_offset) {
            write!(out, "+{:#x}", symbol.offset_bytes)?;
        }
        match module {
            Some(module) => writeln!(out, " ({module})"),
            None => writeln!(out),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_named_by_their_symbols() {
        let here = functions_are_named_by_their_symbols as *const () as usize;
        match &native_frames(here)[..] {
            [TraceFrame::Rust { name, location: None }] => {
                assert!(name.ends_with("functions_are_named_by_their_symbols"), "{name}");
            }
            other => panic!("{other:?}"),
        }
        let on_stack = 0_u8;
        let pc = (&raw const on_stack).addr();
        assert_eq!(native_frames(pc), [TraceFrame::Unknown { pc }]);
        let mut line = String::new();
        write_native(&mut line, here, false).expect("a String takes everything");
        assert!(line.starts_with("rust ") && line.ends_with("symbols\n"), "{line}");
        line.clear();
        write_native(&mut line, here + 4, true).expect("a String takes everything");
        assert!(line.ends_with("symbols+0x4\n"), "{line}");
        line.clear();
        write_native(&mut line, pc, true).expect("a String takes everything");
        assert_eq!(line, format!("native code at {pc:#x}\n"));
    }
}
