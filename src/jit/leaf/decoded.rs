//! What the check of a leaf knows of an instruction, on every machine.

/// What follows an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Flow {
    /// The next one.
    Next,
    /// A direct jump to this place, or also the next instruction.
    Jump { to: i64, may_fall_through: bool },
    /// A call that a leaf must not make.
    Call,
    /// Nothing that is known: a return, an indirect jump, a trap, or no instruction.
    End,
}

/// One instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Decoded {
    pub(super) len: usize,
    pub(super) flow: Flow,
}
