//! A saved context of a goroutine, in a layout that is the same on every machine.

use std::mem::offset_of;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::jit::stubs::GobufLayout;
use crate::runtime::arch::registers::Registers;

/// A saved context. The stubs and `goswitch` read and write it; every other register is saved by
/// the compiler, where it is live.
///
/// # Who reads it
///
/// The thread that resumes the goroutine, and a thread that inspects it while it is parked. The
/// second one reads the status, then the pc, both with Acquire; if the pc is not 0 it reads the
/// other fields and the stack (`sync/suspend.rs`). So the pc is written last, with Release: what
/// the goroutine has written before, in its frames too, is visible to a thread that has read the
/// pc.
///
/// The store that clears the pc of a context that is resumed needs no order. The status that is
/// stored when the goroutine parks again is a Release: a thread that reads that status reads 0 or a
/// later pc. Until then the status is RUNNING, or it was read before a fence after which the
/// resuming thread finds the request to suspend: that is the protocol's part.
#[repr(C)]
pub(crate) struct Gobuf {
    /// Where to resume; 0 while no context is saved. The first field, since the store-release
    /// instruction of AArch64 (`stlr`) takes an address without offset.
    pub(crate) pc: AtomicUsize,
    /// The stack pointer.
    sp: AtomicUsize,
    /// The frame pointer: rbp, x29.
    fp: AtomicUsize,
    /// The register that LLVM reserves for frames with dynamic alignment, and that no asm block can
    /// name: rbx, x19.
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
            pc: AtomicUsize::new(0),
            sp: AtomicUsize::new(0),
            fp: AtomicUsize::new(0),
            base: AtomicUsize::new(0),
        }
    }

    /// A context that begins at `pc` with this stack and no frame. `sp` is a multiple of 16, as
    /// both machines require it (System V psABI x86-64, section 3.2.2; AAPCS64, section 6.4.5.1).
    pub(crate) fn start_at(&self, pc: usize, sp: usize) {
        debug_assert!(sp.is_multiple_of(16), "a goroutine starts on an aligned stack");
        self.sp.store(sp, Ordering::Relaxed);
        self.fp.store(0, Ordering::Relaxed);
        self.pc.store(pc, Ordering::Release);
    }

    /// The saved stack pointer.
    #[inline(always)]
    pub(crate) fn sp(&self) -> usize {
        self.sp.load(Ordering::Relaxed)
    }

    /// The saved registers. They mean something while a context is saved (`sync/suspend.rs`), and
    /// are harmless otherwise.
    pub(crate) fn registers(&self) -> Registers {
        Registers {
            pc: self.pc.load(Ordering::Relaxed),
            sp: self.sp.load(Ordering::Relaxed),
            fp: self.fp.load(Ordering::Relaxed),
        }
    }
}
