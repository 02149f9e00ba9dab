//! The registers that a stack walk starts from.

/// Registers that a walk starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// rip.
    pub pc: usize,
    /// rsp.
    pub sp: usize,
    /// rbp.
    pub fp: usize,
}
