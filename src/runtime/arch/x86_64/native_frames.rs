//! The step from a native frame to its caller, by the unwind tables of the loaded modules: framehop
//! for x86-64.

use std::borrow::Cow;

use framehop::x86_64::{CacheX86_64, Reg, UnwindRegsX86_64, UnwinderX86_64};
use framehop::{FrameAddress, Module, MustNotAllocateDuringUnwind, Unwinder};

use crate::jit::FrameClass;
use crate::runtime::arch::registers::Registers;
use crate::runtime::arch::x86_64::frame_rules::saved_registers;

/// Steps allocate nothing, so that reports of faults can make them in a signal handler.
type Policy = MustNotAllocateDuringUnwind;

/// An unwind table, where it is loaded or a copy.
type Table = Cow<'static, [u8]>;

/// The unwind tables of modules.
#[derive(Clone)]
pub(crate) struct NativeUnwinder(UnwinderX86_64<Table, Policy>);

/// Rules that an unwinder has decoded before.
pub(crate) struct NativeCache(Box<CacheX86_64<Policy>>);

/// The registers that a walk carries from frame to frame.
pub(crate) struct NativeRegisters(UnwindRegsX86_64);

/// A call instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Call {
    /// To this address.
    Known(usize),
    /// To an address in a register, or in memory that a register leads to.
    Unknown,
}

/// How many bytes before a return address are needed to tell whether a call is there.
pub(crate) const CALL_BYTES: usize = 9;

/// The call instruction that ends at a return address, by the bytes before it: Intel SDM volume 2,
/// CALL. Other code may look like one. `read` reads a word of memory.
pub(crate) fn call_before(
    return_address: usize,
    bytes: [u8; CALL_BYTES],
    read: impl Fn(usize) -> Option<usize>,
) -> Option<Call> {
    let at = |rip: usize, [a, b, c, d]: [u8; 4]| {
        rip.wrapping_add_signed(i32::from_le_bytes([a, b, c, d]) as isize)
    };
    match bytes {
        [.., 0xe8, a, b, c, d] => {
            return Some(Call::Known(at(return_address, [a, b, c, d])));
        }
        // call [rip + operand], as through a table of the linker.
        [.., 0xff, 0x15, a, b, c, d] => {
            return read(at(return_address, [a, b, c, d])).map(Call::Known);
        }
        // mov rax, [rip + operand]; call rax: the same in debug builds.
        [0x48, 0x8b, 0x05, a, b, c, d, 0xff, 0xd0] => {
            return read(at(return_address.wrapping_sub(2), [a, b, c, d])).map(Call::Known);
        }
        _ => {}
    }
    // FF /2, with a ModRM byte that says how many bytes follow it.
    let is_indirect = |len: usize, modes: &[u8]| {
        let [opcode, modrm] = [bytes[CALL_BYTES - len], bytes[CALL_BYTES - len + 1]];
        opcode == 0xff && modrm >> 3 & 7 == 2 && modes.contains(&(modrm >> 6))
    };
    let found = is_indirect(2, &[0, 3]) || is_indirect(3, &[0, 1]);
    (found || is_indirect(4, &[1]) || is_indirect(6, &[0, 2]) || is_indirect(7, &[2]))
        .then_some(Call::Unknown)
}

impl NativeUnwinder {
    pub(crate) fn new() -> Self {
        Self(UnwinderX86_64::new())
    }

    pub(crate) fn add_module(&mut self, module: Module<Table>) {
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
            FrameClass::Saved | FrameClass::Entry | FrameClass::Win64 => {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn call_instructions_are_told_by_the_bytes_before_a_return_address() {
        let cases: [(&[u8], Option<Call>); 11] = [
            (&[0xe8, 0x10, 0, 0, 0], Some(Call::Known(0x1010))),
            (&[0xe8, 0xf0, 0xff, 0xff, 0xff], Some(Call::Known(0xff0))),
            (&[0xff, 0x15, 0x10, 0, 0, 0], Some(Call::Known(0x2020))),
            (&[0x48, 0x8b, 0x05, 0x10, 0, 0, 0, 0xff, 0xd0], Some(Call::Known(0x201c))),
            // call rax, call [rax + 8], call [rsp + 8], call r12.
            (&[0xff, 0xd0], Some(Call::Unknown)),
            (&[0xff, 0x50, 0x08], Some(Call::Unknown)),
            (&[0xff, 0x54, 0x24, 0x08], Some(Call::Unknown)),
            (&[0x41, 0xff, 0xd4], Some(Call::Unknown)),
            // jmp rax, mov rax, rbx, and nothing.
            (&[0xff, 0xe0], None),
            (&[0x48, 0x89, 0xd8], None),
            (&[], None),
        ];
        for (code, call) in cases {
            let mut bytes = [0; CALL_BYTES];
            bytes[CALL_BYTES - code.len()..].copy_from_slice(code);
            let twice = |at: usize| Some(2 * at);
            assert_eq!(call_before(0x1000, bytes, twice), call, "{bytes:x?}");
        }
    }
}
