//! A thread suspends a goroutine and inspects its stack, while its M comes to run it.

use std::sync::Arc;

use super::explore::{
    Body, ENDLESS, Model, Mutant, RACE, SLEEPS, Unseen, explore, see_broken, see_nothing,
    see_wrong, together,
};
use super::gmp::{G, Run};
use super::primitive::How::{Missing, Relaxed, Torn};
use super::primitive::{How, Ordering, Weak};
use super::status::{RUNNABLE, RUNNING, WAITING, transition};
use super::suspend::{Found, found};

/// The goroutine has ended.
const DEAD: u32 = 6;

/// How a goroutine runs and parks.
#[derive(Clone, Copy, PartialEq)]
enum Steps {
    Right,
    /// The stub that resumes a context leaves the saved pc.
    PcStays,
    /// The stub that saves a context writes the pc before it is done with the stack.
    PcFirst,
}

/// Requests the suspension, checks twice at most, and resumes: a `scan_stack` that gives up soon.
/// Returns what it found last.
fn inspect(g: &G) -> Found {
    g.suspend.request();
    let mut seen = found(g);
    if seen == Found::Running {
        seen = found(g);
    }
    if seen == Found::Suspended {
        let before = g.read_stack();
        assert_eq!(g.read_stack(), before);
    }
    g.resume();
    seen
}

/// One tick of a goroutine that is runnable, up to where it has parked.
fn tick(g: &G, steps: Steps) {
    g.begin_running();
    if steps == Steps::PcStays {
        g.write_stack();
    } else {
        g.resume_context();
    }
    transition(g, RUNNING, WAITING);
    if steps == Steps::PcFirst {
        g.saved_pc.store(0x1000, Ordering::Release);
        g.write_stack();
    } else {
        g.save_context();
    }
}

fn run_of(status: u32) -> Arc<Run> {
    Arc::new(Run::new(0, vec![G::new(status)]))
}

/// At the end the goroutine has parked, and is found suspended at once.
fn assert_suspended(run: &Run) {
    assert!(inspect(&run.gs[0]) == Found::Suspended, "it waits, and is not found suspended");
}

/// A goroutine has two ticks while another thread inspects it twice.
fn ticks_in(steps: Steps) {
    let run = run_of(RUNNABLE);
    let inspects: Body = {
        let run = Arc::clone(&run);
        Box::new(move || {
            let _ = [inspect(&run.gs[0]), inspect(&run.gs[0])];
        })
    };
    let runs: Body = {
        let run = Arc::clone(&run);
        Box::new(move || {
            tick(&run.gs[0], steps);
            // A goroutine on this M has readied it.
            transition(&run.gs[0], WAITING, RUNNABLE);
            tick(&run.gs[0], steps);
        })
    };
    together(vec![inspects, runs]);
    assert_suspended(&run);
}

fn ticks() {
    ticks_in(Steps::Right);
}

/// A goroutine that runs parks, is readied before it has left its stack, and stays on it.
fn picks_itself() {
    let run = run_of(RUNNING);
    let inspects: Body = {
        let run = Arc::clone(&run);
        Box::new(move || {
            inspect(&run.gs[0]);
        })
    };
    let runs: Body = {
        let run = Arc::clone(&run);
        Box::new(move || {
            let g = &run.gs[0];
            for _ in 0..2 {
                g.write_stack();
                transition(g, RUNNING, WAITING);
                g.write_stack();
                transition(g, WAITING, RUNNABLE);
                g.begin_running();
            }
            g.write_stack();
            transition(g, RUNNING, WAITING);
            g.save_context();
        })
    };
    together(vec![inspects, runs]);
    assert_suspended(&run);
}

/// A thread checks until the goroutine is suspended. The M waits if it must.
fn patient() {
    let run = run_of(RUNNABLE);
    let inspects: Body = {
        let run = Arc::clone(&run);
        Box::new(move || {
            let g = &run.gs[0];
            g.suspend.request();
            while found(g) != Found::Suspended {
                loom::thread::yield_now();
            }
            g.read_stack();
            g.resume();
        })
    };
    let runs: Body = {
        let run = Arc::clone(&run);
        Box::new(move || tick(&run.gs[0], Steps::Right))
    };
    together(vec![inspects, runs]);
    assert_suspended(&run);
}

/// A goroutine ends.
fn ends() {
    let run = run_of(RUNNABLE);
    let inspects: Body = {
        let run = Arc::clone(&run);
        Box::new(move || {
            inspect(&run.gs[0]);
        })
    };
    let runs: Body = {
        let run = Arc::clone(&run);
        Box::new(move || {
            run.gs[0].begin_running();
            run.gs[0].resume_context();
            transition(&run.gs[0], RUNNING, DEAD);
        })
    };
    together(vec![inspects, runs]);
    assert!(inspect(&run.gs[0]) == Found::Dead, "it has ended, and is found");
}

const TICKS: Model = Model {
    name: "two ticks and two inspections",
    body: ticks,
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
    name: "an inspection that waits",
    body: patient,
    preemptions: Some(3),
    least: 100,
    without: &[],
};
const ENDS: Model =
    Model { name: "a goroutine ends", body: ends, preemptions: None, least: 100, without: &[] };

#[test]
fn a_stack_that_is_inspected_does_not_move() {
    explore(TICKS);
}

#[test]
fn a_goroutine_that_stays_on_its_stack_is_not_found_suspended() {
    explore(PICKS_ITSELF);
}

#[test]
fn a_thread_that_waits_for_a_goroutine_gets_it_suspended() {
    explore(PATIENT);
}

#[test]
fn a_goroutine_that_has_ended_is_not_found() {
    explore(ENDS);
}

#[test]
fn a_saved_pc_that_stays_shows_a_moving_stack() {
    let body = || ticks_in(Steps::PcStays);
    see_wrong(Model { body, ..TICKS }, "Causality violation");
}

#[test]
fn a_pc_that_is_saved_first_shows_a_moving_stack() {
    let body = || ticks_in(Steps::PcFirst);
    see_wrong(Model { body, ..TICKS }, "Causality violation");
}

const fn suspend(function: &'static str, operation: &'static str, how: How) -> Weak {
    Weak { file: "suspend.rs", function, operation, how }
}

pub(crate) const MUTANTS: &[Mutant] = &[
    Mutant { weak: suspend("request", "heavy_fence", Missing), model: TICKS, says: RACE },
    Mutant { weak: suspend("is_requested", "light_fence", Missing), model: TICKS, says: RACE },
    Mutant { weak: suspend("is_requested", "0.load", Relaxed), model: TICKS, says: RACE },
    Mutant { weak: suspend("resume", "0.swap", Relaxed), model: TICKS, says: RACE },
    Mutant { weak: suspend("resume", "0.swap", Torn), model: TICKS, says: SLEEPS },
    Mutant {
        weak: suspend("await_resume", "status.store", Missing),
        model: PATIENT,
        says: ENDLESS,
    },
    Mutant {
        weak: suspend("await_resume", "word.compare_exchange", Torn),
        model: TICKS,
        says: SLEEPS,
    },
    Mutant { weak: suspend("found", "status.load", Relaxed), model: TICKS, says: RACE },
    Mutant { weak: suspend("found", "saved_pc.load", Relaxed), model: TICKS, says: RACE },
    Mutant {
        weak: Weak {
            file: "gmp.rs",
            function: "save_context",
            operation: "saved_pc.store",
            how: Relaxed,
        },
        model: TICKS,
        says: RACE,
    },
    Mutant {
        weak: Weak {
            file: "status.rs",
            function: "transition",
            operation: "status.store",
            how: Relaxed,
        },
        model: TICKS,
        says: RACE,
    },
    Mutant {
        weak: suspend("yield_to_suspender", "status.store", Missing),
        model: TICKS,
        says: "a transition from 2 of a goroutine in status 1",
    },
];

const SAVED: &str = "the stack is as it was when the pc was saved; all transitions are Release";

pub(crate) const UNSEEN: &[Unseen] = &[
    Unseen { weak: suspend("await_resume", "status.store", Relaxed), model: TICKS, why: SAVED },
    Unseen {
        weak: suspend("yield_to_suspender", "status.store", Relaxed),
        model: TICKS,
        why: SAVED,
    },
];

#[test]
fn suspensions_that_are_weakened_show_a_moving_stack() {
    see_broken(MUTANTS);
    see_nothing(UNSEEN);
}
