//! Ms fall asleep while others publish work: none of it is left to Ms that sleep, and a burst of
//! it wakes one M, which wakes the next one.

use std::sync::Arc;

use super::callers::{Goroutine, Run, State};
use super::explore::{
    Body, Model, Mutant, SLEEPS, Unseen, explore, see_broken, see_nothing, see_wrong, together,
};
use super::primitive::How::{Missing, Relaxed, Torn};
use super::primitive::{How, Weak};
use super::suspend::RUNNABLE;

/// A run with Ms and goroutines that can run on any of them.
fn run(ms: usize, gs: usize) -> Arc<Run> {
    Arc::new(Run::new(ms, (0..gs).map(|_| Goroutine::new(RUNNABLE)).collect()))
}

/// The thread of an M that runs a goroutine, which publishes others and then computes for ever.
fn publisher(run: &Arc<Run>, m: usize, gs: std::ops::Range<usize>) -> Body {
    let run = Arc::clone(run);
    Box::new(move || run.gs[gs].iter().for_each(|g| run.publish(&run.ms[m], g)))
}

/// Makes it so that the M has come to this state.
fn begin_in(run: &Run, m: usize, state: State) {
    match state {
        State::Awake => {}
        State::Looks => assert!(run.idle.start_spinning(run.ms.len()), "nobody else looks"),
        State::Sleeps => {
            run.idle.prepare_sleep(&run.ms[m].parking);
        }
    }
}

/// The thread of an M that finds a goroutine, which then computes for ever.
fn idler(run: &Arc<Run>, m: usize, state: State) -> Body {
    begin_in(run, m, state);
    let run = Arc::clone(run);
    Box::new(move || {
        let g = run.find_runnable(&run.ms[m], state).expect("the run is not over");
        // SAFETY: of this run.
        unsafe { (*g).continue_context() };
    })
}

/// One M publishes two goroutines at once, and two Ms sleep.
fn burst() {
    let run = run(3, 2);
    together(vec![
        idler(&run, 1, State::Sleeps),
        idler(&run, 2, State::Sleeps),
        publisher(&run, 0, 0..2),
    ]);
}

/// One M publishes a goroutine while another one gives up looking.
fn last_look() {
    let run = run(2, 1);
    together(vec![idler(&run, 1, State::Awake), publisher(&run, 0, 0..1)]);
}

/// One M publishes two goroutines, and of two Ms one sleeps and one is about to.
fn on_the_way() {
    on_the_way_in(false);
}

fn on_the_way_in(forgets_who_looks: bool) {
    let gs = (0..2).map(|_| Goroutine::new(RUNNABLE)).collect();
    let run = Arc::new(Run { forgets_who_looks, ..Run::new(3, gs) });
    together(vec![
        idler(&run, 1, State::Awake),
        idler(&run, 2, State::Sleeps),
        publisher(&run, 0, 0..2),
    ]);
}

/// Two Ms publish a goroutine each, and two sleep.
fn two_publishers() {
    let run = run(4, 2);
    together(vec![
        idler(&run, 1, State::Sleeps),
        idler(&run, 2, State::Sleeps),
        publisher(&run, 0, 0..1),
        publisher(&run, 3, 1..2),
    ]);
}

/// One M publishes two goroutines, and two are about to sleep.
fn two_on_the_way() {
    let run = run(3, 2);
    together(vec![
        idler(&run, 1, State::Awake),
        idler(&run, 2, State::Awake),
        publisher(&run, 0, 0..2),
    ]);
}

/// One M publishes a goroutine, one that looks finds another one, and one sleeps. Nobody falls
/// asleep: so this does not need the light fence, which is no fence of the processor where there is
/// membarrier(2).
fn last_find() {
    let run = run(3, 2);
    run.ms[1].runq.push(run.gs[0].as_ptr()).expect("there is room");
    together(vec![
        idler(&run, 1, State::Looks),
        idler(&run, 2, State::Sleeps),
        publisher(&run, 0, 1..2),
    ]);
}

/// The run ends while one M sleeps and another one is about to.
fn end() {
    let run = run(3, 0);
    let leaves = |m: usize, state: State| -> Body {
        begin_in(&run, m, state);
        let run = Arc::clone(&run);
        Box::new(move || assert!(run.find_runnable(&run.ms[m], state).is_none(), "from nowhere"))
    };
    let others = [leaves(1, State::Sleeps), leaves(2, State::Awake)];
    let stops: Body = Box::new(move || run.stop());
    together(others.into_iter().chain([stops]).collect());
}

const BURST: Model =
    Model { name: "a burst", body: burst, preemptions: Some(2), least: 1000, without: &[] };
const LAST_LOOK: Model =
    Model { name: "a last look", body: last_look, preemptions: None, least: 200, without: &[] };
const ON_THE_WAY: Model = Model {
    name: "on the way to sleep",
    body: on_the_way,
    preemptions: Some(1),
    least: 1000,
    without: &[],
};
const TWO_PUBLISHERS: Model = Model {
    name: "two publishers",
    body: two_publishers,
    preemptions: Some(1),
    least: 1000,
    without: &[],
};
const TWO_ON_THE_WAY: Model = Model {
    name: "two on the way to sleep",
    body: two_on_the_way,
    preemptions: Some(1),
    least: 1000,
    without: &[],
};
const LAST_FIND: Model = Model {
    name: "the last one who looks finds something",
    body: last_find,
    preemptions: Some(3),
    least: 100,
    without: &[idle("someone_sleeps", "light_fence", Missing)],
};
const END: Model =
    Model { name: "the end", body: end, preemptions: Some(2), least: 500, without: &[] };

#[test]
fn a_burst_wakes_one_after_the_other() {
    explore(BURST);
}

#[test]
fn an_m_looks_once_more_before_it_sleeps() {
    explore(LAST_LOOK);
}

#[test]
fn an_m_on_its_way_to_sleep_gets_no_work_lost() {
    explore(ON_THE_WAY);
}

#[test]
fn two_who_publish_rely_on_one_who_looks() {
    explore(TWO_PUBLISHERS);
}

#[test]
fn two_ms_on_their_way_to_sleep_get_no_work_lost() {
    explore(TWO_ON_THE_WAY);
}

#[test]
fn the_last_one_who_looks_wakes_another_one() {
    explore(LAST_FIND);
}

#[test]
fn the_end_finds_who_falls_asleep() {
    explore(END);
}

#[test]
fn an_m_that_does_not_look_on_leaves_work_to_one_that_sleeps() {
    let body = || on_the_way_in(true);
    see_wrong(Model { body, ..ON_THE_WAY }, SLEEPS);
}

const fn idle(function: &'static str, operation: &'static str, how: How) -> Weak {
    Weak { file: "idle.rs", function, operation, how }
}

pub(crate) const SLEEP_MUTANTS: &[Mutant] = &[
    Mutant { weak: idle("announce", "heavy_fence", Missing), model: LAST_LOOK, says: SLEEPS },
    Mutant { weak: idle("announce", "heavy_fence", Missing), model: END, says: SLEEPS },
    Mutant { weak: idle("someone_sleeps", "light_fence", Missing), model: LAST_LOOK, says: SLEEPS },
    Mutant {
        weak: idle("prepare_sleep", "sleeping.fetch_add", Torn),
        model: TWO_ON_THE_WAY,
        says: SLEEPS,
    },
    Mutant {
        weak: Weak { file: "callers.rs", function: "stop", operation: "heavy_fence", how: Missing },
        model: END,
        says: SLEEPS,
    },
];

pub(crate) const LOOK_MUTANTS: &[Mutant] = &[
    Mutant { weak: idle("choose", "fence", Missing), model: LAST_FIND, says: SLEEPS },
    Mutant { weak: idle("stop_spinning", "fence", Missing), model: LAST_FIND, says: SLEEPS },
    Mutant { weak: idle("stop_spinning", "fence", Missing), model: BURST, says: SLEEPS },
    Mutant {
        weak: idle("choose", "spinning.compare_exchange", Torn),
        model: TWO_PUBLISHERS,
        says: "two are woken to look",
    },
    Mutant {
        weak: idle("start_spinning", "spinning.fetch_add", Torn),
        model: ON_THE_WAY,
        says: SLEEPS,
    },
];

/// Of counts and of the words that Ms sleep on.
const FENCED: &str = "what must be seen is so by the fences; the orders are for `check_deadlock`";

pub(crate) const UNSEEN: &[Unseen] = &[
    Unseen { weak: idle("announce", "0.store", Relaxed), model: LAST_LOOK, why: FENCED },
    Unseen { weak: idle("end", "0.swap", Relaxed), model: BURST, why: FENCED },
    Unseen { weak: idle("is_parked", "0.load", Relaxed), model: LAST_LOOK, why: FENCED },
    Unseen { weak: idle("exchange", "0.compare_exchange", Relaxed), model: BURST, why: FENCED },
    Unseen {
        weak: idle("choose", "spinning.compare_exchange", Relaxed),
        model: BURST,
        why: FENCED,
    },
    Unseen {
        weak: idle("start_spinning", "spinning.fetch_add", Relaxed),
        model: ON_THE_WAY,
        why: FENCED,
    },
    Unseen {
        weak: idle("stop_spinning", "spinning.fetch_sub", Relaxed),
        model: BURST,
        why: FENCED,
    },
    Unseen {
        weak: idle("stay_awake", "spinning.fetch_add", Relaxed),
        model: ON_THE_WAY,
        why: FENCED,
    },
    Unseen {
        weak: idle("prepare_sleep", "sleeping.fetch_add", Relaxed),
        model: LAST_LOOK,
        why: FENCED,
    },
    Unseen { weak: idle("leave_sleep", "sleeping.fetch_sub", Relaxed), model: BURST, why: FENCED },
    Unseen { weak: idle("leave_sleep", "wakes.fetch_add", Relaxed), model: BURST, why: FENCED },
];

#[test]
fn ms_that_are_weakened_sleep_over_work() {
    see_broken(SLEEP_MUTANTS);
}

#[test]
fn ms_that_are_weakened_rely_on_nobody() {
    see_broken(LOOK_MUTANTS);
}

#[test]
fn counts_are_ordered_by_fences() {
    see_nothing(UNSEEN);
}
