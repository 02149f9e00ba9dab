//! Explores models, right ones and their mutants, and judges the outcome.

use std::any::Any;
use std::cell::Cell;
use std::panic;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use super::primitive::{self, Weak};

std::thread_local! {
    /// Whether panics of this thread are what is expected of it.
    static IS_MUTANT: Cell<bool> = const { Cell::new(false) };
    /// Which thread of the model comes first.
    static FIRST: Cell<usize> = const { Cell::new(0) };
    /// How many threads the model has.
    static THREADS: Cell<usize> = const { Cell::new(0) };
}

/// What one thread of a model does.
pub(crate) type Body = Box<dyn FnOnce()>;

/// Runs the threads of a model to their ends.
///
/// loom searches for orders that differ from one that it has executed, but remembers only the last
/// access to each atomic: from an execution in which one thread reads before another one reads and
/// writes, it does not derive the one in which it reads afterwards. So a model is explored once for
/// each of its threads, which comes first then.
pub(crate) fn together(bodies: Vec<Body>) {
    THREADS.set(bodies.len());
    let mut bodies = bodies;
    let first = FIRST.get() % bodies.len();
    bodies.rotate_left(first);
    let threads: Vec<_> = bodies.into_iter().map(loom::thread::spawn).collect();
    for thread in threads {
        thread.join().expect("a failure ends the model");
    }
}

/// Hundreds of reports of models that fail as they should would hide one that should not.
fn keep_mutants_quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !IS_MUTANT.get() {
                report(info);
            }
        }));
    });
}

/// A model with its bound on preemptions: how often, in one execution, a thread is stopped that
/// could run on.
#[derive(Clone, Copy)]
pub(crate) struct Model {
    pub(crate) name: &'static str,
    pub(crate) body: fn(),
    pub(crate) preemptions: Option<usize>,
    /// Fewer executions than that would mean that it does not explore what it claims to.
    pub(crate) least: usize,
    /// What is weaker than in the source, and must not matter.
    pub(crate) without: &'static [Weak],
}

/// A weakened operation, and what a model says that runs with it.
pub(crate) struct Mutant {
    pub(crate) weak: Weak,
    pub(crate) model: Model,
    pub(crate) says: &'static str,
}

/// What loom says of a mutant that fails by a data race.
pub(crate) const RACE: &str = "Causality violation";
/// A thread sleeps that no other thread wakes.
pub(crate) const SLEEPS: &str = "deadlock";
/// A loop reads the same old values again and again. On a machine they become new at some time.
pub(crate) const ENDLESS: &str = "Model exceeded maximum number of branches";

/// How much of a model is explored, for each thread that comes first.
#[derive(Clone, Copy)]
enum Limit {
    /// All of it.
    None,
    Executions(usize),
    Time(Duration),
}

/// A mutant that has not failed by then does not fail. No time, which a busy machine may not have.
const MUTANT_LIMIT: Limit = Limit::Executions(100_000);
/// How long something is explored that must not matter.
const SAME_LIMIT: Limit = Limit::Time(Duration::from_millis(500));

/// loom checks its limits each time that it has made this many executions.
const CHECKPOINT_EXECUTIONS: usize = 500;

fn check(model: Model, limit: Limit) -> usize {
    model.without.iter().copied().for_each(primitive::weaken);
    FIRST.set(0);
    let mut executions = 0;
    loop {
        executions += check_order(model, limit);
        FIRST.set(FIRST.get() + 1);
        if FIRST.get() >= THREADS.get() {
            return executions;
        }
    }
}

fn check_order(model: Model, limit: Limit) -> usize {
    let executions = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&executions);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = model.preemptions;
    builder.checkpoint_interval = CHECKPOINT_EXECUTIONS;
    // Not what the environment says of them.
    (builder.max_permutations, builder.max_duration) = match limit {
        Limit::None => (None, None),
        Limit::Executions(most) => (Some(most), None),
        Limit::Time(longest) => (None, Some(longest)),
    };
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        (model.body)();
    });
    executions.load(Ordering::Relaxed)
}

/// Explores all executions of a model that is right.
pub(crate) fn explore(model: Model) {
    keep_mutants_quiet();
    let executions = check(model, Limit::None);
    println!("{}: {executions} executions", model.name);
    assert!(executions >= model.least, "{executions} are too few to mean anything: {}", model.name);
}

/// Explores a model that is wrong. Returns what loom or an assertion says about it, or how many
/// executions have passed.
fn failure_of(model: Model, weak: Option<Weak>, limit: Limit) -> Result<String, usize> {
    keep_mutants_quiet();
    // A failure leaves loom in the middle of an execution: this thread is not used again.
    let thread = std::thread::spawn(move || {
        IS_MUTANT.set(true);
        weak.into_iter().for_each(primitive::weaken);
        let executions = check(model, limit);
        assert!(weak.is_none() || primitive::hits() > 0, "the operation is not part of the model");
        executions
    });
    match thread.join() {
        Ok(executions) => Err(executions),
        Err(payload) => Ok(text_of(&*payload)),
    }
}

fn text_of(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().cloned();
    text.or_else(|| payload.downcast_ref::<&str>().map(|&s| s.into())).unwrap_or_default()
}

/// Checks that each mutant fails, and by what.
pub(crate) fn see_broken(mutants: &[Mutant]) {
    let mut wrong = Vec::new();
    for &Mutant { weak, model, says } in mutants {
        match failure_of(model, Some(weak), MUTANT_LIMIT) {
            Ok(said) if said.contains(says) => {}
            Ok(said) => wrong.push(format!("{weak:?} in {}: {said:?}, not {says:?}", model.name)),
            Err(n) => wrong.push(format!("{weak:?} in {}: passes {n} times", model.name)),
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), mutants.len(), wrong.join("\n"));
}

/// Checks that a model whose steps are wrong fails, and by what.
pub(crate) fn see_wrong(model: Model, says: &str) {
    match failure_of(model, None, MUTANT_LIMIT) {
        Ok(said) => assert!(said.contains(says), "{}: {said:?}, not {says:?}", model.name),
        Err(n) => panic!("{}: passes {n} times: the model is blind", model.name),
    }
}

/// A weakened operation that no model finds, and why the source has it.
pub(crate) struct Unseen {
    pub(crate) weak: Weak,
    pub(crate) model: Model,
    pub(crate) why: &'static str,
}

/// Checks that operations which no model finds are indeed not found.
pub(crate) fn see_nothing(unseen: &[Unseen]) {
    for &Unseen { weak, model, why } in unseen {
        if let Ok(said) = failure_of(model, Some(weak), SAME_LIMIT) {
            panic!("{weak:?} in {} is seen: {said:?}, and not: {why}", model.name);
        }
    }
}
