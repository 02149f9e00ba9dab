//! Which slabs of Gs a P has started goroutines in.
//!
//! The end of a run needs the goroutines that have not ended. Most of them are in no queue, and a
//! list of all that live would cost each start and each end. The slabs are known from the starts
//! alone: one bit, which is mostly set already. So a run that ends inspects as many Gs as it has
//! used, and not all that the process ever had.

use std::cell::Cell;

/// A set of slabs, by number. One thread owns it.
pub(crate) struct SlabSet {
    words: Cell<&'static [Cell<u64>]>,
    /// The slab that was inserted last: mostly the next one, too. `u32::MAX`: none.
    last: Cell<u32>,
}

impl SlabSet {
    pub(crate) const fn new() -> Self {
        Self { words: Cell::new(&[]), last: Cell::new(u32::MAX) }
    }

    #[inline(always)]
    pub(crate) fn insert(&self, slab: u32) {
        if self.last.get() != slab {
            self.insert_another(slab);
        }
    }

    #[inline(never)]
    fn insert_another(&self, slab: u32) {
        self.last.set(slab);
        let (word, bit) = place(slab);
        match self.words.get().get(word) {
            Some(bits) => bits.set(bits.get() | bit),
            None => self.grow_for(slab),
        }
    }

    /// The old words are leaked, which are fewer than the new ones: the owner is never freed.
    #[cold]
    fn grow_for(&self, slab: u32) {
        let (word, bit) = place(slab);
        let old = self.words.get();
        let words: Box<[Cell<u64>]> = (0..(word + 1).next_power_of_two())
            .map(|at| Cell::new(old.get(at).map_or(0, Cell::get)))
            .collect();
        words[word].set(words[word].get() | bit);
        self.words.set(Box::leak(words));
    }

    /// The slabs in the set, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> {
        self.words.get().iter().enumerate().flat_map(|(word, bits)| {
            let bits = bits.get();
            let set = (0..u64::BITS).filter(move |bit| bits >> bit & 1 != 0);
            set.map(move |bit| word as u32 * u64::BITS + bit)
        })
    }

    pub(crate) fn clear(&self) {
        self.last.set(u32::MAX);
        self.words.get().iter().for_each(|bits| bits.set(0));
    }
}

/// The word of a slab, and its bit there.
#[inline(always)]
fn place(slab: u32) -> (usize, u64) {
    ((slab / u64::BITS) as usize, 1 << (slab % u64::BITS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_inserted_is_in_it_once_and_in_order_until_it_is_cleared() {
        let set = SlabSet::new();
        let all = || set.iter().collect::<Vec<_>>();
        assert_eq!(all(), []);
        for slab in [63, 0, 64, 1000, 63, 5] {
            set.insert(slab);
        }
        assert_eq!(all(), [0, 5, 63, 64, 1000]);
        set.clear();
        assert_eq!(all(), []);
        set.insert(999);
        assert_eq!(all(), [999]);
    }
}
