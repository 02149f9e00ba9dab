//! The step from a native frame to its caller, by the unwind tables of the loaded modules: framehop
//! for AArch64.
//!
//! framehop ends a walk where the caller's x29 is 0, or lies below its own. Both happen in front of
//! a stub: the one that a goroutine starts in, and the one that changes to the system stack. There
//! the walk steps by the frame record, if that leads to a stub.

use std::borrow::Cow;

use framehop::aarch64::{CacheAarch64, UnwindRegsAarch64, UnwinderAarch64};
use framehop::{FrameAddress, Module, MustNotAllocateDuringUnwind, Unwinder};

use crate::jit::{FrameClass, lookup_return};
use crate::runtime::arch::aarch64::frame_rules;
use crate::runtime::arch::registers::Registers;

/// Steps allocate nothing, so that reports of faults can make them in a signal handler.
type Policy = MustNotAllocateDuringUnwind;

/// An unwind table, where it is loaded or a copy.
type Table = Cow<'static, [u8]>;

/// The unwind tables of modules.
#[derive(Clone)]
pub(crate) struct NativeUnwinder(UnwinderAarch64<Table, Policy>);

/// Rules that an unwinder has decoded before.
pub(crate) struct NativeCache(Box<CacheAarch64<Policy>>);

/// The registers that a walk carries from frame to frame.
pub(crate) struct NativeRegisters(UnwindRegsAarch64);

/// A call instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Call {
    /// To this address.
    Known(usize),
    /// To an address in a register.
    Unknown,
}

/// How many bytes before a return address are needed to tell whether a call is there.
pub(crate) const CALL_BYTES: usize = 4;

/// The call instruction that ends at a return address, by the bytes before it: Arm ARM, BL and BLR.
pub(crate) fn call_before(
    return_address: usize,
    bytes: [u8; CALL_BYTES],
    _read: impl Fn(usize) -> Option<usize>,
) -> Option<Call> {
    let word = u32::from_le_bytes(bytes);
    if word >> 26 == 0b10_0101 {
        // The low 26 bits count words, with a sign.
        let distance = (word << 6).cast_signed() >> 4;
        let at = return_address.wrapping_sub(CALL_BYTES);
        return Some(Call::Known(at.wrapping_add_signed(distance as isize)));
    }
    (word & 0xffff_fc1f == 0xd63f_0000).then_some(Call::Unknown)
}

impl NativeUnwinder {
    pub(crate) fn new() -> Self {
        Self(UnwinderAarch64::new())
    }

    pub(crate) fn add_module(&mut self, module: Module<Table>) {
        self.0.add_module(module);
    }
}

impl NativeCache {
    pub(crate) fn new() -> Self {
        Self(Box::new(CacheAarch64::new_in()))
    }
}

impl NativeRegisters {
    /// Where a walk starts. x30 is not known: functions in which walks start have saved it.
    pub(crate) fn new(start: Registers) -> Self {
        Self(UnwindRegsAarch64::new(0, start.sp as u64, start.fp as u64))
    }

    /// The registers, in the frame that has this pc.
    pub(crate) fn at(&self, pc: usize) -> Registers {
        Registers { pc, sp: self.0.sp() as usize, fp: self.0.fp() as usize }
    }

    /// Leaves a frame of emitted code.
    pub(crate) fn leave_to(&mut self, caller: Registers) {
        self.0.set_lr(caller.pc as u64);
        self.0.set_sp(caller.sp as u64);
        self.0.set_fp(caller.fp as u64);
    }

    /// Restores what a frame of emitted code keeps besides pc, sp and fp: nothing on this machine,
    /// which has no frames of class `Saved` and `Entry`.
    pub(crate) fn restore_kept(
        &mut self,
        _class: FrameClass,
        _exact_offset_bytes: Option<usize>,
        _is_preemption: bool,
        _fp: usize,
        _read: impl Fn(usize) -> Option<usize>,
    ) {
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
        match unwinder.0.unwind_frame(address, &mut self.0, &mut cache.0, &mut read_word) {
            Ok(Some(caller)) => Some(caller as usize),
            Ok(None) | Err(_) => {
                let (fp, pc) = frame_rules::frame_record(self.0.fp() as usize, read)?;
                lookup_return(pc)?;
                self.0.set_fp(fp as u64);
                Some(pc)
            }
        }
    }
}
