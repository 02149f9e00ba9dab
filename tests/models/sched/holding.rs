//! Somebody holds a goroutine still and looks at its stack, while its M comes to run it.

use std::sync::Arc;

use super::callers::{Goroutine, Run};
use super::explore::{
    Body, ENDLESS, Model, Mutant, RACE, SLEEPS, Unseen, explore, see_broken, see_nothing,
    see_wrong, together,
};
use super::primitive::How::{Missing, Relaxed, Torn};
use super::primitive::{How, Ordering, Weak};
use super::suspend::{Found, RUNNABLE, RUNNING, WAITING, found};

/// The goroutine has ended.
const DEAD: u32 = 6;

/// How a goroutine runs and parks.
#[derive(Clone, Copy, PartialEq)]
enum Steps {
    Right,
    /// The stub that continues a context leaves the saved pc.
    PcStays,
    /// The stub that saves a context writes the pc before it is done with the stack.
    PcFirst,
}

/// `scan_stack`: asks, looks twice at most, and lets go. Returns what it found last.
fn look(g: &Goroutine) -> Found {
    g.suspend.request();
    let mut seen = found(&g.status, &g.saved_pc);
    if seen == Found::Running {
        seen = found(&g.status, &g.saved_pc);
    }
    if seen == Found::Suspended {
        let before = g.read_stack();
        assert_eq!(g.read_stack(), before);
    }
    g.let_go();
    seen
}

/// One turn of a goroutine that is runnable, up to where it has parked.
fn turn(g: &Goroutine, steps: Steps) {
    g.begin_to_run();
    if steps == Steps::PcStays {
        g.write_stack();
    } else {
        g.continue_context();
    }
    g.transition(RUNNING, WAITING);
    if steps == Steps::PcFirst {
        g.saved_pc.store(0x1000, Ordering::Release);
        g.write_stack();
    } else {
        g.save_context();
    }
}

fn run_of(status: u32) -> Arc<Run> {
    Arc::new(Run::new(0, vec![Goroutine::new(status)]))
}

/// At the end the goroutine has parked, and is found so at once.
fn assert_still(run: &Run) {
    assert!(look(&run.gs[0]) == Found::Suspended, "it waits, and is not found still");
}

/// A goroutine has two turns while somebody looks twice.
fn turns_in(steps: Steps) {
    let run = run_of(RUNNABLE);
    let looks: Body = {
        let run = Arc::clone(&run);
        Box::new(move || {
            let _ = [look(&run.gs[0]), look(&run.gs[0])];
        })
    };
    let runs: Body = {
        let run = Arc::clone(&run);
        Box::new(move || {
            turn(&run.gs[0], steps);
            // Somebody on this M has readied it.
            run.gs[0].transition(WAITING, RUNNABLE);
            turn(&run.gs[0], steps);
        })
    };
    together(vec![looks, runs]);
    assert_still(&run);
}

fn turns() {
    turns_in(Steps::Right);
}

/// A goroutine that runs parks, is readied before it has left its stack, and stays on it.
fn picks_itself() {
    let run = run_of(RUNNING);
    let looks: Body = {
        let run = Arc::clone(&run);
        Box::new(move || {
            look(&run.gs[0]);
        })
    };
    let runs: Body = {
        let run = Arc::clone(&run);
        Box::new(move || {
            let g = &run.gs[0];
            for _ in 0..2 {
                g.write_stack();
                g.transition(RUNNING, WAITING);
                g.write_stack();
                g.transition(WAITING, RUNNABLE);
                g.begin_to_run();
            }
            g.write_stack();
            g.transition(RUNNING, WAITING);
            g.save_context();
        })
    };
    together(vec![looks, runs]);
    assert_still(&run);
}

/// Somebody looks until the goroutine is still, which its M waits for if it must.
fn patient() {
    let run = run_of(RUNNABLE);
    let looks: Body = {
        let run = Arc::clone(&run);
        Box::new(move || {
            let g = &run.gs[0];
            g.suspend.request();
            while found(&g.status, &g.saved_pc) != Found::Suspended {
                loom::thread::yield_now();
            }
            g.read_stack();
            g.let_go();
        })
    };
    let runs: Body = {
        let run = Arc::clone(&run);
        Box::new(move || turn(&run.gs[0], Steps::Right))
    };
    together(vec![looks, runs]);
    assert_still(&run);
}

/// A goroutine ends.
fn ends() {
    let run = run_of(RUNNABLE);
    let looks: Body = {
        let run = Arc::clone(&run);
        Box::new(move || {
            look(&run.gs[0]);
        })
    };
    let runs: Body = {
        let run = Arc::clone(&run);
        Box::new(move || {
            run.gs[0].begin_to_run();
            run.gs[0].continue_context();
            run.gs[0].transition(RUNNING, DEAD);
        })
    };
    together(vec![looks, runs]);
    assert!(look(&run.gs[0]) == Found::Dead, "it has ended, and is found");
}

const TURNS: Model = Model {
    name: "two turns and two looks",
    body: turns,
    preemptions: Some(3),
    least: 1000,
    without: &[],
};
const PICKS_ITSELF: Model = Model {
    name: "a goroutine picks itself",
    body: picks_itself,
    preemptions: Some(3),
    least: 500,
    without: &[],
};
const PATIENT: Model = Model {
    name: "a look that waits",
    body: patient,
    preemptions: Some(3),
    least: 100,
    without: &[],
};
const ENDS: Model =
    Model { name: "a goroutine ends", body: ends, preemptions: None, least: 100, without: &[] };

#[test]
fn a_stack_that_is_looked_at_does_not_move() {
    explore(TURNS);
}

#[test]
fn who_stays_on_its_stack_is_not_found_still() {
    explore(PICKS_ITSELF);
}

#[test]
fn who_waits_for_a_goroutine_gets_it_still() {
    explore(PATIENT);
}

#[test]
fn who_has_ended_is_not_found() {
    explore(ENDS);
}

#[test]
fn a_saved_pc_that_stays_shows_a_moving_stack() {
    let body = || turns_in(Steps::PcStays);
    see_wrong(Model { body, ..TURNS }, "Causality violation");
}

#[test]
fn a_pc_that_is_saved_first_shows_a_moving_stack() {
    let body = || turns_in(Steps::PcFirst);
    see_wrong(Model { body, ..TURNS }, "Causality violation");
}

const fn suspend(function: &'static str, operation: &'static str, how: How) -> Weak {
    Weak { file: "suspend.rs", function, operation, how }
}

const fn caller(function: &'static str, operation: &'static str, how: How) -> Weak {
    Weak { file: "callers.rs", function, operation, how }
}

pub(crate) const MUTANTS: &[Mutant] = &[
    Mutant { weak: suspend("request", "heavy_fence", Missing), model: TURNS, says: RACE },
    Mutant { weak: suspend("is_requested", "light_fence", Missing), model: TURNS, says: RACE },
    Mutant { weak: suspend("is_requested", "0.load", Relaxed), model: TURNS, says: RACE },
    Mutant { weak: suspend("resume", "0.swap", Relaxed), model: TURNS, says: RACE },
    Mutant { weak: suspend("resume", "0.swap", Torn), model: TURNS, says: SLEEPS },
    Mutant {
        weak: suspend("await_resume", "status.store", Missing),
        model: PATIENT,
        says: ENDLESS,
    },
    Mutant {
        weak: suspend("await_resume", "0.compare_exchange", Torn),
        model: TURNS,
        says: SLEEPS,
    },
    Mutant { weak: suspend("found", "status.load", Relaxed), model: TURNS, says: RACE },
    Mutant { weak: suspend("found", "saved_pc.load", Relaxed), model: TURNS, says: RACE },
    Mutant { weak: caller("save_context", "saved_pc.store", Relaxed), model: TURNS, says: RACE },
    Mutant { weak: caller("transition", "status.store", Relaxed), model: TURNS, says: RACE },
    Mutant {
        weak: caller("wait_while_suspended", "status.store", Missing),
        model: TURNS,
        says: "a transition from 2 of one in state 1",
    },
];

pub(crate) const UNSEEN: &[Unseen] = &[Unseen {
    weak: suspend("await_resume", "status.store", Relaxed),
    model: TURNS,
    why: "the stack is as it was when the pc was saved; all transitions are Release",
}];

#[test]
fn holds_that_are_weakened_show_a_moving_stack() {
    see_broken(MUTANTS);
    see_nothing(UNSEEN);
}
