#![allow(unsafe_code, reason = "reads registers")]
//! The registers of the code that runs.

use std::arch::asm;

use crate::runtime::arch::registers::Registers;

/// The registers of the function that this is inlined into, at this point of it. The pc is exact:
/// it is the address of an instruction of that function.
#[inline(always)]
pub(crate) fn registers_here() -> Registers {
    let (pc, sp, fp): (usize, usize, usize);
    // SAFETY: reads registers. x30 is declared lost, though it is not written, so that the
    // enclosing function must have saved it: `Registers` has no link register to unwind a leaf
    // function by.
    unsafe {
        asm!(
            "adr {pc}, .",
            "mov {sp}, sp",
            "mov {fp}, x29",
            pc = out(reg) pc,
            sp = out(reg) sp,
            fp = out(reg) fp,
            out("x30") _,
            options(nomem, nostack, preserves_flags),
        );
    }
    Registers { pc, sp, fp }
}
