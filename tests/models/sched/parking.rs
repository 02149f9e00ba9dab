//! A goroutine, or a foreign thread, parks while another thread readies it.

use std::sync::Arc;

use loom::cell::UnsafeCell;

use super::explore::{
    Body, ENDLESS, Model, Mutant, RACE, SLEEPS, explore, see_broken, see_wrong, together,
};
use super::gmp::{G, M, Run, Sleeper, State};
use super::park;
use super::primitive::How::{Missing, Relaxed, Torn};
use super::primitive::{AtomicU32, AtomicUsize, How, Ordering, Weak};
use super::status::{RUNNING, WAITING, transition};

/// Something that happens once, and that one goroutine waits for: as the end of another goroutine
/// does on `G::join`, with the result that it leaves.
struct Event {
    state: AtomicUsize,
    result: UnsafeCell<u32>,
}

const PENDING: usize = 0;
const AWAITED: usize = 1;
const DONE: usize = 2;

// SAFETY: loom checks the accesses of the cell.
unsafe impl Send for Event {}
// SAFETY: loom checks the accesses of the cell.
unsafe impl Sync for Event {}

impl Event {
    fn new() -> Self {
        Self { state: AtomicUsize::new(PENDING), result: UnsafeCell::new(0) }
    }

    /// The event happens. Returns whether the waiter must be readied.
    fn happen(&self) -> bool {
        // SAFETY: loom checks that nothing else has access.
        self.result.with_mut(|result| unsafe { *result = 1 });
        self.state.swap(DONE, Ordering::AcqRel) == AWAITED
    }

    /// Makes the waiter visible. Fails if the event has happened.
    fn register(&self) -> bool {
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        self.state.compare_exchange(PENDING, AWAITED, success, failure).is_ok()
    }

    fn result(&self) -> u32 {
        // SAFETY: loom checks that nothing writes.
        self.result.with(|result| unsafe { *result })
    }
}

/// In which order a goroutine parks, or is published.
#[derive(Clone, Copy, PartialEq)]
enum Steps {
    Right,
    /// It is visible to its waker before it waits.
    VisibleFirst,
    /// It is visible to its waker before its context is saved.
    UnsavedWhenVisible,
    /// It is queued before its fields are read.
    QueuedFirst,
}

/// Parks a goroutine that belongs to its thread, up to where it runs again.
fn park(run: &Run, m: &M, g: &G, event: &Event, steps: Steps) {
    let unlock = || {
        if !event.register() {
            // It readies itself.
            park::make_runnable(g);
            m.local.borrow_mut().push_back(g.as_ptr());
        }
    };
    if steps == Steps::VisibleFirst {
        unlock();
        transition(g, RUNNING, WAITING);
    } else {
        park::park(g, unlock);
    }
    let mut next = run.pick_next(m);
    let switches = next.is_null();
    if switches {
        g.save_context();
        next = run.find_runnable(m, State::Awake).expect("the run is not over");
    }
    assert!(std::ptr::eq(next, g), "there is no other goroutine");
    g.begin_running();
    if switches {
        g.resume_context();
    }
    assert_eq!(event.result(), 1, "the event has not happened");
}

/// A goroutine waits for two events on its M, which has nothing else to do.
fn sticky_in(steps: Steps) {
    let run = Arc::new(Run::new(1, vec![G::new(RUNNING)]));
    let events = Arc::new([Event::new(), Event::new()]);
    let happen = |event: usize| -> Body {
        let (run, events) = (Arc::clone(&run), Arc::clone(&events));
        Box::new(move || {
            if events[event].happen() {
                // On a thread that is not its M.
                park::make_runnable(&run.gs[0]);
                run.ms[0].push_remote(&run.gs[0]);
            }
        })
    };
    let others = [happen(0), happen(1)];
    let parks: Body = Box::new(move || {
        for event in events.iter() {
            park(&run, &run.ms[0], &run.gs[0], event, steps);
        }
    });
    together(others.into_iter().chain([parks]).collect());
}

fn sticky() {
    sticky_in(Steps::Right);
}

/// A migratable goroutine parks on one M, and is readied on the other one.
fn migratable_in(steps: Steps) {
    let run = Arc::new(Run::new(2, vec![G::new(RUNNING)]));
    let event = Arc::new(Event::new());
    // What an M does from then on: the one that runs the goroutine ends the run.
    fn schedule(run: &Run, m: &M, event: &Event) {
        while let Some(g) = run.find_runnable(m, State::Awake) {
            // SAFETY: of this run.
            let g = unsafe { &*g };
            g.begin_running();
            g.resume_context();
            assert_eq!(event.result(), 1, "the event has not happened");
            run.stop();
        }
    }
    let parks: Body = {
        let (run, event) = (Arc::clone(&run), Arc::clone(&event));
        Box::new(move || {
            let (m, g) = (&run.ms[0], &run.gs[0]);
            // On the system stack the context is saved.
            if steps != Steps::UnsavedWhenVisible {
                g.save_context();
            }
            park::park(g, || {
                if !event.register() {
                    park::make_runnable(g);
                    run.publish(m, g);
                }
            });
            if steps == Steps::UnsavedWhenVisible {
                g.save_context();
            }
            schedule(&run, m, &event);
        })
    };
    let readies: Body = Box::new(move || {
        let (m, g) = (&run.ms[1], &run.gs[0]);
        if event.happen() {
            park::make_runnable(g);
            if steps == Steps::QueuedFirst {
                run.enqueue(m, g);
                g.is_for_all();
            } else {
                run.publish(m, g);
            }
        }
        schedule(&run, m, &event);
    });
    together(vec![parks, readies]);
}

fn migratable() {
    migratable_in(Steps::Right);
}

/// A foreign thread waits for two events, one after the other, on its one word.
fn foreign() {
    let word = Arc::new((AtomicU32::new(0), Sleeper::new()));
    let events = Arc::new([Event::new(), Event::new()]);
    let happen = |event: usize| -> Body {
        let (word, events) = (Arc::clone(&word), Arc::clone(&events));
        Box::new(move || {
            if events[event].happen() {
                park::ready_thread(&word.0, |_| word.1.wake());
            }
        })
    };
    let others = [happen(0), happen(1)];
    let parks: Body = Box::new(move || {
        let ready = |_: &AtomicU32| {};
        for event in events.iter() {
            let unlock = || {
                if !event.register() {
                    park::ready_thread(&word.0, ready);
                }
            };
            park::park_thread(&word.0, unlock, |word_, value| word.1.wait(word_, value));
            assert_eq!(event.result(), 1, "the event has not happened");
        }
    });
    together(others.into_iter().chain([parks]).collect());
}

const STICKY: Model =
    Model { name: "park and ready", body: sticky, preemptions: Some(3), least: 1000, without: &[] };
const MIGRATABLE: Model = Model {
    name: "park and ready elsewhere",
    body: migratable,
    preemptions: Some(3),
    least: 1000,
    without: &[],
};
const FOREIGN: Model = Model {
    name: "a foreign thread parks",
    body: foreign,
    preemptions: Some(3),
    least: 50,
    without: &[],
};

#[test]
fn a_goroutine_that_parks_is_woken_once() {
    explore(STICKY);
}

#[test]
fn a_migratable_goroutine_resumes_elsewhere_with_its_context() {
    explore(MIGRATABLE);
}

#[test]
fn a_foreign_thread_that_parks_is_woken() {
    explore(FOREIGN);
}

#[test]
fn a_goroutine_that_is_visible_before_it_waits_is_readied_in_the_wrong_status() {
    let body = || sticky_in(Steps::VisibleFirst);
    see_wrong(Model { body, ..STICKY }, "a transition from 4 of a goroutine in status 2");
}

#[test]
fn a_goroutine_that_is_visible_before_its_context_is_saved_resumes_without() {
    let body = || migratable_in(Steps::UnsavedWhenVisible);
    see_wrong(Model { body, ..MIGRATABLE }, "there is no context to resume");
}

#[test]
fn a_goroutine_that_is_queued_before_its_fields_are_read_changes_them() {
    let body = || migratable_in(Steps::QueuedFirst);
    see_wrong(Model { body, ..MIGRATABLE }, RACE);
}

const fn idle(function: &'static str, operation: &'static str, how: How) -> Weak {
    Weak { file: "idle.rs", function, operation, how }
}

const fn parked(function: &'static str, operation: &'static str, how: How) -> Weak {
    Weak { file: "park.rs", function, operation, how }
}

pub(crate) const MUTANTS: &[Mutant] = &[
    Mutant { weak: idle("announce", "0.store", Missing), model: STICKY, says: ENDLESS },
    Mutant { weak: idle("announce", "heavy_fence", Missing), model: STICKY, says: SLEEPS },
    Mutant { weak: idle("announce", "heavy_fence", Missing), model: MIGRATABLE, says: SLEEPS },
    Mutant { weak: idle("end", "0.swap", Torn), model: STICKY, says: SLEEPS },
    Mutant { weak: parked("push_remote", "light_fence", Missing), model: STICKY, says: SLEEPS },
    Mutant { weak: parked("park_thread", "word.load", Relaxed), model: FOREIGN, says: RACE },
    Mutant { weak: parked("park_thread", "word.store", Missing), model: FOREIGN, says: RACE },
    Mutant { weak: parked("ready_thread", "word.store", Relaxed), model: FOREIGN, says: RACE },
    Mutant {
        weak: Weak {
            file: "inbox.rs",
            function: "push",
            operation: "0.compare_exchange_weak",
            how: Relaxed,
        },
        model: STICKY,
        says: RACE,
    },
];

#[test]
fn wake_ups_that_are_weakened_are_lost() {
    see_broken(MUTANTS);
}
