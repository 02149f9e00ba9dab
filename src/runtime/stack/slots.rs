#![allow(unsafe_code, reason = "maps goroutine stacks")]
//! Goroutine stacks: fixed, lazily committed, each with a guard below it.
//!
//! There are five size classes. A class has a list of segments, each twice as large as the one
//! before; a segment is one `NORESERVE` mapping from which slots are allocated_slots in order. A slot is the
//! guard and above it the stack. Stacks are never unmapped: a dead goroutine keeps its stack and
//! both are used again (`pool.rs`).
//!
//! The stride of slots (stack and guard) is not a power of two on purpose: tops of stacks then
//! differ in the address bits that pick a cache set.
//!
//! Guards are page table markers (`MADV_GUARD_INSTALL`, Linux 6.13), which cost no mapping of
//! their own and stay when the memory around them is given back; older kernels get `PROT_NONE`
//! pages, each of which splits the segment. The mappings are counted then, and a stack is refused
//! at 90 % of vm.max_map_count: the rest of the process needs some, too.
//!
//! Memory is given back by `MADV_DONTNEED`, not by `MADV_FREE`: pages that are freed lazily still
//! count as resident, which is what limits of containers and people go by, and freeing them takes
//! as long.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::jit::PAGE_BYTES;
use crate::runtime::os::memory;
use crate::runtime::stack::error::{Shortage, StackError};
use crate::runtime::stack::guard::install_guard;
use crate::runtime::stack::size_class::SizeClass;

const FIRST_SEGMENT_BYTES: usize = 16 << 20;

const MAX_SEGMENT_BYTES: usize = 1 << 34;

/// Of a stack that was used deeply, so much stays for the next goroutine.
const KEPT_BYTES: usize = 4 * PAGE_BYTES;

/// A stack: usable bytes are `lo..hi`, the guard ends at `lo`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stack {
    pub(crate) lo: usize,
    pub(crate) hi: usize,
}

impl Stack {
    /// The class that it was allocated_slots for.
    #[inline]
    pub(crate) fn class(self) -> SizeClass {
        // 16 KiB is 2^14, and each class is at least four times the one before.
        let class = SizeClass(((self.hi - self.lo).trailing_zeros() - 14) as u8 / 2);
        debug_assert_eq!(class.bytes(), self.hi - self.lo);
        class
    }

    /// Where the guard begins.
    pub(crate) fn guard(self) -> usize {
        self.lo - self.class().guard_bytes()
    }

    /// Gives back what a goroutine leaves behind below `live`, if it was seen deep: the kernel
    /// takes all pages but the uppermost ones. Called when the goroutine has ended; nothing below
    /// `live` is needed.
    ///
    /// How deep it was is known from the lowest rsp that it was ever switched away from with. That
    /// costs one compare a switch and no system call for the shallow many. A goroutine that was
    /// deep between two switches only is missed, and keeps its pages until its thread has nothing
    /// to do (`pool.rs`); to see those, too, would take a system call (mincore) at each end.
    #[inline]
    pub(crate) fn decommit_below(self, lowest_sp: usize, live: usize) {
        if lowest_sp < self.hi - KEPT_BYTES {
            let end = (self.hi - KEPT_BYTES).min(live) & !(PAGE_BYTES - 1);
            decommit(self.lo, end);
        }
    }
}

/// Gives the memory of stacks back to the kernel: it reads as zeroes afterwards. Guards stay.
///
/// The range lies in segments of this file, and nothing in it is needed.
pub(crate) fn decommit(from: usize, to: usize) {
    if from < to {
        // SAFETY: pages of dead stacks, by the contract.
        unsafe { memory::decommit(from, to - from) };
    }
}

struct Segments {
    /// First byte that is not allocated_slots, and end, of the newest segment.
    at: usize,
    end: usize,
    /// Bytes of the next segment.
    next_bytes: usize,
}

static SEGMENTS: [Mutex<Segments>; SizeClass::COUNT] =
    [const { Mutex::new(Segments { at: 0, end: 0, next_bytes: FIRST_SEGMENT_BYTES }) };
        SizeClass::COUNT];

/// How many stacks were ever allocated_slots of a class.
static ALLOCATED_SLOTS: [AtomicUsize; SizeClass::COUNT] =
    [const { AtomicUsize::new(0) }; SizeClass::COUNT];

/// Carves a new stack.
pub(crate) fn allocate_slot(class: SizeClass) -> Result<Stack, StackError> {
    let stride = class.bytes() + class.guard_bytes();
    let slot = {
        let mut segments = SEGMENTS[class.index()].lock().unwrap_or_else(PoisonError::into_inner);
        if segments.end - segments.at < stride {
            grow(&mut segments, stride)?;
        }
        // The guard comes first: a slot that is refused one is there for the next attempt.
        install_guard(segments.at, class.guard_bytes())?;
        let slot = segments.at;
        segments.at += stride;
        slot
    };
    ALLOCATED_SLOTS[class.index()].fetch_add(1, Ordering::Relaxed);
    Ok(Stack { lo: slot + class.guard_bytes(), hi: slot + stride })
}

/// How many stacks of a class there are.
pub(crate) fn allocated_slots(class: SizeClass) -> usize {
    ALLOCATED_SLOTS[class.index()].load(Ordering::Relaxed)
}

fn grow(segments: &mut Segments, stride: usize) -> Result<(), StackError> {
    let mut bytes = segments.next_bytes.max(stride);
    loop {
        match memory::reserve_stacks(bytes) {
            Ok(at) => {
                segments.at = at;
                segments.end = at + bytes;
                segments.next_bytes = (bytes * 2).min(MAX_SEGMENT_BYTES);
                return Ok(());
            }
            // Where address space is limited, a smaller segment may still fit.
            Err(_) if bytes / 2 >= stride => bytes /= 2,
            Err(errno) => {
                let shortage = Shortage::of_reserving(bytes);
                return Err(StackError::Reserve { bytes, errno, shortage });
            }
        }
    }
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
        let carve_some =
            |class| (0..30).map(move |_| (class, allocate_slot(class).expect("address space")));
        let mut stacks: Vec<_> = SizeClass::all().flat_map(carve_some).collect();
        stacks.sort_by_key(|(_, stack)| stack.lo);
        for pair in stacks.windows(2) {
            assert!(pair[0].1.hi <= pair[1].1.guard());
        }
        for (class, stack) in stacks {
            assert_eq!(stack.hi - stack.lo, class.bytes());
            assert_eq!(stack.class(), class);
            // SAFETY: the stack is ours; its lowest and highest words are usable.
            unsafe {
                (stack.lo as *mut u64).write_volatile(1);
                ((stack.hi - 8) as *mut u64).write_volatile(2);
            }
        }
    }
}
