//! A model of publish, retire and lookup under loom: every order in which the memory model lets the
//! loads of readers meet the stores of the writer, up to a bound on preemptions.
//!
//! The model runs the crate's own `protocol.rs`, with loom's primitives in place of the real ones.
//! Each property has a mutant that is weakened in one memory order, and that the model must find
//! broken: so the model explores what it claims to.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering as Std};

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

#[allow(dead_code, reason = "the model has no use for every part of the protocol")]
#[path = "../../src/jit/registry/protocol.rs"]
mod protocol;

/// The primitives of `protocol.rs`, made of loom's.
mod primitive {
    use std::mem::MaybeUninit;

    use loom::cell::UnsafeCell;
    use loom::sync::atomic::AtomicUsize;
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};

    /// A cell in which loom reports a read that no happens-before orders after the write.
    pub(crate) struct Slot<D>(UnsafeCell<MaybeUninit<D>>);

    // SAFETY: loom checks each access against the one write.
    unsafe impl<D: Send + Sync> Sync for Slot<D> {}

    impl<D: Copy> Slot<D> {
        pub(crate) fn new() -> Self {
            Self(UnsafeCell::new(MaybeUninit::uninit()))
        }

        /// # Safety
        /// No other thread reads or writes the slot at the same time.
        pub(crate) unsafe fn write(&self, descriptor: D) {
            // SAFETY: the pointer is valid inside of the closure; loom checks the promise.
            self.0.with_mut(|slot| unsafe { (*slot).write(descriptor) });
        }

        /// # Safety
        /// The slot was written, and the write happens before this.
        pub(crate) unsafe fn read(&self) -> D {
            // SAFETY: the pointer is valid inside of the closure; loom fails the execution before
            // anything unwritten is read.
            self.0.with(|slot| unsafe { (*slot).assume_init() })
        }
    }

    /// The pieces are in two blocks, of one slot and of two.
    pub(crate) const FIRST_BLOCK: usize = 1;
    pub(crate) const BLOCKS: usize = 2;

    /// Where a block is: an address, so that loom explores which readers see it.
    pub(crate) struct BlockCell<D>(AtomicUsize, std::marker::PhantomData<D>);

    impl<D> BlockCell<D> {
        pub(crate) fn new() -> Self {
            Self(AtomicUsize::new(0), std::marker::PhantomData)
        }

        pub(crate) fn set(&self, block: &'static [Slot<D>]) {
            self.0.store(block.as_ptr() as usize, Ordering::Relaxed);
        }

        pub(crate) fn is_set(&self) -> bool {
            self.0.load(Ordering::Relaxed) != 0
        }

        /// # Safety
        /// The block has a slot at `index`, and was set.
        pub(crate) unsafe fn slot(&self, index: usize) -> &'static Slot<D> {
            let block = self.0.load(Ordering::Relaxed) as *const Slot<D>;
            assert!(!block.is_null(), "a reader does not see the block of a descriptor");
            // SAFETY: the model leaks its blocks, and the slot exists by the caller's promise.
            unsafe { &*block.add(index) }
        }
    }
}

use primitive::{AtomicU64, Slot};
use protocol::{BACK_MAX, ORDERS, Orders, RETIRED, Slots};

/// A descriptor that tells whether it is whole.
type Descriptor = [u64; 3];

/// Two pieces of code: granules 0 and 1, and granule 2.
const PIECES: [Piece; 2] = [
    Piece { first: 0, count: 2, flags: 0x155, slot: 0, descriptor: [11, 12, 13] },
    Piece { first: 2, count: 1, flags: 0x2aa, slot: 1, descriptor: [21, 22, 23] },
];
const GRANULES: usize = 3;

struct Piece {
    first: usize,
    count: usize,
    flags: u64,
    slot: u32,
    descriptor: Descriptor,
}

/// The tables, and what the writer tells the readers besides.
struct Table {
    words: Vec<AtomicU64>,
    slots: Slots<Descriptor>,
    /// The blocks that the writer adds.
    blocks: [Box<[Slot<Descriptor>]>; 2],
    /// The address of each piece, handed out.
    escaped: [AtomicBool; 2],
    /// The first piece was retired.
    retired: AtomicBool,
}

/// What one thread of the model does.
type Body = Box<dyn FnOnce()>;

/// The orders of one model: the protocol's, and that of handing an address out.
#[derive(Clone, Copy)]
struct Model {
    protocol: Orders,
    hand_out: Ordering,
}

const RIGHT: Model = Model { protocol: ORDERS, hand_out: Ordering::Release };

impl Table {
    fn new() -> Self {
        Self {
            words: (0..GRANULES).map(|_| AtomicU64::new(0)).collect(),
            slots: Slots::new(),
            blocks: [1, 2].map(|len| (0..len).map(|_| Slot::new()).collect()),
            escaped: [AtomicBool::new(false), AtomicBool::new(false)],
            retired: AtomicBool::new(false),
        }
    }

    fn write(&self, model: Model) {
        for (piece, escaped) in PIECES.iter().zip(&self.escaped) {
            let range = (piece.first, piece.count);
            let block = &*self.blocks[piece.slot as usize];
            assert_eq!(self.slots.missing_block(piece.slot), Some(block.len()));
            // SAFETY: the blocks live as long as the words that lead to them.
            let block = unsafe { &*std::ptr::from_ref(block) };
            self.slots.add_block(piece.slot, block);
            assert_eq!(self.slots.missing_block(piece.slot), None);
            // SAFETY: there is one writer; granules and slot are used once; its block was added.
            unsafe {
                protocol::publish(
                    &self.words,
                    &self.slots,
                    piece.slot,
                    piece.descriptor,
                    range,
                    piece.flags,
                    model.protocol,
                );
            }
            escaped.store(true, model.hand_out);
        }
        let range = (PIECES[0].first, PIECES[0].count);
        protocol::retire(&self.words, range, model.protocol);
        self.retired.store(true, Ordering::Release);
    }

    /// One lookup of a granule, and everything that must hold of its answer.
    fn read(&self, granule: usize, orders: Orders) {
        let expected = usize::from(granule >= PIECES[1].first);
        let piece = &PIECES[expected];
        // What was true before the lookup must show in it.
        let must_be_retired = expected == 0 && self.retired.load(Ordering::Acquire);
        let must_be_found = self.escaped[expected].load(Ordering::Acquire);
        let Some((word, head)) = protocol::lookup(&self.words, granule, orders) else {
            assert!(!must_be_found, "an address that was handed out is not found");
            return;
        };
        assert_eq!(head, piece.first);
        assert_eq!(word & (RETIRED - 1), piece.flags);
        assert!(expected == 0 || word & RETIRED == 0, "this was not retired");
        assert!(!must_be_retired || word & RETIRED != 0, "retired, but it does not show");
        assert_eq!(protocol::descriptor(&self.slots, word), piece.descriptor);
    }
}

/// Explores a writer and two readers. Returns the number of executions.
///
/// loom remembers only the last access to each atomic, and so does not derive every order from the
/// ones that it has executed. So the model is explored three times, and each thread comes first
/// once.
fn explore(model: Model, first: &'static [usize], second: &'static [usize]) -> usize {
    (0..3).map(|foremost| explore_order(model, [first, second], foremost)).sum()
}

fn explore_order(model: Model, readers: [&'static [usize]; 2], foremost: usize) -> usize {
    let iterations = std::sync::Arc::new(AtomicUsize::new(0));
    let count = std::sync::Arc::clone(&iterations);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(move || {
        count.fetch_add(1, Std::Relaxed);
        let table = Arc::new(Table::new());
        let reads = readers.map(|granules| -> Body {
            let table = Arc::clone(&table);
            Box::new(move || {
                for &granule in granules {
                    table.read(granule, model.protocol);
                }
            })
        });
        let writes: Body = {
            let table = Arc::clone(&table);
            Box::new(move || table.write(model))
        };
        let mut bodies: Vec<Body> = reads.into_iter().chain([writes]).collect();
        bodies.rotate_left(foremost);
        let threads: Vec<_> = bodies.into_iter().map(thread::spawn).collect();
        for thread in threads {
            thread.join().expect("a thread's failed assertion ends the model");
        }
        // After all of it: both are found, one is retired.
        for granule in 0..GRANULES {
            let (word, _) =
                protocol::lookup(&table.words, granule, model.protocol).expect("published");
            assert_eq!(word & RETIRED != 0, granule < PIECES[1].first);
        }
    });
    iterations.load(Std::Relaxed)
}

#[test]
fn a_lookup_sees_nothing_or_the_whole_and_what_escaped_is_found() {
    // One reader goes through the pieces in the order of their publication, one against it, so
    // that all granules meet all states.
    for (first, second, least) in [(&[0, 2][..], &[2, 1][..], 100_000), (&[1], &[0], 10_000)] {
        let iterations = explore(RIGHT, first, second);
        println!("readers of {first:?} and {second:?}: {iterations} executions");
        assert!(iterations >= least, "{iterations} executions are too few to mean anything");
    }
}

/// Explores a model that is wrong, and returns what loom or an assertion said about it.
fn failure_of(model: Model) -> String {
    let failed = catch_unwind(AssertUnwindSafe(|| explore(model, &[1, 0], &[2, 1])));
    let payload = failed.expect_err("the weakened mutant passes: the model is blind");
    let text = payload.downcast_ref::<String>().cloned();
    text.or_else(|| payload.downcast_ref::<&str>().map(|&s| s.into())).unwrap_or_default()
}

#[test]
fn a_relaxed_store_of_words_is_found() {
    let protocol = Orders { store: Ordering::Relaxed, ..ORDERS };
    let said = failure_of(Model { protocol, ..RIGHT });
    assert!(ways_to_miss_a_descriptor(&said), "{said}");
}

/// What is said of a reader that finds a word before the descriptor, or its block, is there.
fn ways_to_miss_a_descriptor(said: &str) -> bool {
    said.contains("Causality violation") || said.contains("does not see the block")
}

#[test]
fn a_relaxed_load_of_words_is_found() {
    let protocol = Orders { load: Ordering::Relaxed, ..ORDERS };
    let said = failure_of(Model { protocol, ..RIGHT });
    assert!(ways_to_miss_a_descriptor(&said), "{said}");
}

#[test]
fn an_address_that_escapes_by_a_relaxed_store_is_found_missing() {
    let said = failure_of(Model { hand_out: Ordering::Relaxed, ..RIGHT });
    assert!(said.contains("handed out is not found"), "{said}");
}

#[test]
fn words_keep_their_three_parts_apart() {
    for slot in [0, 1, 77, u32::MAX - 1] {
        for back in [0, 1, BACK_MAX - 1, BACK_MAX, BACK_MAX + 1, u64::MAX] {
            for flags in [0, 1, RETIRED, RETIRED | (RETIRED - 1)] {
                let word = protocol::word(slot, back, flags);
                assert_ne!(word, 0);
                assert_eq!(protocol::slot_of(word), slot as usize);
                assert_eq!(protocol::back_of(word) as u64, back.min(BACK_MAX));
                assert_eq!(word & ((1 << protocol::FLAG_BITS) - 1), flags);
            }
        }
    }
}
