//! DWARF expressions as bytes: DWARF 5, sections 2.5 and 7.7.1.
//!
//! What readers of such bytes need beyond the standard:
//!
//! * LLDB 14 refuses a branch to the very end, so [`Expression::finish`] has an operation there;
//! * LLVM's unwinder 14 has no `DW_OP_nop`, so that operation adds 0.

pub(super) const DEREF: u8 = 0x06;
pub(super) const DUP: u8 = 0x12;
pub(super) const SWAP: u8 = 0x16;
pub(super) const AND: u8 = 0x1a;
pub(super) const MINUS: u8 = 0x1c;
pub(super) const OR: u8 = 0x21;
pub(super) const PLUS: u8 = 0x22;
pub(super) const SHL: u8 = 0x24;
pub(super) const SHR: u8 = 0x25;
pub(super) const EQ: u8 = 0x29;
pub(super) const GE: u8 = 0x2a;
pub(super) const NE: u8 = 0x2e;

const CONST1U: u8 = 0x08;
const CONST2U: u8 = 0x0a;
const CONST8U: u8 = 0x0e;
const PLUS_UCONST: u8 = 0x23;
const BRA: u8 = 0x28;
const SKIP: u8 = 0x2f;
const LIT0: u8 = 0x30;
const BREG0: u8 = 0x70;
const DEREF_SIZE: u8 = 0x94;

/// A place in an expression that branches lead to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Label(usize);

/// An expression under construction. The stack of its evaluation is noted beside the calls, top
/// last.
#[derive(Default)]
pub(super) struct Expression {
    bytes: Vec<u8>,
    /// Where each label is.
    places: Vec<Option<usize>>,
    /// The distances that are still to be filled in, each with its label.
    branches: Vec<(usize, Label)>,
}

impl Expression {
    pub(super) fn label(&mut self) -> Label {
        self.places.push(None);
        Label(self.places.len() - 1)
    }

    /// The label is here.
    pub(super) fn place(&mut self, label: Label) {
        self.places[label.0] = Some(self.bytes.len());
    }

    /// Operations without operands.
    pub(super) fn op(&mut self, ops: &[u8]) {
        self.bytes.extend(ops);
    }

    /// Pushes the value of a register, plus an offset.
    pub(super) fn register(&mut self, register: u8, offset: i32) {
        debug_assert!(register < 32);
        self.bytes.push(BREG0 + register);
        self.sleb128(offset);
    }

    /// Pushes a constant, in its shortest form.
    pub(super) fn constant(&mut self, value: u64) {
        if value < 32 {
            self.bytes.push(LIT0 + value as u8);
        } else if let Ok(value) = u8::try_from(value) {
            self.bytes.extend([CONST1U, value]);
        } else if let Ok(value) = u16::try_from(value) {
            self.bytes.push(CONST2U);
            self.bytes.extend(value.to_le_bytes());
        } else {
            self.bytes.push(CONST8U);
            self.bytes.extend(value.to_le_bytes());
        }
    }

    /// Replaces an address by the unsigned number of this many bytes there.
    pub(super) fn load(&mut self, bytes: u8) {
        self.bytes.extend([DEREF_SIZE, bytes]);
    }

    /// Continues at the label if the top of the stack, which is popped, is not zero.
    pub(super) fn branch(&mut self, label: Label) {
        self.jump(BRA, label);
    }

    /// Continues at the label.
    pub(super) fn skip(&mut self, label: Label) {
        self.jump(SKIP, label);
    }

    fn jump(&mut self, opcode: u8, label: Label) {
        self.bytes.push(opcode);
        self.branches.push((self.bytes.len(), label));
        self.bytes.extend([0; 2]);
    }

    fn sleb128(&mut self, mut value: i32) {
        loop {
            let low = value as u8 & 0x7f;
            value >>= 7;
            let is_last = value == 0 && low & 0x40 == 0 || value == -1 && low & 0x40 != 0;
            self.bytes.push(low | if is_last { 0 } else { 0x80 });
            if is_last {
                return;
            }
        }
    }

    /// Places the last label, adds `plus` to the top of the stack, which is the result, and returns
    /// the bytes with their length in front.
    pub(super) fn finish(mut self, end: Label, plus: u8) -> Vec<u8> {
        debug_assert!(plus < 0x80);
        self.place(end);
        self.bytes.extend([PLUS_UCONST, plus]);
        for &(at, label) in &self.branches {
            let to = self.places[label.0].expect("each label is placed");
            let distance = to as i64 - (at as i64 + 2);
            let distance = i16::try_from(distance).expect("expressions are short");
            self.bytes[at..at + 2].copy_from_slice(&distance.to_le_bytes());
        }
        let mut out = Vec::with_capacity(self.bytes.len() + 2);
        // ULEB128.
        match self.bytes.len() {
            len @ 0..0x80 => out.push(len as u8),
            len => out.extend([len as u8 | 0x80, (len >> 7) as u8]),
        }
        debug_assert!(self.bytes.len() < 1 << 14);
        out.extend(self.bytes);
        out
    }
}
