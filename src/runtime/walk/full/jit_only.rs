//! The full walk where native frames are not decoded: the exact walk, and before it the native code
//! that the walk began in.

use std::ops::ControlFlow;

use super::Frame;
use crate::jit::lookup;
use crate::runtime::arch::Registers;
use crate::runtime::walk::exact::{Bounds, Start, exact_walk};

/// Walks stacks. It needs nothing of the process.
pub(in crate::runtime::walk) struct FullWalker;

impl FullWalker {
    pub(in crate::runtime::walk) fn new() -> Self {
        Self
    }

    /// Visits the frames that can be told from `at` on. `anchor` is the goroutine's.
    pub(in crate::runtime::walk) fn walk(
        &mut self,
        at: Registers,
        anchor: (usize, usize),
        bounds: &Bounds,
        visit: &mut dyn FnMut(Frame),
    ) {
        let mut is_return_address = false;
        if lookup(at.pc).is_none() {
            visit(Frame { pc: at.pc, is_return_address, stub: None });
            is_return_address = true;
        }
        // How the walk ended is not shown: a traceback of a broken stack ends where that is so.
        let _ = exact_walk(Start::Registers { at, anchor }, bounds, &mut |frame| {
            visit(Frame { pc: frame.pc, is_return_address, stub: Some(frame.stub) });
            is_return_address = true;
            ControlFlow::Continue(())
        });
    }
}
