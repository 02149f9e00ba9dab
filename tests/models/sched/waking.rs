//! Ms fall asleep while others publish work: none of it is left to Ms that sleep, and a burst of it
//! wakes one M, which wakes the next one.

use std::sync::Arc;

use super::explore::{
    Body, Model, Mutant, SLEEPS, Unseen, explore, see_broken, see_nothing, together,
};
use super::gmp::{G, Run, State};
use super::primitive::How::{Missing, Relaxed, Torn};
use super::primitive::{How, Weak};
use super::status::RUNNABLE;

/// A run with Ms, and goroutines that can run on any of them.
fn run(ms: usize, gs: usize) -> Arc<Run> {
    Arc::new(Run::new(ms, (0..gs).map(|_| G::new(RUNNABLE)).collect()))
}

/// The thread of an M that runs a goroutine, which publishes others and then computes for ever.
fn publisher(run: &Arc<Run>, m: usize, gs: std::ops::Range<usize>) -> Body {
    let run = Arc::clone(run);
    Box::new(move || run.gs[gs].iter().for_each(|g| run.publish(&run.ms[m], g)))
}

/// Brings an M to this state.
fn begin_in(run: &Run, m: usize, state: State) {
    match state {
        State::Awake => {}
        State::Spinning => assert!(run.idle.start_spinning(run.ms.len()), "no other M is spinning"),
        State::Sleeping => {
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
        unsafe { (*g).resume_context() };
    })
}

/// One M publishes two goroutines at once, and two Ms sleep.
fn burst() {
    let run = run(3, 2);
    together(vec![
        idler(&run, 1, State::Sleeping),
        idler(&run, 2, State::Sleeping),
        publisher(&run, 0, 0..2),
    ]);
}

/// One M publishes a goroutine while another one stops searching.
fn last_check() {
    let run = run(2, 1);
    together(vec![idler(&run, 1, State::Awake), publisher(&run, 0, 0..1)]);
}

/// The same, and the sleep of the other one reaches a limit first.
fn limited() {
    let gs = vec![G::new(RUNNABLE)];
    let run = Arc::new(Run { sleeps_time_out: true, ..Run::new(2, gs) });
    together(vec![idler(&run, 1, State::Awake), publisher(&run, 0, 0..1)]);
}

/// One M publishes two goroutines, and of two Ms one sleeps and one is about to.
fn on_the_way() {
    let run = run(3, 2);
    together(vec![
        idler(&run, 1, State::Awake),
        idler(&run, 2, State::Sleeping),
        publisher(&run, 0, 0..2),
    ]);
}

/// Two Ms publish a goroutine each, and two sleep.
fn two_publishers() {
    let run = run(4, 2);
    together(vec![
        idler(&run, 1, State::Sleeping),
        idler(&run, 2, State::Sleeping),
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

/// One M publishes a goroutine, a spinning one finds another one, and one sleeps. None falls
/// asleep: so this does not need the light fence, which is no fence of the processor where there is
/// membarrier(2).
fn last_find() {
    let run = run(3, 2);
    run.ms[1].runq.push(run.gs[0].as_ptr()).expect("there is room");
    together(vec![
        idler(&run, 1, State::Spinning),
        idler(&run, 2, State::Sleeping),
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
    let others = [leaves(1, State::Sleeping), leaves(2, State::Awake)];
    let stops: Body = Box::new(move || run.stop());
    together(others.into_iter().chain([stops]).collect());
}

const BURST: Model =
    Model { name: "a burst", body: burst, preemptions: Some(2), least: 1000, without: &[] };
const LAST_CHECK: Model =
    Model { name: "a last check", body: last_check, preemptions: None, least: 200, without: &[] };
const LIMITED: Model = Model {
    name: "a sleep that reaches its limit",
    body: limited,
    preemptions: None,
    least: 200,
    without: &[],
};
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
    name: "the last spinning M finds something",
    body: last_find,
    preemptions: Some(3),
    least: 100,
    without: &[idle("has_sleepers", "light_fence", Missing)],
};
const END: Model =
    Model { name: "the end", body: end, preemptions: Some(2), least: 500, without: &[] };

#[test]
fn a_burst_wakes_one_after_the_other() {
    explore(BURST);
}

#[test]
fn an_m_checks_once_more_before_it_sleeps() {
    explore(LAST_CHECK);
}

#[test]
fn an_m_whose_sleep_reaches_its_limit_is_still_woken() {
    explore(LIMITED);
}

#[test]
fn an_m_on_its_way_to_sleep_gets_no_work_lost() {
    explore(ON_THE_WAY);
}

#[test]
fn two_publishers_rely_on_one_spinning_m() {
    explore(TWO_PUBLISHERS);
}

#[test]
fn two_ms_on_their_way_to_sleep_get_no_work_lost() {
    explore(TWO_ON_THE_WAY);
}

#[test]
fn the_last_spinning_m_wakes_another_one() {
    explore(LAST_FIND);
}

#[test]
fn the_end_finds_ms_that_fall_asleep() {
    explore(END);
}

const fn idle(function: &'static str, operation: &'static str, how: How) -> Weak {
    Weak { file: "idle.rs", function, operation, how }
}

pub(crate) const SLEEP_MUTANTS: &[Mutant] = &[
    Mutant { weak: idle("announce", "heavy_fence", Missing), model: LAST_CHECK, says: SLEEPS },
    Mutant { weak: idle("announce", "heavy_fence", Missing), model: END, says: SLEEPS },
    Mutant { weak: idle("has_sleepers", "light_fence", Missing), model: LAST_CHECK, says: SLEEPS },
    Mutant {
        weak: idle("prepare_sleep", "sleeping.fetch_add", Torn),
        model: TWO_ON_THE_WAY,
        says: SLEEPS,
    },
    Mutant { weak: idle("stop", "heavy_fence", Missing), model: END, says: SLEEPS },
    Mutant { weak: idle("stop", "stopping.store", Missing), model: END, says: SLEEPS },
];

pub(crate) const SPINNING_MUTANTS: &[Mutant] = &[
    Mutant { weak: idle("choose", "fence", Missing), model: LAST_FIND, says: SLEEPS },
    Mutant { weak: idle("stop_spinning", "fence", Missing), model: LAST_FIND, says: SLEEPS },
    Mutant { weak: idle("stop_spinning", "fence", Missing), model: BURST, says: SLEEPS },
    Mutant {
        weak: idle("choose", "spinning.compare_exchange", Torn),
        model: TWO_PUBLISHERS,
        says: "two are woken to search",
    },
    Mutant {
        weak: idle("start_spinning", "spinning.fetch_add", Torn),
        model: ON_THE_WAY,
        says: SLEEPS,
    },
    // An M that stays awake for work and is not counted leaves other work to an M that sleeps.
    Mutant {
        weak: idle("stay_awake", "spinning.fetch_add", Missing),
        model: ON_THE_WAY,
        says: SLEEPS,
    },
];

/// Of counts and of the words that Ms sleep on.
const FENCED: &str = "what must be seen is so by the fences; the orders are for `check_deadlock`";

const LEAVES: &str = "an M that leaves reads nothing that the end has written";

pub(crate) const UNSEEN: &[Unseen] = &[
    Unseen { weak: idle("announce", "0.store", Relaxed), model: LAST_CHECK, why: FENCED },
    Unseen { weak: idle("end", "0.swap", Relaxed), model: BURST, why: FENCED },
    Unseen { weak: idle("is_parked", "0.load", Relaxed), model: LAST_CHECK, why: FENCED },
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
        model: LAST_CHECK,
        why: FENCED,
    },
    Unseen { weak: idle("leave_sleep", "sleeping.fetch_sub", Relaxed), model: BURST, why: FENCED },
    Unseen { weak: idle("leave_sleep", "wakes.fetch_add", Relaxed), model: BURST, why: FENCED },
    Unseen { weak: idle("stop", "stopping.store", Relaxed), model: END, why: FENCED },
    Unseen { weak: idle("sleep_until_work", "stopping.load", Relaxed), model: END, why: FENCED },
    Unseen { weak: idle("is_stopping", "stopping.load", Relaxed), model: END, why: LEAVES },
];

#[test]
fn ms_that_are_weakened_sleep_over_work() {
    see_broken(SLEEP_MUTANTS);
}

#[test]
fn spinning_ms_that_are_weakened_leave_work_to_none() {
    see_broken(SPINNING_MUTANTS);
}

#[test]
fn counts_are_ordered_by_fences() {
    see_nothing(UNSEEN);
}
