//! A saved context of a goroutine, of a layout that is the same on every machine.

use std::mem::offset_of;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::jit::stubs::GobufLayout;
use crate::runtime::arch::registers::Registers;

/// A saved context. The stubs read and write it; everything else the compiler saves.
#[repr(C)]
pub(crate) struct Gobuf {
    pub(crate) sp: AtomicUsize,
    pub(crate) pc: AtomicUsize,
    fp: AtomicUsize,
    base: AtomicUsize,
}

impl Gobuf {
    pub(crate) const LAYOUT: GobufLayout = GobufLayout {
        sp: offset_of!(Self, sp) as i32,
        pc: offset_of!(Self, pc) as i32,
        fp: offset_of!(Self, fp) as i32,
        base: offset_of!(Self, base) as i32,
    };

    pub(crate) const fn new() -> Self {
        Self {
            sp: AtomicUsize::new(0),
            pc: AtomicUsize::new(0),
            fp: AtomicUsize::new(0),
            base: AtomicUsize::new(0),
        }
    }

    /// A context that begins at `pc` with this stack and no frame.
    pub(crate) fn start_at(&self, pc: usize, sp: usize) {
        self.sp.store(sp, Ordering::Relaxed);
        self.pc.store(pc, Ordering::Relaxed);
        self.fp.store(0, Ordering::Relaxed);
    }

    /// The saved rsp.
    #[inline(always)]
    pub(crate) fn sp(&self) -> usize {
        self.sp.load(Ordering::Relaxed)
    }

    /// What is saved, if the context is: see `freeze.rs`. Otherwise it is of no use, but harmless.
    pub(crate) fn registers(&self) -> Registers {
        Registers {
            pc: self.pc.load(Ordering::Relaxed),
            sp: self.sp.load(Ordering::Relaxed),
            fp: self.fp.load(Ordering::Relaxed),
        }
    }
}
