//! How to leave a frame of emitted code: what each state of a frame does to the registers of a
//! walk.
//!
//! Frames of emitted code start with `push rbp; mov rbp, rsp` and end with `leave; ret` or `pop
//! rbp; ret`. Addresses grow up the page; CFA is the canonical frame address of DWARF, the caller's
//! rsp before the call.
//!
//! ```text
//!      Bare: at entry, at `ret`    Pushed: after `push`        Linked, Complete
//!
//!       |  caller's frame   |       |  caller's frame   |       |  caller's frame   |
//!       +-------------------+       +-------------------+       +-------------------+ <- CFA
//! rsp ->|  return address   |       |  return address   |       |  return address   |
//!       +-------------------+ rsp ->|  saved rbp        | rbp ->|  saved rbp        |
//!                                   +-------------------+       |  locals           |
//!                                                         rsp ->+-------------------+
//!       rbp: the caller's           rbp: the caller's           rbp: the frame's own
//! ```
//!
//! `Lowered` is `Bare` with rsp below the red zone, in the slow path of a leaf's poll.
//!
//! The stub that preempts has a frame of its own, above which is the code that it interrupted at
//! any instruction, with its red zone between (picture: `jit/stubs/preempt`).
//!
//! No `unsafe`, and nothing that only this machine has: the file compiles on every host, and a
//! stack in a test is an array.

use crate::jit::stubs::preempt::frame;
use crate::jit::{FrameState, RED_ZONE_BYTES};
use crate::runtime::arch::registers::{Interrupted, Registers};

/// The registers of the caller of a frame of emitted code in this state. `read` reads a word of a
/// stack.
///
/// `None`: a word cannot be read, or the state is that of no frame that has a caller.
#[inline(always)]
pub(crate) fn caller(
    state: FrameState,
    at: Registers,
    read: impl Fn(usize) -> Option<usize>,
) -> Option<Registers> {
    let (cfa, fp) = match state {
        FrameState::Bare => (at.sp.wrapping_add(8), Some(at.fp)),
        FrameState::Lowered => (at.sp.wrapping_add(8 + RED_ZONE_BYTES), Some(at.fp)),
        FrameState::Pushed => (at.sp.wrapping_add(16), read(at.sp)),
        FrameState::Linked | FrameState::Complete => (at.fp.wrapping_add(16), read(at.fp)),
        FrameState::Left => return None,
    };
    let pc = read(cfa.checked_sub(8)?)?;
    Some(Registers { pc, sp: cfa, fp: fp? })
}

/// The code that a preemption stub in this state has interrupted. `anchor_fp`: the fp of the
/// anchor, as far as the walk has come. `resume_word`: reads the thread's resume word.
///
/// `None`: a word cannot be read.
pub(crate) fn interrupted(
    state: FrameState,
    at: Registers,
    anchor_fp: usize,
    resume_word: impl FnOnce() -> usize,
    read: impl Fn(usize) -> Option<usize>,
) -> Option<Interrupted> {
    let (pc, sp, fp) = match state {
        FrameState::Left => (resume_word(), at.sp, at.fp),
        FrameState::Bare => (read(at.sp)?, at.sp.wrapping_add(8 + RED_ZONE_BYTES), at.fp),
        FrameState::Pushed => {
            let pc = read(at.sp.wrapping_add(8))?;
            (pc, at.sp.wrapping_add(frame::SP), read(at.sp)?)
        }
        FrameState::Linked | FrameState::Complete | FrameState::Lowered => {
            let pc = read(at.fp.wrapping_add(frame::PC))?;
            (pc, at.fp.wrapping_add(frame::SP), read(at.fp)?)
        }
    };
    // While rbp is the frame's own, the anchor's fp tells at each instruction whether the slots
    // hold the previous anchor or the anchor itself is the previous one. Elsewhere it is that.
    let slot = |offset: isize| read(at.fp.wrapping_add_signed(offset));
    let anchor = match state.has_frame() && anchor_fp == at.fp {
        true => slot(frame::PREVIOUS_FP).zip(slot(frame::PREVIOUS_PC)),
        false => None,
    };
    Some(Interrupted { at: Registers { pc, sp, fp }, anchor })
}

/// How many of the five registers that a `Saved` or `Entry` frame keeps are in their slots, at an
/// instruction this many bytes from the start. `push rbx` has one byte, or two with a prefix; the
/// others have two.
#[cfg_attr(not(feature = "traceback"), allow(dead_code, reason = "walks of native frames"))]
pub(crate) fn saved_registers(offset_bytes: usize) -> usize {
    /// Bytes of `push rbp; mov rbp, rsp`.
    const PROLOGUE_BYTES: usize = 4;
    (offset_bytes.saturating_sub(PROLOGUE_BYTES).div_ceil(2)).min(5)
}

#[cfg(test)]
mod tests {
    use super::*;
    use FrameState::{Bare, Complete, Left, Linked, Lowered, Pushed};

    const BOTTOM: usize = 0x1000;

    fn reader(stack: &[usize]) -> impl Fn(usize) -> Option<usize> {
        |at| stack.get(at.checked_sub(BOTTOM)? / 8).copied()
    }

    /// One frame, in each state of it: the caller is always the same.
    #[test]
    fn each_state_of_a_frame_leads_to_its_caller() {
        // Words from 0x1000 up: locals, then saved rbp and return address, then the caller's frame.
        let stack = [0x11, 0x22, 0x2040, 0xcafe, 0x33, 0x44];
        let (locals, saved_rbp, at_return, cfa) = (0x1000, 0x1010, 0x1018, 0x1020);
        let expected = Registers { pc: 0xcafe, sp: cfa, fp: 0x2040 };
        for (state, sp, fp) in [
            (Bare, at_return, 0x2040),
            (Lowered, at_return - RED_ZONE_BYTES, 0x2040),
            (Pushed, saved_rbp, 0x2040),
            (Linked, saved_rbp, saved_rbp),
            (Complete, locals, saved_rbp),
        ] {
            let at = Registers { pc: 0x5000, sp, fp };
            assert_eq!(caller(state, at, reader(&stack)), Some(expected), "{state:?}");
        }
        let at = Registers { pc: 0x5000, sp: locals, fp: saved_rbp };
        assert_eq!(caller(Left, at, reader(&stack)), None);
        for outside in [usize::MAX - 7, 0x2000] {
            let at = Registers { sp: outside, fp: outside, ..at };
            for state in [Bare, Lowered, Pushed, Linked, Complete] {
                assert_eq!(caller(state, at, reader(&stack)), None, "{state:?}");
            }
        }
    }

    #[test]
    fn a_register_is_saved_after_its_push() {
        let short = [(0, 0), (4, 0), (5, 1), (7, 2), (9, 3), (11, 4), (13, 5), (100, 5)];
        let long = [(4, 0), (6, 1), (8, 2), (10, 3), (12, 4), (14, 5)];
        for (at, expected) in short.into_iter().chain(long) {
            assert_eq!(saved_registers(at), expected, "{at}");
        }
    }

    /// The frame of the stub that preempts, in each state of it: the interrupted code is always the
    /// same.
    #[test]
    fn each_state_of_a_preemption_leads_to_the_interrupted_code() {
        let mut stack = [0; 64];
        let word = |address: usize| (address - BOTTOM) / 8;
        let saved_rbp = BOTTOM + 20 * 8;
        let at_pc = saved_rbp + 8;
        let sp = at_pc + 8 + RED_ZONE_BYTES;
        stack[word(saved_rbp)] = 0x2040;
        stack[word(at_pc)] = 0xcafe;
        stack[word(saved_rbp.wrapping_add_signed(frame::PREVIOUS_FP))] = 0x2100;
        stack[word(saved_rbp.wrapping_add_signed(frame::PREVIOUS_PC))] = 0xbeef;
        let at_interruption = Registers { pc: 0xcafe, sp, fp: 0x2040 };
        let resume_word = || 0xcafe;
        for (state, sp, fp) in [
            (Left, sp, 0x2040),
            (Bare, at_pc, 0x2040),
            (Pushed, saved_rbp, 0x2040),
            (Linked, saved_rbp, saved_rbp),
            (Complete, BOTTOM, saved_rbp),
        ] {
            let at = Registers { pc: 0x5000, sp, fp };
            for (anchor_fp, anchor) in [(saved_rbp, Some((0x2100, 0xbeef))), (0x9000, None)] {
                let found = interrupted(state, at, anchor_fp, resume_word, reader(&stack));
                let anchor = anchor.filter(|_| matches!(state, Linked | Complete));
                let expected = Interrupted { at: at_interruption, anchor };
                assert_eq!(found, Some(expected), "{state:?}, anchor {anchor_fp:#x}");
            }
        }
    }
}
