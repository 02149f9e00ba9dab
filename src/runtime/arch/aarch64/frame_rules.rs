//! How to leave a frame of emitted code: what each state of a frame does to the registers of a
//! walk.
//!
//! Frames of emitted code start with `stp x29, x30, [sp, #-16]!; mov x29, sp` and end with `mov sp,
//! x29; ldp x29, x30, [sp], #16; ret`. Addresses grow up the page; CFA is the canonical frame
//! address of DWARF, the caller's sp before the call.
//!
//! ```text
//!      Bare: at entry, at `ret`    Pushed: after `stp`         Linked, Complete
//!
//!       |  caller's frame   |       |  caller's frame   |       |  caller's frame   |
//! sp -->+-------------------+       +-------------------+       +-------------------+ <- CFA
//!                                   |  saved x30        |       |  saved x30        |
//!                             sp -->|  saved x29        | x29 ->|  saved x29        |
//!                                   +-------------------+       |  locals           |
//!                                                         sp -->+-------------------+
//!       pc of the caller: x30
//!       x29: the caller's           x29: the caller's           x29: the frame's own
//! ```
//!
//! A call leaves its return address in x30 and not on the stack, and [`Registers`] has no x30. So a
//! frame in the state `Bare` has no caller to a walk. A walk finds the state only where it starts
//! at an interruption: code that calls has a complete frame, and a goroutine parks in such code.
//!
//! No `unsafe`, and nothing that only this machine has: the file compiles on every host, and a
//! stack in a test is an array.

use crate::jit::FrameState;
use crate::runtime::arch::registers::{Interrupted, Registers};

/// The registers of the caller of a frame of emitted code in this state. `read` reads a word of a
/// stack.
///
/// `None`: a word cannot be read, x30 would be needed, or the state is one that this machine does
/// not have, as long as it has no polls and no preemption.
#[inline(always)]
pub(crate) fn caller(
    state: FrameState,
    at: Registers,
    read: impl Fn(usize) -> Option<usize>,
) -> Option<Registers> {
    let pair = match state {
        FrameState::Linked | FrameState::Complete => at.fp,
        FrameState::Pushed => at.sp,
        FrameState::Bare | FrameState::Lowered | FrameState::Left => return None,
    };
    Some(Registers { pc: read(pair.checked_add(8)?)?, sp: pair.checked_add(16)?, fp: read(pair)? })
}

/// The code that a preemption stub has interrupted: `None`, since there are no such stubs here.
pub(crate) fn interrupted(
    _state: FrameState,
    _at: Registers,
    _anchor_fp: usize,
    _resume_word: impl FnOnce() -> usize,
    _read: impl Fn(usize) -> Option<usize>,
) -> Option<Interrupted> {
    None
}

/// Where the frame record that `fp` points to leads: the frame pointer and the pc of the caller.
/// All native code of this architecture that moves x29 points it to such a pair (AAPCS64, section
/// 6.4.6).
#[cfg_attr(not(feature = "traceback"), allow(dead_code, reason = "walks of native frames"))]
#[inline]
pub(crate) fn frame_record(
    fp: usize,
    read: impl Fn(usize) -> Option<usize>,
) -> Option<(usize, usize)> {
    read(fp).zip(read(fp.checked_add(8)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use FrameState::{Bare, Complete, Left, Linked, Lowered, Pushed};

    /// One frame, in each state of it: the caller is always the same.
    #[test]
    fn each_state_of_a_frame_leads_to_its_caller() {
        // Words from 0x1000 up: locals, then the saved pair, then the caller's frame.
        let stack = [0x11, 0x22, 0x2040, 0xcafe, 0x33, 0x44];
        let read = |at: usize| stack.get(at.checked_sub(0x1000)? / 8).copied();
        let (locals, pair, cfa) = (0x1000, 0x1010, 0x1020);
        let expected = Registers { pc: 0xcafe, sp: cfa, fp: 0x2040 };
        for (state, sp, fp) in
            [(Pushed, pair, 0x2040), (Linked, pair, pair), (Complete, locals, pair)]
        {
            let at = Registers { pc: 0x5000, sp, fp };
            assert_eq!(caller(state, at, read), Some(expected), "{state:?}");
        }
        let at = Registers { pc: 0x5000, sp: locals, fp: pair };
        for state in [Bare, Lowered, Left] {
            assert_eq!(caller(state, at, read), None, "{state:?}");
        }
        for outside in [usize::MAX - 7, 0x2000] {
            let at = Registers { sp: outside, fp: outside, ..at };
            for state in [Pushed, Linked, Complete] {
                assert_eq!(caller(state, at, read), None, "{state:?}");
            }
        }
    }

    #[test]
    fn a_frame_record_is_a_pair() {
        let stack = [0x2040, 0xcafe];
        let read = |at: usize| stack.get(at.checked_sub(0x1000)? / 8).copied();
        assert_eq!(frame_record(0x1000, read), Some((0x2040, 0xcafe)));
        assert_eq!(frame_record(0x1008, read), None);
        assert_eq!(frame_record(usize::MAX - 7, read), None);
    }
}
