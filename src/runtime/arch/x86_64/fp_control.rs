#![allow(unsafe_code, reason = "loads the control registers of floating-point units")]
//! FP control state: the control bits of MXCSR (exception masks, rounding, flush-to-zero,
//! denormals-are-zero) and the x87 control word (masks, precision, rounding).
//!
//! Nothing here may compute with floating-point numbers.

use std::arch::asm;

/// Flags of past exceptions in MXCSR: no control bits (Intel SDM volume 1, section 10.2.3).
const MXCSR_STATUS: u32 = 0x3f;

/// Exception masks of the x87 control word (Intel SDM volume 1, section 8.1.5).
const X87_MASKS: u16 = 0x3f;

/// Modes, as they are laid out in the thread-local word that stubs read: MXCSR, and behind it the
/// x87 control word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FpControl {
    mxcsr: u32,
    x87: u16,
}

impl FpControl {
    /// Those that the calling thread has now, without the flags of past exceptions.
    pub(crate) fn current() -> Self {
        let (mut mxcsr, mut x87) = (0u32, 0u16);
        // SAFETY: stores two control registers to our own variables.
        unsafe {
            asm!(
                "stmxcsr [{mxcsr}]",
                "fnstcw [{x87}]",
                mxcsr = in(reg) &raw mut mxcsr,
                x87 = in(reg) &raw mut x87,
                options(nostack, preserves_flags),
            );
        }
        Self { mxcsr: mxcsr & !MXCSR_STATUS, x87 }
    }

    /// Loads them.
    pub(crate) fn load(self) {
        if self.x87 & X87_MASKS != X87_MASKS {
            // Flags that somebody else's computations have left would trap at the next x87
            // instruction where they are not masked (Intel SDM volume 2, FLDCW).
            // SAFETY: the flags of past exceptions survive no call.
            unsafe { asm!("fnclex", options(nomem, nostack, preserves_flags)) };
        }
        // SAFETY: the values were stored by the CPU, so that they have no reserved bits.
        unsafe {
            asm!(
                "ldmxcsr [{mxcsr}]",
                "fldcw [{x87}]",
                mxcsr = in(reg) &raw const self.mxcsr,
                x87 = in(reg) &raw const self.x87,
                options(nostack, preserves_flags, readonly),
            );
        }
    }

    pub(crate) fn to_word(self) -> usize {
        usize::from(self.x87) << 32 | self.mxcsr as usize
    }

    pub(crate) fn from_word(word: usize) -> Self {
        Self { mxcsr: word as u32, x87: (word >> 32) as u16 }
    }
}
