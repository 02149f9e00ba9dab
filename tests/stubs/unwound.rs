//! Walks by the process's unwinder at the traps of `support::step`.
//!
//! [`record`] is for the hook of a step, which runs in the handler: it neither allocates nor waits.

use std::sync::Mutex;
use support::shadow;

use footbridge::jit::{StubKind, lookup};
use support::step::{MAX_FRAMES, Trap};

/// A piece of code on the stack.
pub type Piece = (StubKind, &'static str);

/// The frames of emitted code that libgcc finds from an instruction of a stub.
#[derive(Clone, Copy)]
pub struct Unwound {
    /// An address in each, and rbp there.
    frames: [(usize, usize); MAX_FRAMES],
    len: usize,
    /// The last frame of all is one of them: the root of a stack, or a stub that has no caller.
    ends_in_jit: bool,
}

const MAX_WALKS: usize = 1 << 15;

/// One for each trap in a stub, from [`start`] to [`finish`].
static ALL: Mutex<Vec<Unwound>> = Mutex::new(Vec::new());

/// The traps that follow are recorded.
pub fn start() {
    *ALL.lock().expect("no panic while it is held") = Vec::with_capacity(MAX_WALKS);
}

/// What was recorded.
pub fn finish() -> Vec<Unwound> {
    std::mem::take(&mut *ALL.lock().expect("no panic while it is held"))
}

/// Unwinds from a trap, if it is one in a stub.
pub fn record(pc: usize) {
    let Ok(mut all) = ALL.try_lock() else {
        return;
    };
    if all.len() == all.capacity() || lookup(pc).is_none() {
        return;
    }
    let mut unwound = Unwound { frames: [(0, 0); MAX_FRAMES], len: 0, ends_in_jit: false };
    shadow::walk_from(pc, |frames| {
        // The caller of a root is a zero.
        for frame in frames.iter().filter(|frame| frame.pc != 0) {
            let at = if unwound.len == 0 { frame.pc } else { frame.pc - 1 };
            unwound.ends_in_jit = lookup(at).is_some();
            if unwound.ends_in_jit {
                if let Some(slot) = unwound.frames.get_mut(unwound.len) {
                    *slot = (at, frame.rbp());
                }
                unwound.len += 1;
            }
        }
    });
    all.push(unwound);
}

impl Unwound {
    /// Compares with what is expected, and with the frame pointers that the exact walk of the same
    /// trap knows. Returns what is wrong.
    pub fn difference(&self, trap: &Trap, expected: &[Piece]) -> Option<String> {
        let piece = |pc| lookup(pc).map(|stub| (stub.kind(), stub.name()));
        let frames = &self.frames[..self.len.min(MAX_FRAMES)];
        let found: Vec<_> = frames.iter().filter_map(|frame| piece(frame.0)).collect();
        // A pc of the exact walk may be that of an anchor.
        let mut exact = trap.frames().iter().zip(trap.fps()).filter(|(_, fp)| **fp != 0);
        let has_fps = exact.all(|(&pc, &fp)| {
            let is_cut_short = expected.len() == 1;
            is_cut_short || frames.iter().any(|frame| frame.1 == fp && piece(frame.0) == piece(pc))
        });
        let is_right = found == expected && has_fps && self.ends_in_jit;
        (!is_right).then(|| {
            let stub = lookup(trap.pc).expect("a trap in a stub");
            format!("{stub:?}: {found:?}, frame pointers {has_fps}")
        })
    }
}

/// Compares the walks with the traps that they were recorded at.
pub fn assert_right(traps: &[Trap], walks: &[Unwound], expected: impl Fn(Piece) -> Vec<Piece>) {
    let in_stubs: Vec<_> = traps.iter().filter(|trap| trap.in_stub).collect();
    assert_eq!(in_stubs.len(), walks.len());
    let mut wrong = Vec::new();
    for (trap, walk) in in_stubs.into_iter().zip(walks) {
        let stub = lookup(trap.pc).expect("the trap found it");
        wrong.extend(walk.difference(trap, &expected((stub.kind(), stub.name()))));
    }
    wrong.dedup();
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}
