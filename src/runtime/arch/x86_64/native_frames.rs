//! The step from a native frame to its caller, by the unwind tables of the loaded modules: framehop
//! for x86-64.

use framehop::x86_64::{CacheX86_64, Reg, UnwindRegsX86_64, UnwinderX86_64};
use framehop::{FrameAddress, Module, MustNotAllocateDuringUnwind, Unwinder};

use crate::jit::FrameClass;
use crate::runtime::arch::registers::Registers;
use crate::runtime::arch::x86_64::frame_rules::saved_registers;

/// Steps allocate nothing, so that reports of faults can make them in a signal handler.
type Policy = MustNotAllocateDuringUnwind;

/// The unwind tables of modules.
#[derive(Clone)]
pub(crate) struct NativeUnwinder(UnwinderX86_64<&'static [u8], Policy>);

/// Rules that an unwinder has decoded before.
pub(crate) struct NativeCache(Box<CacheX86_64<Policy>>);

/// The registers that a walk carries from frame to frame.
pub(crate) struct NativeRegisters(UnwindRegsX86_64);

impl NativeUnwinder {
    pub(crate) fn new() -> Self {
        Self(UnwinderX86_64::new())
    }

    pub(crate) fn add_module(&mut self, module: Module<&'static [u8]>) {
        self.0.add_module(module);
    }
}

impl NativeCache {
    pub(crate) fn new() -> Self {
        Self(Box::new(CacheX86_64::new_in()))
    }
}

impl NativeRegisters {
    /// Where a walk starts.
    pub(crate) fn new(start: Registers) -> Self {
        Self(UnwindRegsX86_64::new(start.pc as u64, start.sp as u64, start.fp as u64))
    }

    /// The registers, in the frame that has this pc.
    pub(crate) fn at(&self, pc: usize) -> Registers {
        Registers { pc, sp: self.0.sp() as usize, fp: self.0.bp() as usize }
    }

    /// Leaves a frame of emitted code.
    pub(crate) fn leave_to(&mut self, caller: Registers) {
        self.0.set_ip(caller.pc as u64);
        self.0.set_sp(caller.sp as u64);
        self.0.set_bp(caller.fp as u64);
    }

    /// Restores the registers that a frame of emitted code keeps besides rip, rsp and rbp: native
    /// frames further out may be found from them. `exact_offset_bytes`: where the code is, if the
    /// pc is exact. `is_preemption`: the frame is a preemption stub's. `fp`: rbp, the frame's own.
    pub(crate) fn restore_kept(
        &mut self,
        class: FrameClass,
        exact_offset_bytes: Option<usize>,
        is_preemption: bool,
        fp: usize,
        read: impl Fn(usize) -> Option<usize>,
    ) {
        // How many registers are in their slots, and in which word below rbp the first one is.
        let (count, first_slot) = match class {
            FrameClass::Saved | FrameClass::Entry => {
                (exact_offset_bytes.map_or(5, saved_registers), 1)
            }
            // rflags come first.
            _ if is_preemption => (5, 2),
            _ => (0, 0),
        };
        let saved = [Reg::RBX, Reg::R12, Reg::R13, Reg::R14, Reg::R15];
        for (register, slot) in saved.into_iter().take(count).zip(first_slot..) {
            if let Some(value) = read(fp.wrapping_sub(8 * slot)) {
                self.0.set(register, value as u64);
            }
        }
    }

    /// Leaves a native frame. Returns the pc of the caller; `None` if there is none.
    pub(crate) fn leave_native(
        &mut self,
        address: FrameAddress,
        unwinder: &NativeUnwinder,
        cache: &mut NativeCache,
        read: impl Fn(usize) -> Option<usize>,
    ) -> Option<usize> {
        let mut read_word = |at: u64| read(at as usize).map(|word| word as u64).ok_or(());
        let caller = unwinder.0.unwind_frame(address, &mut self.0, &mut cache.0, &mut read_word);
        caller.ok().flatten().map(|caller| caller as usize)
    }
}
