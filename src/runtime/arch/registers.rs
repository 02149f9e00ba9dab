//! The registers that a stack walk starts from.

/// The registers that a stack walk starts from.
///
/// On AArch64 a function that has not saved its return address yet is not told apart: a walk that
/// starts at an exact pc expects the link register, x30, to be in the frame record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// The program counter: rip on x86-64, pc on AArch64.
    pub pc: usize,
    /// The stack pointer: rsp, sp.
    pub sp: usize,
    /// The frame pointer: rbp, x29.
    pub fp: usize,
}

/// Code that a preemption stub has interrupted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Interrupted {
    pub(crate) at: Registers,
    /// fp and pc of the anchor that the goroutine had then, where the stub's frame keeps them.
    /// `None`: the goroutine still has it.
    pub(crate) anchor: Option<(usize, usize)>,
}
