#![allow(unsafe_code, reason = "reads registers")]
//! The registers of the code that runs.

use std::arch::asm;

use crate::runtime::arch::registers::Registers;

/// The registers of the function that this is inlined into, at this point of it. The pc is exact:
/// it is the address of an instruction of that function.
#[inline(always)]
pub(crate) fn registers_here() -> Registers {
    let (pc, sp, fp): (usize, usize, usize);
    // SAFETY: reads registers.
    unsafe {
        asm!(
            "lea {pc}, [rip]",
            "mov {sp}, rsp",
            "mov {fp}, rbp",
            pc = out(reg) pc,
            sp = out(reg) sp,
            fp = out(reg) fp,
            options(nomem, nostack, preserves_flags),
        );
    }
    Registers { pc, sp, fp }
}
