#![allow(unsafe_code, reason = "reads stacks")]
//! The exact walk: the JIT frames of a stack, innermost first.
//!
//! # Anchors
//!
//! Rust and C frames need not keep rbp, so a chain of frame pointers is trusted inside of one *JIT
//! segment* only: from the frame where JIT code was left for native code to the entry frame through
//! which native code had entered it. The links between segments are kept by stubs:
//!
//! ```text
//!    older    | native frames                 |
//!             | entry frame: previous anchor ----> the segment before, or 0
//!             | JIT frames (rbp chain)        |      \
//!             | goroutine function's frame  <----- anchor {fp, pc} in the G
//!    younger  | native frames (not read)      |
//! ```
//!
//! * A stub that leaves JIT code stores fp and pc of its own frame in the goroutine's anchor.
//! * A stub that enters JIT code saves the previous anchor in its frame, and puts it back.
//! * A stub that deschedules code at a poll or in a signal handler saves the previous anchor too,
//!   since native code may have called the interrupted code by its bare address.
//!
//! # The cursor
//!
//! `exact_walk` is a loop over a cursor: registers (`at`), whether the pc is exact (that of an
//! interruption) or a return address, and what the walk has come through (`Past`: the anchor that
//! counts from here on). One step is:
//!
//! 1. Look the pc up. In native code the segment has ended: `past_native_caller`.
//! 2. Visit the frame.
//! 3. Most frames: read the two words at rbp. They are the caller's rbp and pc.
//! 4. All others, out of line: `step_out` by frame class and by how far the frame is made, then
//!    check that the frame pointer has grown (`older`).
//!
//! # Rules
//!
//! The walk reads the stack and the registry, takes no lock and allocates nothing: it may run in a
//! signal handler. It never reads a word outside of its `Bounds`. It does not decode the code of
//! the crate's own stubs: their emitter has reported how far the frame is at each instruction.
//!
//! The rare cases are functions of their own, never inlined, so that the path of most frames stays
//! short: the loop keeps nothing of a stub over the visit but its frame pointer.

use std::ops::ControlFlow;

use crate::jit::{FrameClass, FrameState, StubInfo, StubKind, entry_frame, lookup, lookup_return};
use crate::runtime::arch::{Interrupted, Registers, frame_rules, tls};
use crate::runtime::gmp::g::G;
use crate::runtime::os::fault::read_memory;
use crate::runtime::stack::LARGEST_BYTES;

/// More frames than any stack has: only a broken stack has as many.
const MAX_FRAMES: usize = LARGEST_BYTES / size_of::<usize>();

/// A frame of JIT code. [`jit_frames`](crate::runtime::jit_frames) visits them. It is `Copy`,
/// `Send` and `Sync`: code stays registered after its frame is gone.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct JitFrame {
    /// Where the code is: a return address, unless the code was interrupted there or the walk began
    /// there.
    pub pc: usize,
    /// What code that is.
    pub stub: StubInfo,
    /// Its frame pointer; 0 if it has no frame, or not yet, or no longer.
    pub fp: usize,
}

/// Why an exact walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WalkEnd {
    /// No older JIT frame is on the stack.
    Complete,
    /// The pc is in a stub that is between two stacks: what is older cannot be told now.
    Switching,
    /// A frame pointer or return address is not what the frame contract demands.
    Broken {
        /// Address of the frame that is wrong.
        at: usize,
    },
    /// The visitor returned [`ControlFlow::Break`].
    Stopped,
}

/// The stacks that a walk may read, as (lowest address, end): usually a goroutine's and its
/// thread's. (0, 0) stands for no stack.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    ranges: [(usize, usize); 2],
    /// The second stack may be unmapped at any time, so the kernel reads it.
    is_second_volatile: bool,
}

impl Bounds {
    pub(crate) fn new(first: (usize, usize), second: (usize, usize)) -> Self {
        Self { ranges: [first, second], is_second_volatile: false }
    }

    /// Bounds of the stacks that code of `g` can be on, where another thread may run it. That
    /// thread may end, and its stack with it; that of the goroutine stays mapped.
    pub(crate) fn of_other(g: &G) -> Self {
        Self { is_second_volatile: true, ..Self::of(g) }
    }

    /// Bounds of the stacks that goroutine code of `g` can be on, which this thread runs.
    pub(crate) fn of(g: &G) -> Self {
        let stack = g.stack.get();
        let m = g.m.load(std::sync::atomic::Ordering::Relaxed);
        // SAFETY: null, or an M, which is never freed.
        let system = unsafe { m.as_ref() }.map_or((0, 0), |m| m.system_stack.get().range());
        Self::new((stack.lo, stack.hi), system)
    }

    /// Reads two words of the first stack. `None`: they are not both in it.
    #[inline(always)]
    fn read_pair(&self, at: usize) -> Option<(usize, usize)> {
        let (lo, hi) = self.ranges[0];
        if !at.is_multiple_of(8) || at.wrapping_sub(lo) >= (hi - lo).saturating_sub(15) {
            return None;
        }
        // SAFETY: two aligned words of a stack, as in `read`.
        unsafe {
            let at = at as *const usize;
            Some((at.read_volatile(), at.add(1).read_volatile()))
        }
    }

    /// Whether an aligned word of a stack is at the address.
    pub(crate) fn holds(&self, at: usize) -> bool {
        let inside = |&(lo, hi): &(usize, usize)| at >= lo && at < hi && hi - at >= 8;
        at.is_multiple_of(8) && self.ranges.iter().any(inside)
    }

    fn is_in_first(&self, at: usize) -> bool {
        let (lo, hi) = self.ranges[0];
        (lo..hi).contains(&at)
    }

    /// Reads a word of a stack. `None`: it is not in one.
    pub(crate) fn read(&self, at: usize) -> Option<usize> {
        if !self.holds(at) {
            return None;
        }
        if self.is_second_volatile && !self.is_in_first(at) {
            let mut word = [0; size_of::<usize>()];
            return (read_memory(at, &mut word) == word.len()).then(|| usize::from_ne_bytes(word));
        }
        // SAFETY: an aligned word of a stack, which is never unmapped while it may be walked.
        // Another thread may write to it: then the value is of no use but harmless.
        Some(unsafe { (at as *const usize).read_volatile() })
    }
}

/// One step out of a JIT frame.
pub(crate) enum Out {
    /// The caller.
    Caller(Registers),
    /// Native code entered here: the previous anchor (`None`: it still is the goroutine's), and the
    /// native caller.
    Native { anchor: Option<(usize, usize)>, caller: Registers },
    /// Code that was interrupted, at any instruction, and the anchor that the goroutine had then
    /// (`None`: it still is the goroutine's).
    Interrupted { at: Registers, anchor: Option<(usize, usize)> },
    /// There is no caller.
    Root,
    /// The stub is between two stacks.
    Switching,
    /// A word that the contract demands is not in the stack.
    Broken,
}

/// How far the frame of a stub is made. `exact_pc`: the pc is that of an interruption. At a return
/// address the frame is complete, since code calls only then.
#[inline]
pub(crate) fn state_of(stub: &StubInfo, exact_pc: bool) -> FrameState {
    match exact_pc {
        true => stub.frame_state(),
        // A leaf calls nothing but the poll stub, and to walks that is an interruption.
        false if stub.frame_class() == FrameClass::Leaf => FrameState::Bare,
        false => FrameState::Complete,
    }
}

/// Leaves a JIT frame. `current`: the anchor that counts where the walk is.
#[inline(never)]
pub(crate) fn step_out(
    r: Registers,
    stub: &StubInfo,
    exact_pc: bool,
    current: (usize, usize),
    bounds: &Bounds,
) -> Out {
    let class = stub.frame_class();
    if matches!(stub.kind(), StubKind::Switch) && exact_pc {
        return Out::Switching;
    }
    let state = state_of(stub, exact_pc);
    if stub.kind() == StubKind::Preempt {
        let read = |at| bounds.read(at);
        return match frame_rules::interrupted(state, r, current.0, tls::resume_word, read) {
            Some(Interrupted { at, anchor }) => Out::Interrupted { at, anchor },
            None => Out::Broken,
        };
    }
    if class == FrameClass::Root {
        return Out::Root;
    }
    let Some(caller) = frame_rules::caller(state, r, |at| bounds.read(at)) else {
        return Out::Broken;
    };
    if stub.kind() == StubKind::Systemstack {
        // Native code calls it, and it does not change the anchor.
        return Out::Native { anchor: None, caller };
    }
    if class != FrameClass::Entry {
        return Out::Caller(caller);
    }
    // Before the slots are written, the goroutine's anchor is what they will hold. After the frame
    // is dropped, it is what they held.
    if state != FrameState::Complete {
        return Out::Native { anchor: None, caller };
    }
    let slot = |offset: i32| bounds.read(r.fp.wrapping_add_signed(offset as isize));
    match slot(entry_frame::PREVIOUS_FP).zip(slot(entry_frame::PREVIOUS_PC)) {
        Some(anchor) => Out::Native { anchor: Some(anchor), caller },
        None => Out::Broken,
    }
}

/// Where an exact walk begins.
#[derive(Clone, Copy)]
pub(crate) enum Start {
    /// At the goroutine's anchor: from native code that JIT code has called, directly or not.
    Anchor { fp: usize, pc: usize },
    /// At registers that were taken anywhere. The anchor is the goroutine's.
    Registers { at: Registers, anchor: (usize, usize) },
}

/// Visits the JIT frames of a stack, innermost first, until the visitor breaks.
#[inline]
pub(crate) fn exact_walk<V: FnMut(JitFrame) -> ControlFlow<()> + ?Sized>(
    start: Start,
    bounds: &Bounds,
    visit: &mut V,
) -> WalkEnd {
    let (mut at, mut exact_pc, anchor) = match start {
        Start::Registers { at, anchor } if lookup(at.pc).is_some() => (at, true, anchor),
        // In native code the walk begins at the anchor: younger frames are all native.
        Start::Anchor { fp, pc } | Start::Registers { anchor: (fp, pc), .. } => {
            if fp == 0 {
                return WalkEnd::Complete;
            }
            (Registers { pc, sp: 0, fp }, false, (fp, pc))
        }
    };
    let mut past = Past { anchor, interrupted: false };
    for _ in 0..MAX_FRAMES {
        let Some(stub) = stub_at(at.pc, exact_pc) else {
            match past_native_caller(at, exact_pc, &mut past, bounds) {
                Ok(older) => at = older,
                Err(end) => return end,
            }
            continue;
        };
        // Most frames: a return address into code with a plain frame, below its caller's. Nothing
        // else is kept of the stub over the visit: copies of it cost more than the walk.
        let is_plain = !exact_pc
            && matches!(stub.frame_class(), FrameClass::Standard | FrameClass::Saved)
            && stub.kind() != StubKind::Systemstack;
        let fp = if is_plain || has_frame(&stub, exact_pc) { at.fp } else { 0 };
        if visit(JitFrame { pc: at.pc, stub, fp }).is_break() {
            return WalkEnd::Stopped;
        }
        if is_plain
            && let Some((fp, pc)) = bounds.read_pair(at.fp)
            && fp > at.fp
        {
            let sp = at.fp + 16;
            at = Registers { pc, sp, fp };
            continue;
        }
        (at, exact_pc) = match older(at, exact_pc, &mut past, bounds) {
            Ok(older) => older,
            Err(end) => return end,
        };
    }
    WalkEnd::Broken { at: at.fp }
}

/// Where the walk resumes after a caller that the registry does not know. Only native code that has
/// called JIT code by its bare address may be such a caller, and only if that code was interrupted:
/// then the next segment is where the anchor was at the interruption.
#[cold]
#[inline(never)]
fn past_native_caller(
    at: Registers,
    exact_pc: bool,
    past: &mut Past,
    bounds: &Bounds,
) -> Result<Registers, WalkEnd> {
    let (fp, pc) = past.anchor;
    match std::mem::take(&mut past.interrupted) && !exact_pc {
        true if fp == 0 => Err(WalkEnd::Complete),
        true if fp >= at.sp && same_stack(fp, at.sp, bounds) => Ok(Registers { pc, sp: 0, fp }),
        _ => Err(WalkEnd::Broken { at: at.fp }),
    }
}

/// What a walk has come through. Apart from the cursor's registers, since most steps do not read
/// it.
struct Past {
    /// The anchor that counts from here on: the goroutine's, or that of an interruption.
    anchor: (usize, usize),
    /// The segment has code that was interrupted, and no entry to it was met so far.
    interrupted: bool,
}

/// The code of a frame.
#[inline(always)]
fn stub_at(pc: usize, exact_pc: bool) -> Option<StubInfo> {
    if exact_pc { lookup(pc) } else { lookup_return(pc) }
}

/// Whether the code has a frame, and rbp is its own.
#[inline(never)]
fn has_frame(stub: &StubInfo, exact_pc: bool) -> bool {
    state_of(stub, exact_pc).has_frame()
}

/// The next older frame, and whether its pc is exact. Apart from the walk, so that the path of most
/// frames is short.
#[inline(never)]
fn older(
    at: Registers,
    exact_pc: bool,
    past: &mut Past,
    bounds: &Bounds,
) -> Result<(Registers, bool), WalkEnd> {
    let Some(stub) = &stub_at(at.pc, exact_pc) else {
        return Err(WalkEnd::Broken { at: at.fp });
    };
    let has_frame = has_frame(stub, exact_pc);
    // Without a frame rbp is the caller's, which may be the anchor's already.
    let lowest = if has_frame { at.fp } else { at.sp };
    // Whether the frame pointer that was found is one of JIT code. In native code rbp may have any
    // value, and keeps it in code that native code calls until that has its own frame.
    let is_own_fp: fn(Registers) -> bool;
    let (older, interrupted) = match step_out(at, stub, exact_pc, past.anchor, bounds) {
        Out::Caller(caller) => {
            is_own_fp = |r| lookup_return(r.pc).is_some();
            (caller, false)
        }
        Out::Interrupted { at, anchor } => {
            is_own_fp = |r| lookup(r.pc).is_some_and(|stub| self::has_frame(&stub, true));
            *past = Past { anchor: anchor.unwrap_or(past.anchor), interrupted: true };
            (at, true)
        }
        Out::Native { anchor, .. } => {
            let (fp, pc) = anchor.unwrap_or(past.anchor);
            if fp == 0 {
                return Err(WalkEnd::Complete);
            }
            is_own_fp = |_| true;
            past.interrupted = false;
            (Registers { pc, sp: 0, fp }, false)
        }
        Out::Root => return Err(WalkEnd::Complete),
        Out::Switching => return Err(WalkEnd::Switching),
        Out::Broken => return Err(WalkEnd::Broken { at: at.fp }),
    };
    // Older frames of one stack lie higher: this check is what ends a walk in a circle of frames.
    let is_lower = has_frame && older.fp <= lowest && same_stack(older.fp, lowest, bounds);
    if is_lower && is_own_fp(older) {
        return Err(WalkEnd::Broken { at: older.fp });
    }
    Ok((older, interrupted))
}

/// Whether two addresses lie in the same stack of the bounds.
fn same_stack(a: usize, b: usize, bounds: &Bounds) -> bool {
    bounds.ranges.iter().any(|&(lo, hi)| (lo..hi).contains(&a) && (lo..hi).contains(&b))
}
