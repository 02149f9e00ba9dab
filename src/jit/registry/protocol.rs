#![allow(unsafe_code, reason = "reads and writes descriptors")]
//! Publish, retire and lookup, on memory that the caller owns.
//!
//! One word stands for each granule of code. Zero means that no code is there. Otherwise it holds
//! the number of the descriptor, the way back to the first granule of the same code, and flags.
//!
//! Descriptors are numbered in the order of publication. They are in blocks that double in size, so
//! that memory is as much as is used, and a slot is found by arithmetic and one load.
//!
//! The story of a stub, in time order:
//!
//! 1. the writer (one at a time: the registry's lock) adds a block where the descriptor is the
//!    first of one, and writes the descriptor;
//! 2. it stores the granule words from the last to the first with Release;
//! 3. only then does the address leave, so that a thread that runs the code, or meets its address
//!    on a stack, finds the words;
//! 4. a lookup loads one word with Acquire. It sees zero or a whole word, and through a whole
//!    word the whole descriptor, which does not change while the word stands;
//! 5. to retire is to store the words again with the RETIRED flag. The descriptor stays.
//!
//! A lookup takes no lock, so it may run in a signal handler that interrupted the writer midway.
//!
//! The primitives come from `super`: the crate hands in the real ones, the model test loom's.

use super::primitive::{AtomicU64, BLOCKS, BlockCell, FIRST_BLOCK, Ordering, Slot};

/// Low bits of a word: flags.
pub(crate) const FLAG_BITS: u32 = 18;
/// Next bits: granules back to the first one of the code, saturated.
pub(crate) const BACK_BITS: u32 = 14;
/// The largest way back; it means "go there and look again".
pub(crate) const BACK_MAX: u64 = (1 << BACK_BITS) - 1;
/// Flag: no new entry is made into this code; it is kept because frames may still return to it.
pub(crate) const RETIRED: u64 = 1 << 17;

/// The memory orders of the protocol, in one place so that the model can weaken them.
#[derive(Clone, Copy)]
pub(crate) struct Orders {
    /// Stores of words by publish and retire.
    pub(crate) store: Ordering,
    /// The load of a lookup.
    pub(crate) load: Ordering,
}

/// The orders that are right.
pub(crate) const ORDERS: Orders = Orders { store: Ordering::Release, load: Ordering::Acquire };

/// Makes a word.
pub(crate) fn word(slot: u32, back: u64, flags: u64) -> u64 {
    debug_assert!(flags < 1 << FLAG_BITS);
    (u64::from(slot) + 1) << 32 | back.min(BACK_MAX) << FLAG_BITS | flags
}

/// The descriptor number of a word that is not zero.
pub(crate) fn slot_of(word: u64) -> usize {
    ((word >> 32) - 1) as usize
}

/// The way back of a word.
pub(crate) fn back_of(word: u64) -> usize {
    (word >> FLAG_BITS & BACK_MAX) as usize
}

/// The descriptors of a region.
pub(crate) struct Slots<D: 'static>([BlockCell<D>; BLOCKS]);

impl<D> Slots<D> {
    pub(crate) fn new() -> Self {
        Self(std::array::from_fn(|_| BlockCell::new()))
    }

    /// The block of a slot, and its place in it. Block `k` has `FIRST_BLOCK << k` slots.
    #[inline(always)]
    fn place(slot: usize) -> (usize, usize) {
        let at = slot + FIRST_BLOCK;
        let block = (at.ilog2() - FIRST_BLOCK.ilog2()) as usize;
        (block, at - (FIRST_BLOCK << block))
    }

    /// How many slots the block has that must be added before `slot` is used. `None`: it is there.
    pub(crate) fn missing_block(&self, slot: u32) -> Option<usize> {
        let (block, _) = Self::place(slot as usize);
        (!self.0[block].is_set()).then_some(FIRST_BLOCK << block)
    }

    /// Adds the block that [`Self::missing_block`] has told of. The caller holds the lock.
    pub(crate) fn add_block(&self, slot: u32, block: &'static [Slot<D>]) {
        self.0[Self::place(slot as usize).0].set(block);
    }

    /// # Safety
    /// 1. The block of the slot was added, which happens before this.
    #[inline(always)]
    unsafe fn slot(&self, slot: usize) -> &'static Slot<D> {
        let (block, index) = Self::place(slot);
        // SAFETY: 1. is the caller's promise; `place` returns an index within the block.
        unsafe { self.0[block].slot(index) }
    }
}

/// Publishes code that covers `count` granules from `first` on.
///
/// # Safety
///
/// 1. The caller holds the registry's lock.
/// 2. The granules are zero and descriptor `slot` was never published.
/// 3. The block of the slot was added, by this thread or before the lock was taken.
pub(crate) unsafe fn publish<D: Copy>(
    words: &[AtomicU64],
    slots: &Slots<D>,
    slot: u32,
    descriptor: D,
    (first, count): (usize, usize),
    flags: u64,
    orders: Orders,
) {
    // SAFETY: by 1 and 2 no other writer and no reader of this slot exists. By 3 its block does.
    unsafe { slots.slot(slot as usize).write(descriptor) };
    for back in (0..count).rev() {
        words[first + back].store(word(slot, back as u64, flags), orders.store);
    }
}

/// Marks the code that starts at granule `first` as retired. The caller holds the lock.
pub(crate) fn retire(words: &[AtomicU64], (first, count): (usize, usize), orders: Orders) {
    for at in (first..first + count).rev() {
        let old = words[at].load(Ordering::Relaxed);
        words[at].store(old | RETIRED, orders.store);
    }
}

/// The word of a granule and the first granule of its code; `None` where no code is.
#[inline(always)]
pub(crate) fn lookup(words: &[AtomicU64], granule: usize, orders: Orders) -> Option<(u64, usize)> {
    let found = words.get(granule)?.load(orders.load);
    if found == 0 {
        return None;
    }
    let back = back_of(found);
    if back as u64 == BACK_MAX {
        return Some((found, far_head(words, granule - back, orders)?));
    }
    Some((found, granule - back))
}

#[cold]
#[inline(never)]
fn far_head(words: &[AtomicU64], mut head: usize, orders: Orders) -> Option<usize> {
    loop {
        // The words before were stored later than this one, but earlier than the address escaped.
        let earlier = words[head].load(orders.load);
        if earlier == 0 {
            return None;
        }
        let back = back_of(earlier);
        head -= back;
        if back as u64 != BACK_MAX {
            return Some(head);
        }
    }
}

/// Copies the descriptor of a word that a lookup returned.
pub(crate) fn descriptor<D: Copy>(slots: &Slots<D>, word: u64) -> D {
    // SAFETY: the word was loaded with Acquire after its Release store, which follows the write
    // of the descriptor, and of the address of its block; nothing writes to the slot again.
    unsafe { slots.slot(slot_of(word)).read() }
}
