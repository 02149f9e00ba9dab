//! Rules for frames of x86-64 that hold at every instruction: DWARF expressions over the pc.
//!
//! The states are those that `runtime/arch/x86_64/frame_rules.rs` draws. An expression tells them
//! by what it can read:
//!
//! | where | CFA | told by |
//! | --- | --- | --- |
//! | first byte of the code, `push rbp` | rsp + 8 | pc, and the registry's word |
//! | second byte, `mov rbp, rsp` | rsp + 16 | the same |
//! | `ret`, `ret imm16`, `rep ret`, `bnd ret` | rsp + 8 | the bytes at the pc |
//! | elsewhere | rbp + 16 | |
//! | in a leaf, `call fs:[..]` of a poll | rsp + 136 | the bytes at the pc |
//! | elsewhere in a leaf | rsp + 8 | |
//!
//! The pc is the return address column: the unwinders set it to the interrupted pc in the frame
//! below a signal handler, and to the return address everywhere else. An expression cannot tell the
//! two apart. So a `call` is followed by an instruction of the same code, whose frame is complete:
//! without one, the return address may be the first byte of the next stub, or data that looks like
//! a `ret`. `Arena` pads code that ends with its granule, and the crate's own stubs end in no call.
//!
//! Each read is of memory that an exact pc promises: the first byte of an instruction, further ones
//! only if the first says that they are there, and the word of published code.

use super::covered::Covered;
use super::expression::{AND, DEREF, DUP, EQ, Expression, GE, MINUS, NE, OR, PLUS, SHL, SHR, SWAP};
use crate::jit::frame::{GRANULE_BYTES, RED_ZONE_BYTES};

// System V psABI x86-64, figure 3.36.
const RBP: u8 = 6;
const RSP: u8 = 7;
const RIP: u8 = 16;
/// rbx, r12, r13, r14, r15: what `Saved` frames keep, from rbp - 8 down.
const SAVED: [u8; 5] = [3, 12, 13, 14, 15];

/// Bytes of `push rbp; mov rbp, rsp` and of the five pushes, of which the first may have a prefix.
/// None of the five registers has been changed at an instruction before that offset, and all are
/// in their slots at an instruction from there on.
const SAVED_FROM: u64 = 14;

const DW_CFA_DEF_CFA_EXPRESSION: u8 = 0x0f;
const DW_CFA_VAL_EXPRESSION: u8 = 0x16;

/// CFA and register rules of a class with a prologue, but for the return address.
pub(super) fn framed(covered: &Covered) -> Vec<u8> {
    let mut rules = vec![DW_CFA_DEF_CFA_EXPRESSION];
    rules.extend(cfa(covered));
    rules.extend([DW_CFA_VAL_EXPRESSION, RBP]);
    rules.extend(frame_pointer());
    if covered.class.saves_five() {
        for (register, words) in SAVED.into_iter().zip(3..) {
            rules.extend([DW_CFA_VAL_EXPRESSION, register]);
            rules.extend(saved(register, words, covered));
        }
    }
    rules
}

/// The CFA of a leaf.
pub(super) fn leaf() -> Vec<u8> {
    let mut e = Expression::default();
    let (bare, end) = (e.label(), e.label());
    e.register(RIP, 0);
    e.load(1);
    e.constant(0x64);
    e.op(&[NE]);
    e.branch(bare);
    // An instruction with a segment prefix: call with a SIB byte?
    e.register(RIP, 1);
    e.load(2);
    e.constant(0x14ff);
    e.op(&[NE]);
    e.branch(bare);
    e.register(RSP, RED_ZONE_BYTES as i32);
    e.skip(end);
    e.place(bare);
    e.register(RSP, 0);
    [vec![DW_CFA_DEF_CFA_EXPRESSION], e.finish(end, 8)].concat()
}

fn cfa(covered: &Covered) -> Vec<u8> {
    let mut e = Expression::default();
    let (usual, rare, bare, framed, end) = (e.label(), e.label(), e.label(), e.label(), e.label());
    // Most bytes are none of 0xc2, 0xc3, 0xf2, 0xf3, nor of four more that these masks let through.
    e.register(RIP, 0);
    e.load(1);
    e.constant(0xce);
    e.op(&[AND]);
    e.constant(0xc2);
    e.op(&[EQ]);
    e.branch(rare);
    e.place(usual);
    // Not the first two bytes of a granule: most places.
    e.register(RIP, 0);
    e.constant(GRANULE_BYTES as u64 - 2);
    e.op(&[AND]);
    e.branch(framed);
    past_first_granule(&mut e, covered);
    e.branch(framed);
    // Offset 0 or 1: nothing, or rbp, was pushed.
    e.register(RIP, 0);
    e.constant(1);
    e.op(&[AND]);
    e.constant(3);
    e.op(&[SHL]);
    e.register(RSP, 0);
    e.op(&[PLUS]);
    e.skip(end);
    e.place(rare);
    e.register(RIP, 0);
    e.load(1);
    e.constant(0xfe);
    e.op(&[AND]);
    e.constant(0xc2);
    e.op(&[EQ]);
    e.branch(bare);
    // A prefix of `ret`, or of anything else?
    e.register(RIP, 0);
    e.load(1);
    e.constant(0xfe);
    e.op(&[AND]);
    e.constant(0xf2);
    e.op(&[NE]);
    e.branch(usual);
    e.register(RIP, 1);
    e.load(1);
    e.constant(0xc3);
    e.op(&[NE]);
    e.branch(usual);
    e.place(bare);
    e.register(RSP, 0);
    e.skip(end);
    e.place(framed);
    e.register(RBP, 8);
    e.finish(end, 8)
}

/// Pushes whether the pc is in another granule than the first one of its code. Where nothing was
/// published (in memory of a user) it is taken to be.
fn past_first_granule(e: &mut Expression, covered: &Covered) {
    const GRANULE_SHIFT: u32 = GRANULE_BYTES.trailing_zeros();
    let Covered { range, words, .. } = covered;
    // The word of the granule at address 0, if the table began there.
    let words_of_zero = words.address.wrapping_sub(range.start >> GRANULE_SHIFT << 3);
    e.register(RIP, 0);
    e.constant(GRANULE_SHIFT.into());
    e.op(&[SHR]);
    e.constant(3);
    e.op(&[SHL]);
    e.constant(words_of_zero as u64);
    e.op(&[PLUS, DEREF, DUP]); // word word
    let back = &words.back_bits;
    e.constant((u64::BITS - back.end).into());
    e.op(&[SHL]);
    e.constant((u64::BITS - (back.end - back.start)).into());
    e.op(&[SHR, SWAP]); // back word
    e.constant(0);
    e.op(&[EQ, OR]);
}

/// rbp. On the stack is the CFA.
fn frame_pointer() -> Vec<u8> {
    let mut e = Expression::default();
    let (pushed, end) = (e.label(), e.label());
    // Only where nothing of the frame is on the stack the CFA is rsp + 8, and rbp the caller's.
    // Elsewhere it was pushed, also at the second instruction.
    e.op(&[DUP]);
    e.register(RSP, 8);
    e.op(&[NE]);
    e.branch(pushed); // cfa
    e.register(RBP, 0);
    e.skip(end);
    e.place(pushed);
    e.constant(16);
    e.op(&[MINUS, DEREF]);
    e.finish(end, 0)
}

/// A register that the frame keeps at CFA - 8 * words. On the stack is the CFA.
fn saved(register: u8, words: u8, covered: &Covered) -> Vec<u8> {
    let mut e = Expression::default();
    let (own, slot, end) = (e.label(), e.label(), e.label());
    // A slot that rsp has not left, or not reached yet, holds the caller's value: most places.
    e.op(&[DUP]);
    e.register(RSP, 8 * i32::from(words));
    e.op(&[GE]);
    e.branch(slot); // cfa
    // Or the code runs on another stack. Nothing of the frame is there where the CFA is rsp + 8.
    e.op(&[DUP]);
    e.register(RSP, 8);
    e.op(&[EQ]);
    e.branch(own); // cfa
    e.register(RIP, 0);
    e.constant(GRANULE_BYTES as u64 - 1);
    e.op(&[AND]);
    e.constant(SAVED_FROM);
    e.op(&[GE]);
    e.branch(slot); // cfa
    past_first_granule(&mut e, covered);
    e.branch(slot); // cfa
    e.place(own);
    e.register(register, 0);
    e.skip(end);
    e.place(slot);
    e.constant(8 * u64::from(words));
    e.op(&[MINUS, DEREF]);
    e.finish(end, 0)
}
