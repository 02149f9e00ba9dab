#![allow(unsafe_code, reason = "commits and decommits memory of stacks")]
//! Address space for goroutine stacks: segments, and slots in them.
//!
//! # Layout
//!
//! Each size class has segments of its own. A segment is one `NORESERVE` mapping, from which slots
//! are allocated in order of their addresses. When the newest segment has no room for another slot,
//! the next one is reserved, twice as large, up to 16 GiB. Where address space is limited
//! (RLIMIT_AS) a segment takes a quarter of what is left at most.
//!
//! A segment is inaccessible at first, and becomes usable in steps that double. What is
//! inaccessible does not count against RLIMIT_DATA or strict overcommit, and takes no memory where
//! the process locks all of it (mlockall).
//!
//! ```text
//!              ^ addresses
//!   hi  -------+--------------------+-- end of the slot, start of the next slot's guard
//!              |  stack             |
//!              |   committed        |  pages that were touched
//!              |--- lowest sp ------|
//!              |   not committed    |  reads as zeroes
//!   lo  -------+--------------------+
//!              |  guard             |  an access faults: `fault/overflow.rs`
//!              |                    |
//!  guard() ----+--------------------+-- start of the slot, end of the stack before
//!
//!   stride = hi - guard(), the same for all slots of a class
//! ```
//!
//! # Rules
//!
//! * **A slot is never freed and never moves.** A dead goroutine keeps its stack, and both are used
//!   again (`gmp/pools.rs`). So an address in a stack stays in that stack, and a walk that reads a
//!   stack of another thread never reads unmapped memory.
//! * **A stride is no power of two.** Otherwise the tops of all stacks of a class, which every
//!   switch touches, would have the same low address bits, and would meet in a few sets of the
//!   cache. `SizeClass::guard_bytes` adds a page where stack and guard make a power of two.
//! * **Memory is decommitted by MADV_DONTNEED, not by MADV_FREE.** Pages that are freed lazily
//!   still count as resident, which is what limits of containers and monitoring see, and freeing
//!   them takes as long.
//! * **A stack is decommitted after its goroutine has ended**, and not where its result lies until
//!   that was taken.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::instrument;
use crate::jit::{PAGE_BYTES, Shortage, address_space_left};
use crate::runtime::os::memory;
use crate::runtime::stack::error::StackError;
use crate::runtime::stack::guard::install_guard;
use crate::runtime::stack::size_class::SizeClass;

/// Bytes of the first segment of a class.
const FIRST_SEGMENT_BYTES: usize = 16 << 20;

/// Bytes of the largest segments.
const MAX_SEGMENT_BYTES: usize = 1 << 34;

/// The least and the most of a segment that becomes usable at once, unless a slot is larger.
const USABLE_STEP_BYTES: (usize, usize) = (1 << 20, 64 << 20);

/// What stays committed of a stack that was used deeply, for the next goroutine.
const KEPT_BYTES: usize = 4 * PAGE_BYTES;

/// A stack: usable bytes are `lo..hi`, and the guard ends at `lo`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stack {
    pub(crate) lo: usize,
    pub(crate) hi: usize,
}

/// The bounds of a stack that other threads read while they are set. They may get `lo` of one stack
/// and `hi` of another.
pub(crate) struct AtomicStack {
    lo: AtomicUsize,
    hi: AtomicUsize,
}

impl AtomicStack {
    /// No stack.
    pub(crate) fn new() -> Self {
        Self { lo: AtomicUsize::new(0), hi: AtomicUsize::new(0) }
    }

    #[inline]
    pub(crate) fn get(&self) -> Stack {
        Stack { lo: self.lo.load(Ordering::Relaxed), hi: self.hi.load(Ordering::Relaxed) }
    }

    pub(crate) fn set(&self, Stack { lo, hi }: Stack) {
        self.lo.store(lo, Ordering::Relaxed);
        self.hi.store(hi, Ordering::Relaxed);
    }
}

impl Stack {
    /// Its lowest address and its end.
    pub(crate) fn range(self) -> (usize, usize) {
        (self.lo, self.hi)
    }

    /// The class that its slot is of.
    #[inline]
    pub(crate) fn class(self) -> SizeClass {
        // 16 KiB is 2^14, and each class is at least four times the one before.
        let class = SizeClass(((self.hi - self.lo).trailing_zeros() - 14) as u8 / 2);
        debug_assert_eq!(class.bytes(), self.hi - self.lo);
        class
    }

    /// Where the guard begins, and with it the slot.
    pub(crate) fn guard(self) -> usize {
        self.lo - self.class().guard_bytes()
    }

    /// Decommits the stack of a goroutine that has ended, if it was seen to be deep: all pages
    /// below `live` but the uppermost ones. Nothing below `live` is needed.
    ///
    /// The depth is known from the lowest rsp that the goroutine was ever switched away from with.
    /// That costs one compare a switch, and no system call where goroutines are shallow, as most
    /// are. A goroutine that was deep only between two switches is missed, and keeps its pages
    /// until its thread is idle (`gmp/pools.rs`). To see those too would take a system call
    /// (mincore) at the end of each goroutine.
    #[inline]
    pub(crate) fn decommit_below(self, lowest_sp: usize, live: usize) {
        if lowest_sp < self.hi - KEPT_BYTES {
            let end = (self.hi - KEPT_BYTES).min(live) & !(PAGE_BYTES - 1);
            decommit(self.lo, end);
        }
    }
}

/// Decommits memory of stacks: it reads as zeroes afterwards. Guards stay.
///
/// The range lies in segments of this file, and nothing in it is needed.
pub(crate) fn decommit(from: usize, to: usize) {
    if from < to {
        // SAFETY: 1. and 2. by the contract: the pages are in segments, which `grow` has reserved,
        // and are not needed.
        unsafe { memory::decommit(from, to - from) };
    }
}

/// The segments of a class, of which only the newest one has free room.
struct Segments {
    /// Where the newest segment begins.
    start: usize,
    /// Where the next slot goes in the newest segment.
    at: usize,
    /// End of what is usable of the newest segment.
    usable: usize,
    /// End of the newest segment.
    end: usize,
    /// Bytes of the next segment.
    next_bytes: usize,
}

/// The segments of each class.
///
/// Invariant: `at..end` is reserved and no part of a slot, `at..usable` can be accessed. Slots lie
/// before `at`, in this segment and in older ones, and are never taken back.
static SEGMENTS: [Mutex<Segments>; SizeClass::COUNT] = [const {
    Mutex::new(Segments { start: 0, at: 0, usable: 0, end: 0, next_bytes: FIRST_SEGMENT_BYTES })
}; SizeClass::COUNT];

/// How many slots were allocated of each class. It only grows, after the slot is usable.
static ALLOCATED_SLOTS: [AtomicUsize; SizeClass::COUNT] =
    [const { AtomicUsize::new(0) }; SizeClass::COUNT];

/// Allocates a slot: a new stack, with its guard.
pub(crate) fn allocate_slot(class: SizeClass) -> Result<Stack, StackError> {
    let stride = class.bytes() + class.guard_bytes();
    let slot = {
        let mut segments = SEGMENTS[class.index()].lock().unwrap_or_else(PoisonError::into_inner);
        if segments.end - segments.at < stride {
            grow(&mut segments, stride)?;
        }
        if segments.usable - segments.at < stride {
            make_usable(&mut segments, stride)?;
        }
        // The guard comes first: a slot that is refused one is there for the next attempt.
        install_guard(segments.at, class.guard_bytes())?;
        let slot = segments.at;
        segments.at += stride;
        slot
    };
    ALLOCATED_SLOTS[class.index()].fetch_add(1, Ordering::Relaxed);
    let stack = Stack { lo: slot + class.guard_bytes(), hi: slot + stride };
    instrument::new_stack(stack.lo, stack.hi);
    Ok(stack)
}

/// How many stacks of a class there are, used or not.
pub(crate) fn allocated_slots(class: SizeClass) -> usize {
    ALLOCATED_SLOTS[class.index()].load(Ordering::Relaxed)
}

/// Reserves the next segment of a class, with room for one slot at least.
fn grow(segments: &mut Segments, stride: usize) -> Result<(), StackError> {
    let mut bytes = segments.next_bytes.max(stride);
    if let Some(left) = address_space_left() {
        bytes = bytes.min((left / 4).next_multiple_of(PAGE_BYTES)).max(stride);
    }
    loop {
        match memory::reserve_stacks(bytes) {
            Ok(at) => {
                (segments.start, segments.at, segments.usable) = (at, at, at);
                segments.end = at + bytes;
                segments.next_bytes = (bytes * 2).min(MAX_SEGMENT_BYTES);
                return Ok(());
            }
            // Where address space is limited, a smaller segment may fit.
            Err(_) if bytes / 2 >= stride => bytes = (bytes / 2).next_multiple_of(PAGE_BYTES),
            Err(errno) => return Err(refused(bytes, errno, false)),
        }
    }
}

/// Makes room for one slot at least usable, in a segment that has it.
fn make_usable(segments: &mut Segments, stride: usize) -> Result<(), StackError> {
    let (least, most) = USABLE_STEP_BYTES;
    let needed = segments.at + stride - segments.usable;
    let step = (segments.usable - segments.start).clamp(least, most);
    let mut bytes = step.max(needed).min(segments.end - segments.usable);
    loop {
        // SAFETY: 1. the range is in the newest segment, and slots, with guards, lie before it.
        match unsafe { memory::commit_stacks(segments.usable, bytes) } {
            Ok(()) => {
                segments.usable += bytes;
                return Ok(());
            }
            // Where memory is limited, as much as one slot needs may fit.
            Err(_) if bytes > needed => bytes = needed,
            Err(errno) => return Err(refused(bytes, errno, true)),
        }
    }
}

/// The error of memory that the kernel has refused. `is_writable`: it would have become writable.
fn refused(bytes: usize, errno: i32, is_writable: bool) -> StackError {
    StackError::Reserve { bytes, errno, shortage: Shortage::of(errno, bytes, is_writable) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::stack::size_class::GUARD_BYTES;

    #[test]
    fn classes_cover_sizes() {
        for (bytes, class) in
            [(0, 16 << 10), (16 << 10, 16 << 10), (16385, 64 << 10), (8 << 20, 8 << 20)]
        {
            assert_eq!(SizeClass::for_bytes(bytes).map(SizeClass::bytes), Some(class));
        }
        assert_eq!(SizeClass::for_bytes((8 << 20) + 1), None);
        assert_eq!(SizeClass::for_bytes(usize::MAX), None);
        let all: Vec<_> = SizeClass::all().collect();
        assert_eq!(all.len(), SizeClass::COUNT);
        for pair in all.windows(2) {
            assert_eq!(pair[0].next(), Some(pair[1]));
        }
        assert_eq!(all[4].next(), None);
        for class in all {
            let stride = class.bytes() + class.guard_bytes();
            assert!(!stride.is_power_of_two() && stride.is_multiple_of(PAGE_BYTES));
            assert!(class.guard_bytes() >= GUARD_BYTES);
            let stack = Stack { lo: PAGE_BYTES, hi: PAGE_BYTES + class.bytes() };
            assert_eq!(stack.class(), class);
        }
    }

    #[test]
    fn stacks_do_not_overlap_and_can_be_written() {
        let some_of =
            |class| (0..30).map(move |_| (class, allocate_slot(class).expect("address space")));
        let mut stacks: Vec<_> = SizeClass::all().flat_map(some_of).collect();
        stacks.sort_by_key(|(_, stack)| stack.lo);
        for pair in stacks.windows(2) {
            assert!(pair[0].1.hi <= pair[1].1.guard());
        }
        for (class, stack) in stacks {
            assert_eq!(stack.hi - stack.lo, class.bytes());
            assert_eq!(stack.class(), class);
            // SAFETY: no goroutine has the stack; its lowest and highest words are usable.
            unsafe {
                (stack.lo as *mut u64).write_volatile(1);
                ((stack.hi - 8) as *mut u64).write_volatile(2);
            }
        }
    }
}
