//! Models under loom of what threads of the scheduler do to each other: run queues and inboxes
//! (`queues`), parking and readying (`parking`), falling asleep and waking (`waking`), holding a
//! goroutine still (`holding`), requests to yield (`requests`), waits that a timer or a peer ends
//! (`limits`), the end of a run (`ending`).
//!
//! The models run the crate's own files of `src/runtime/sync`
//! with loom's primitives in place of the real ones; what stands around them in the crate is
//! repeated step by step in `callers`, which must have the same order of steps.
//!
//! Each law has mutants: one operation of the source is weakened (`primitive`), or a step is made in
//! the wrong order, and the model must find that, and say the right thing about it. A test sees that
//! no operation of the sources has an order without a mutant, or else a reason.
//!
//! What is bounded: one to three preemptions in an execution where a model does not say `None`, at
//! most four threads, few goroutines, four slots or two. Indices of queues do not overflow, exchanges
//! do not fail for no reason, and sleeps do not end so. Both fences are full ones, as without
//! membarrier(2); the one model where that hides something leaves the light one out.

mod callers;
#[path = "../../../src/runtime/sync/claim.rs"]
mod claim;
mod ending;
mod explore;
mod holding;
#[path = "../../../src/runtime/sync/idle.rs"]
mod idle;
#[path = "../../../src/runtime/sync/inbox.rs"]
mod inbox;
#[path = "../../../src/runtime/sync/latch.rs"]
mod latch;
mod limits;
mod parking;
#[path = "../../../src/runtime/sync/preempt_request.rs"]
mod preempt_request;
mod primitive;
mod queues;
mod requests;
#[path = "../../../src/runtime/sync/runq.rs"]
mod runq;
#[path = "../../../src/runtime/sync/suspend.rs"]
mod suspend;
#[path = "../../../src/runtime/sync/sysmon_sleep.rs"]
mod sysmon_sleep;
mod waking;

use primitive::{How, Weak, operations};

#[test]
fn no_order_is_without_a_mutant_or_a_reason() {
    let mutants = [
        queues::RUN_QUEUE_MUTANTS,
        queues::INBOX_MUTANTS,
        parking::MUTANTS,
        waking::SLEEP_MUTANTS,
        waking::LOOK_MUTANTS,
        holding::MUTANTS,
        requests::MUTANTS,
        ending::MUTANTS,
        limits::MUTANTS,
    ];
    let unseen = [
        queues::RUN_QUEUE_UNSEEN,
        waking::UNSEEN,
        holding::UNSEEN,
        requests::UNSEEN,
        limits::UNSEEN,
    ];
    let mutants = mutants.into_iter().flatten().map(|mutant| mutant.weak);
    let weakened: Vec<Weak> =
        mutants.chain(unseen.into_iter().flatten().map(|unseen| unseen.weak)).collect();
    let mut ordered = 0;
    let mut missing = Vec::new();
    for file in [
        "runq.rs",
        "inbox.rs",
        "idle.rs",
        "suspend.rs",
        "preempt_request.rs",
        "sysmon_sleep.rs",
        "latch.rs",
        "claim.rs",
    ] {
        for operation in operations(file) {
            let orders = ["Acquire", "Release", "AcqRel", "SeqCst"];
            let is_fence = operation.text.ends_with("fence");
            let is_ordered =
                is_fence || orders.iter().any(|order| operation.arguments.contains(order));
            if !is_ordered {
                continue;
            }
            ordered += 1;
            let is_known = weakened.iter().any(|weak| {
                weak.file == file
                    && weak.function == operation.function
                    && weak.operation == operation.text
                    && weak.how == if is_fence { How::Missing } else { How::Relaxed }
            });
            if !is_known {
                missing.push(format!("{file}: {} in {}", operation.text, operation.function));
            }
        }
    }
    assert!(ordered >= 40, "only {ordered} operations with an order: the search is broken");
    assert!(missing.is_empty(), "no mutant and no reason:\n{}", missing.join("\n"));
}
