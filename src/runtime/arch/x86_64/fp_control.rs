#![allow(unsafe_code, reason = "loads the control registers of floating-point units")]
//! FP control state: the control bits of MXCSR (exception masks, rounding, flush-to-zero,
//! denormals-are-zero) and the x87 control word (masks, precision, rounding).
//!
//! A function call preserves them (System V psABI x86-64, section 3.2.3). It does not preserve the
//! flags of past exceptions.
//!
//! Nothing here may compute with floating-point numbers.

use std::arch::asm;

/// Flags of past exceptions in MXCSR: no control bits (Intel SDM volume 1, section 10.2.3).
const MXCSR_STATUS: u32 = 0x3f;

/// Exception masks of the x87 control word (Intel SDM volume 1, section 8.1.5).
const X87_MASKS: u16 = 0x3f;

/// FP control state, as it is laid out in the thread-local word that stubs read: MXCSR in the first
/// four bytes, then the x87 control word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FpControl {
    mxcsr: u32,
    x87: u16,
}

impl FpControl {
    /// The state of the calling thread, without the flags of past exceptions.
    pub(crate) fn current() -> Self {
        let (mut mxcsr, mut x87) = (0u32, 0u16);
        // SAFETY: stores two control registers to the two locals.
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

    /// Loads the state.
    pub(crate) fn load(self) {
        if self.x87 & X87_MASKS != X87_MASKS {
            // A flag that an earlier computation of the thread has left would trap at the next x87
            // instruction if the new mask does not cover it (Intel SDM volume 2, FLDCW).
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounding towards plus infinity, in MXCSR and in the x87 control word.
    const MXCSR_UP: usize = 0b10 << 13;
    const X87_UP: usize = 0b10 << 10 << 32;

    #[test]
    fn state_is_loaded_and_read_back() {
        let before = FpControl::current();
        let other = FpControl::from_word(before.to_word() ^ (MXCSR_UP | X87_UP));
        other.load();
        let loaded = FpControl::current();
        before.load();
        assert_eq!(loaded, other);
        assert_ne!(loaded, before);
        assert_eq!(FpControl::current(), before);
        assert_eq!(FpControl::from_word(other.to_word()), other);
    }

    #[test]
    fn flags_of_past_exceptions_are_no_control_state() {
        let before = FpControl::current();
        let zero = std::hint::black_box(0.0f64);
        std::hint::black_box(1.0 / zero);
        assert_eq!(FpControl::current(), before);
    }
}
