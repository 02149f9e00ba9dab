//! Run queues and inboxes: what goes in comes out, once, with what was written to it before.

use std::sync::{Arc, Mutex};

use loom::cell::UnsafeCell;

use super::explore::{
    Body, ENDLESS, Model, Mutant, RACE, Unseen, explore, see_broken, see_nothing, together,
};
use super::inbox::{Inbox, Linked};
use super::primitive::How::{Relaxed, Torn};
use super::primitive::{How, Weak};
use super::runq::{RunQueue, Stolen};

/// Something to queue. loom reports two accesses that no happens-before orders.
pub(crate) struct Item {
    state: UnsafeCell<State>,
    link: UnsafeCell<*mut Item>,
}

const NOTHING: &str = "nothing comes out";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    New,
    Written,
    Taken,
}

// SAFETY: loom checks the accesses of the cells.
unsafe impl Send for Item {}
// SAFETY: loom checks the accesses of the cells.
unsafe impl Sync for Item {}

impl Item {
    fn several(count: usize) -> Arc<Vec<Self>> {
        let new = || Self {
            state: UnsafeCell::new(State::New),
            link: UnsafeCell::new(std::ptr::null_mut()),
        };
        Arc::new((0..count).map(|_| new()).collect())
    }

    fn change(&self, from: State, to: State, otherwise: &str) {
        // SAFETY: loom checks that nothing else has access.
        self.state.with_mut(|state| unsafe {
            assert!(*state == from, "{otherwise}: {:?}", *state);
            *state = to;
        });
    }

    /// Writes to the item, which is queued next.
    fn written(&self) -> *mut Self {
        self.change(State::New, State::Written, "used twice");
        std::ptr::from_ref(self).cast_mut()
    }

    /// The thread that gets an item writes to it.
    fn take(this: *mut Self) {
        assert!(!this.is_null(), "{NOTHING}");
        // SAFETY: of this model's items, which live as long as it.
        unsafe { (*this).change(State::Written, State::Taken, "comes out as it must not") };
    }

    fn assert_all_taken(items: &[Self]) {
        for item in items {
            // SAFETY: all other threads have ended.
            let state = item.state.with(|state| unsafe { *state });
            assert!(state == State::Taken, "an item is lost");
        }
    }
}

impl Linked for Item {
    unsafe fn set_link(this: *mut Self, next: *mut Self) {
        // SAFETY: an item of this model, and the caller's, which loom checks.
        unsafe { (*this).link.with_mut(|link| *link = next) };
    }

    unsafe fn link(this: *mut Self) -> *mut Self {
        // SAFETY: an item of this model, and the caller's, which loom checks.
        unsafe { (*this).link.with(|link| *link) }
    }
}

/// The queues of three Ms, and what goes through them.
struct Queues<const SLOTS: usize> {
    of: [RunQueue<Item, SLOTS>; 3],
    items: Arc<Vec<Item>>,
}

impl<const SLOTS: usize> Queues<SLOTS> {
    fn new(items: usize) -> Arc<Self> {
        let of = std::array::from_fn(|_| RunQueue::new());
        Arc::new(Self { of, items: Item::several(items) })
    }

    /// Steals once, and takes the first item.
    fn steal(&self, from: usize, to: usize) -> bool {
        let stolen = self.of[from].steal_into(&self.of[to]);
        if let Some(Stolen { first, count }) = &stolen {
            assert!(*count as usize <= SLOTS / 2, "more than half");
            Item::take(*first);
        }
        stolen.is_some()
    }

    fn take_all(&self, of: usize) {
        loop {
            match self.of[of].pop() {
                item if item.is_null() => break,
                item => Item::take(item),
            }
        }
    }

    /// Pushes an item. While there is no room the owner makes some, by `make_room`.
    fn push(&self, item: usize, make_room: impl Fn()) {
        let item = self.items[item].written();
        while self.of[0].push(item).is_err() {
            make_room();
        }
    }

    fn finish(&self) {
        (0..self.of.len()).for_each(|queue| self.take_all(queue));
        assert!(self.of.iter().all(RunQueue::is_empty), "not empty");
        assert!(self.of.iter().all(|queue| queue.room() == SLOTS), "room is lost");
        Item::assert_all_taken(&self.items);
    }
}

/// Two thieves against an owner whose two slots are used again and again.
fn wrap_around() {
    let queues = Queues::<2>::new(3);
    let [one, other, owner] = [(); 3].map(|()| Arc::clone(&queues));
    together(vec![
        Box::new(move || {
            one.steal(0, 1);
        }),
        Box::new(move || {
            other.steal(0, 2);
        }),
        Box::new(move || {
            for item in 0..3 {
                owner.push(item, || {
                    let oldest = owner.of[0].pop();
                    if !oldest.is_null() {
                        Item::take(oldest);
                    }
                });
            }
            owner.take_all(0);
        }),
    ]);
    queues.finish();
}

/// A thief steals from the owner, and another one from both.
fn second_hand() {
    let queues = Queues::<4>::new(4);
    let [one, other, owner] = [(); 3].map(|()| Arc::clone(&queues));
    together(vec![
        Box::new(move || {
            one.steal(0, 1);
        }),
        Box::new(move || {
            if !other.steal(1, 2) {
                other.steal(0, 2);
            }
        }),
        Box::new(move || {
            (0..4).for_each(|item| owner.push(item, || panic!("there is room")));
            owner.take_all(0);
        }),
    ]);
    queues.finish();
}

/// The owner's queue is full, and the older half of it goes elsewhere while a thief steals.
fn spill() {
    let queues = Queues::<2>::new(3);
    let [one, other, owner] = [(); 3].map(|()| Arc::clone(&queues));
    together(vec![
        Box::new(move || {
            one.steal(0, 1);
        }),
        Box::new(move || {
            other.steal(0, 2);
        }),
        Box::new(move || {
            for item in 0..3 {
                owner.push(item, || {
                    owner.of[0].take_half(Item::take);
                });
            }
        }),
    ]);
    queues.finish();
}

/// The owner takes from its queue until what was in it at some time has left, while thieves steal.
/// A goroutine that yields after a backlog relies on it.
fn positions() {
    let queues = Queues::<4>::new(4);
    let [one, other, owner] = [(); 3].map(|()| Arc::clone(&queues));
    together(vec![
        Box::new(move || {
            one.steal(0, 1);
        }),
        Box::new(move || {
            other.steal(0, 2);
        }),
        Box::new(move || {
            let queue = &owner.of[0];
            (0..2).for_each(|item| owner.push(item, || panic!("there is room")));
            let tail = queue.tail_position();
            owner.push(2, || panic!("there is room"));
            while !queue.has_passed(tail) {
                let oldest = queue.pop();
                if !oldest.is_null() {
                    Item::take(oldest);
                }
            }
            // At most what was pushed afterwards is left.
            assert!(queue.room() >= 3, "what was there before has not left");
            owner.push(3, || panic!("there is room"));
            owner.take_all(0);
            assert!(queue.has_passed(queue.tail_position()), "nothing is left");
        }),
    ]);
    queues.finish();
}

const RING: Model = Model {
    name: "a ring that wraps around",
    body: wrap_around,
    preemptions: Some(2),
    least: 1000,
    without: &[],
};
const SECOND_HAND: Model = Model {
    name: "stolen twice",
    body: second_hand,
    preemptions: Some(2),
    least: 1000,
    without: &[],
};
const SPILL: Model =
    Model { name: "the older half", body: spill, preemptions: Some(2), least: 1000, without: &[] };

const POSITIONS: Model =
    Model { name: "positions", body: positions, preemptions: Some(2), least: 300, without: &[] };

#[test]
fn what_was_in_a_queue_is_known_to_have_left() {
    explore(POSITIONS);
}

#[test]
fn what_wraps_around_in_a_ring_comes_out_once() {
    explore(RING);
}

#[test]
fn what_is_stolen_twice_comes_out_once() {
    explore(SECOND_HAND);
}

#[test]
fn what_spills_comes_out_once() {
    explore(SPILL);
}

const fn runq(function: &'static str, operation: &'static str, how: How) -> Weak {
    Weak { file: "runq.rs", function, operation, how }
}

pub(crate) const RUN_QUEUE_MUTANTS: &[Mutant] = &[
    Mutant { weak: runq("push", "tail.store", Relaxed), model: SECOND_HAND, says: NOTHING },
    Mutant { weak: runq("pop", "head.compare_exchange_weak", Relaxed), model: RING, says: ENDLESS },
    Mutant { weak: runq("pop", "head.compare_exchange_weak", Torn), model: RING, says: RACE },
    Mutant {
        weak: runq("take_half", "head.compare_exchange", Relaxed),
        model: SPILL,
        says: ENDLESS,
    },
    Mutant { weak: runq("take_half", "head.compare_exchange", Torn), model: SPILL, says: RACE },
    Mutant { weak: runq("steal_into", "head.load", Relaxed), model: RING, says: ENDLESS },
    Mutant { weak: runq("steal_into", "tail.load", Relaxed), model: SECOND_HAND, says: NOTHING },
    Mutant {
        weak: runq("steal_into", "head.compare_exchange", Relaxed),
        model: RING,
        says: ENDLESS,
    },
    Mutant { weak: runq("steal_into", "head.compare_exchange", Torn), model: RING, says: RACE },
    Mutant {
        weak: runq("steal_into", "to.tail.store", Relaxed),
        model: SECOND_HAND,
        says: NOTHING,
    },
];

/// The owner's loads of the head: a thread that took slots has read them before the owner writes to
/// them.
const READ_FIRST: &str = "loom delays no load past a later store of its thread";

pub(crate) const RUN_QUEUE_UNSEEN: &[Unseen] = &[
    Unseen { weak: runq("push", "head.load", Relaxed), model: RING, why: READ_FIRST },
    Unseen { weak: runq("pop", "head.load", Relaxed), model: RING, why: READ_FIRST },
    Unseen { weak: runq("take_half", "head.load", Relaxed), model: SPILL, why: READ_FIRST },
    Unseen { weak: runq("room", "head.load", Relaxed), model: RING, why: READ_FIRST },
    Unseen { weak: runq("is_empty", "head.load", Relaxed), model: RING, why: READ_FIRST },
    Unseen {
        weak: runq("is_empty", "tail.load", Relaxed),
        model: RING,
        why: "a thread that relies on others' pushes crosses a fence before",
    },
];

#[test]
fn run_queues_that_are_weakened_break() {
    see_broken(RUN_QUEUE_MUTANTS);
    see_nothing(RUN_QUEUE_UNSEEN);
}

/// Two threads push two items each, and the owner takes them meanwhile.
fn pushed() {
    let items = Item::several(4);
    let inbox = Arc::new(Inbox::new());
    assert!(inbox.is_empty());
    let push = |first: usize| -> Body {
        let (items, inbox) = (Arc::clone(&items), Arc::clone(&inbox));
        Box::new(move || {
            for item in &items[first..first + 2] {
                // SAFETY: the item is this model's, and this thread's until here.
                unsafe { inbox.push(item.written()) };
            }
        })
    };
    let taken = Arc::new(Mutex::new(Vec::new()));
    let take = {
        let (items, inbox, taken) = (Arc::clone(&items), Arc::clone(&inbox), Arc::clone(&taken));
        move || {
            if !inbox.is_empty() {
                inbox.drain(|item| {
                    Item::take(item);
                    let is_it = |candidate: &Item| std::ptr::eq(candidate, item);
                    let number = items.iter().position(is_it).expect("one of them");
                    taken.lock().expect("one at a time").push(number);
                });
            }
        }
    };
    let take_meanwhile = take.clone();
    together(vec![
        push(0),
        push(2),
        Box::new(move || {
            take_meanwhile();
            take_meanwhile();
        }),
    ]);
    take();
    Item::assert_all_taken(&items);
    // What a run abandons.
    let left = Item::several(1);
    // SAFETY: the item is this model's, and this thread's until here.
    unsafe { inbox.push(left[0].written()) };
    inbox.clear();
    assert!(inbox.is_empty());
    let taken = taken.lock().expect("one at a time");
    let at = |item| taken.iter().position(|&taken| taken == item);
    assert!(at(0) < at(1) && at(2) < at(3), "not oldest first");
}

const INBOX: Model =
    Model { name: "an inbox", body: pushed, preemptions: Some(2), least: 1000, without: &[] };

#[test]
fn what_is_pushed_is_drained_once_and_oldest_first() {
    explore(INBOX);
}

const fn inbox(function: &'static str, operation: &'static str, how: How) -> Weak {
    Weak { file: "inbox.rs", function, operation, how }
}

pub(crate) const INBOX_MUTANTS: &[Mutant] = &[
    Mutant { weak: inbox("push", "0.compare_exchange_weak", Relaxed), model: INBOX, says: RACE },
    Mutant { weak: inbox("push", "0.compare_exchange_weak", Torn), model: INBOX, says: "is lost" },
    Mutant { weak: inbox("drain", "0.swap", Relaxed), model: INBOX, says: RACE },
    Mutant { weak: inbox("drain", "0.swap", Torn), model: INBOX, says: "comes out as it must not" },
];

#[test]
fn inboxes_that_are_weakened_break() {
    see_broken(INBOX_MUTANTS);
}
