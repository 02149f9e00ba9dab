#![allow(unsafe_code, reason = "reads and writes the control register of the floating-point unit")]
//! Floating-point control state: FPCR.
//!
//! FPCR has control bits only: rounding mode, flush-to-zero, default NaN, trap enables (Arm ARM,
//! section C5.2.8). The flags of past exceptions are in another register, FPSR, which no procedure
//! call preserves (AAPCS64, section 6.1.2), so that it is neither saved nor loaded here. A
//! procedure call preserves FPCR (the same section).
//!
//! Nothing here may compute with floating-point numbers.

use std::arch::asm;

/// Control state, as it is laid out in the thread-local word that stubs read: FPCR.
///
/// The register has 64 bits, of which the upper 32 are reserved. They are kept as they were read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FpControl {
    fpcr: u64,
}

impl FpControl {
    /// The state of the calling thread.
    pub(crate) fn current() -> Self {
        let fpcr: u64;
        // SAFETY: reads a register that user mode may read.
        unsafe { asm!("mrs {}, fpcr", out(reg) fpcr, options(nomem, nostack, preserves_flags)) };
        Self { fpcr }
    }

    /// Loads the state.
    pub(crate) fn load(self) {
        // Not `nomem`: memory accesses of the two states stay on their sides, and so do the
        // computations that depend on them.
        // SAFETY: the value was read from the register, so that its reserved bits are right.
        unsafe { asm!("msr fpcr, {}", in(reg) self.fpcr, options(nostack, preserves_flags)) };
    }

    pub(crate) fn to_word(self) -> usize {
        self.fpcr as usize
    }

    pub(crate) fn from_word(word: usize) -> Self {
        Self { fpcr: word as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounding towards plus infinity, and flush-to-zero.
    const RMODE_UP: u64 = 1 << 22;
    const FZ: u64 = 1 << 24;

    #[test]
    fn state_is_loaded_and_read_back() {
        let before = FpControl::current();
        let other = FpControl::from_word((before.fpcr ^ (RMODE_UP | FZ)) as usize);
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
