//! A goroutine parks while somebody else makes it runnable.

use std::sync::Arc;

use loom::cell::UnsafeCell;

use super::callers::{Goroutine, M, Run, State};
use super::explore::{
    Body, ENDLESS, Model, Mutant, RACE, SLEEPS, explore, see_broken, see_wrong, together,
};
use super::primitive::How::{Missing, Relaxed, Torn};
use super::primitive::{AtomicUsize, How, Ordering, Weak};
use super::suspend::{RUNNABLE, RUNNING, WAITING};

/// Something that happens once, and that one goroutine waits for: as the end of another one
/// (`join.rs`), with what it leaves.
struct Event {
    state: AtomicUsize,
    result: UnsafeCell<u32>,
}

const PENDING: usize = 0;
const AWAITED: usize = 1;
const DONE: usize = 2;

// SAFETY: loom checks the accesses of the cell.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    fn new() -> Self {
        Self { state: AtomicUsize::new(PENDING), result: UnsafeCell::new(0) }
    }

    /// It happens. Returns whether somebody must be readied.
    fn happen(&self) -> bool {
        // SAFETY: loom checks that nobody else has access.
        self.result.with_mut(|result| unsafe { *result = 1 });
        self.state.swap(DONE, Ordering::AcqRel) == AWAITED
    }

    /// Makes the waiter visible. Fails if it has happened.
    fn await_it(&self) -> bool {
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        self.state.compare_exchange(PENDING, AWAITED, success, failure).is_ok()
    }

    fn result(&self) -> u32 {
        // SAFETY: loom checks that nobody writes.
        self.result.with(|result| unsafe { *result })
    }
}

/// In which order a goroutine parks.
#[derive(Clone, Copy, PartialEq)]
enum Steps {
    Right,
    /// It is visible to its waker before it waits.
    VisibleFirst,
    /// It is visible to its waker before its context is saved.
    UnsavedWhenVisible,
}

/// `gopark` of a goroutine that belongs to its thread, up to where it runs again.
fn park(run: &Run, m: &M, g: &Goroutine, event: &Event, steps: Steps) {
    let unlock = || {
        if !event.await_it() {
            // It readies itself.
            g.transition(WAITING, RUNNABLE);
            m.local.borrow_mut().push_back(g.as_ptr());
        }
    };
    if steps == Steps::VisibleFirst {
        unlock();
        g.transition(RUNNING, WAITING);
    } else {
        g.transition(RUNNING, WAITING);
        unlock();
    }
    let mut next = run.pick_next(m);
    let switches = next.is_null();
    if switches {
        g.save_context();
        next = run.find_runnable(m, State::Awake).expect("the run is not over");
    }
    assert!(std::ptr::eq(next, g), "somebody else's goroutine");
    g.transition(RUNNABLE, RUNNING);
    if switches {
        g.continue_context();
    }
    assert_eq!(event.result(), 1, "the event has not happened");
}

/// A goroutine waits for two events on its M, which has nothing else to do.
fn sticky_in(steps: Steps) {
    let run = Arc::new(Run::new(1, vec![Goroutine::new(RUNNING)]));
    let events = Arc::new([Event::new(), Event::new()]);
    let happen = |event: usize| -> Body {
        let (run, events) = (Arc::clone(&run), Arc::clone(&events));
        Box::new(move || {
            if events[event].happen() {
                // `ready`, on a thread that is not its M.
                run.gs[0].transition(WAITING, RUNNABLE);
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
    let run = Arc::new(Run::new(2, vec![Goroutine::new(RUNNING)]));
    let event = Arc::new(Event::new());
    // What an M does from then on: who runs the goroutine ends the run.
    fn schedule(run: &Run, m: &M, event: &Event) {
        while let Some(g) = run.find_runnable(m, State::Awake) {
            // SAFETY: of this run.
            let g = unsafe { &*g };
            g.transition(RUNNABLE, RUNNING);
            g.continue_context();
            assert_eq!(event.result(), 1, "the event has not happened");
            run.stop();
        }
    }
    let parks: Body = {
        let (run, event) = (Arc::clone(&run), Arc::clone(&event));
        Box::new(move || {
            let (m, g) = (&run.ms[0], &run.gs[0]);
            // `park_migratable`: on the system stack, the context is saved.
            if steps != Steps::UnsavedWhenVisible {
                g.save_context();
            }
            g.transition(RUNNING, WAITING);
            if !event.await_it() {
                g.transition(WAITING, RUNNABLE);
                run.publish(m, g);
            }
            if steps == Steps::UnsavedWhenVisible {
                g.save_context();
            }
            schedule(&run, m, &event);
        })
    };
    let readies: Body = Box::new(move || {
        let (m, g) = (&run.ms[1], &run.gs[0]);
        if event.happen() {
            g.transition(WAITING, RUNNABLE);
            run.publish(m, g);
        }
        schedule(&run, m, &event);
    });
    together(vec![parks, readies]);
}

fn migratable() {
    migratable_in(Steps::Right);
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

#[test]
fn a_goroutine_that_parks_is_woken_once() {
    explore(STICKY);
}

#[test]
fn a_migratable_goroutine_continues_elsewhere_with_its_context() {
    explore(MIGRATABLE);
}

#[test]
fn who_is_visible_before_it_waits_is_readied_in_the_wrong_state() {
    let body = || sticky_in(Steps::VisibleFirst);
    see_wrong(Model { body, ..STICKY }, "a transition from 4 of one in state 2");
}

#[test]
fn who_is_visible_before_its_context_is_saved_continues_without() {
    let body = || migratable_in(Steps::UnsavedWhenVisible);
    see_wrong(Model { body, ..MIGRATABLE }, "there is no context to continue");
}

const fn idle(function: &'static str, operation: &'static str, how: How) -> Weak {
    Weak { file: "idle.rs", function, operation, how }
}

const fn caller(function: &'static str, operation: &'static str, how: How) -> Weak {
    Weak { file: "callers.rs", function, operation, how }
}

pub(crate) const MUTANTS: &[Mutant] = &[
    Mutant { weak: idle("announce", "0.store", Missing), model: STICKY, says: ENDLESS },
    Mutant { weak: idle("announce", "heavy_fence", Missing), model: STICKY, says: SLEEPS },
    Mutant { weak: idle("announce", "heavy_fence", Missing), model: MIGRATABLE, says: SLEEPS },
    Mutant { weak: idle("end", "0.swap", Torn), model: STICKY, says: SLEEPS },
    Mutant { weak: caller("deliver", "light_fence", Missing), model: STICKY, says: SLEEPS },
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
