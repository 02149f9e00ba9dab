//! Models under loom of what threads of the scheduler do to each other: run queues and mailboxes
//! (`queues`), parking and readying (`parking`), falling asleep and waking (`waking`), holding a
//! goroutine still (`holding`), requests to give way (`requests`), the end of a run (`ending`).
//!
//! The models run the crate's own `runq.rs`, `mailbox.rs`, `idle.rs`, `freeze.rs`, `handshake.rs` and
//! `latch.rs`,
//! with loom's primitives in place of the real ones; what stands around them in the crate is
//! repeated step by step in `callers`, which must have the same order of steps.
//!
//! Each law has twins: one operation of the source is weakened (`primitive`), or a step is made in
//! the wrong order, and the model must find that, and say the right thing about it. A test sees that
//! no operation of the sources has an order without a twin, or else a reason.
//!
//! What is bounded: one to three preemptions in an execution where a model does not say `None`, at
//! most four threads, few goroutines, four slots or two. Indices of queues do not overflow, exchanges
//! do not fail for no reason, and sleeps do not end so. Both fences are full ones, as without
//! membarrier(2); the one model where that hides something leaves the light one out.

#[path = "sched_model/callers.rs"]
mod callers;
#[path = "sched_model/ending.rs"]
mod ending;
#[path = "sched_model/explore.rs"]
mod explore;
#[path = "../src/runtime/freeze.rs"]
mod freeze;
#[path = "../src/runtime/handshake.rs"]
mod handshake;
#[path = "sched_model/holding.rs"]
mod holding;
#[path = "../src/runtime/idle.rs"]
mod idle;
#[path = "../src/runtime/latch.rs"]
mod latch;
#[path = "../src/runtime/mailbox.rs"]
mod mailbox;
#[path = "sched_model/parking.rs"]
mod parking;
#[path = "sched_model/primitive.rs"]
mod primitive;
#[path = "sched_model/queues.rs"]
mod queues;
#[path = "sched_model/requests.rs"]
mod requests;
#[path = "../src/runtime/runq.rs"]
mod runq;
#[path = "sched_model/waking.rs"]
mod waking;

use primitive::{How, Weak, operations};

#[test]
fn no_order_is_without_a_twin_or_a_reason() {
    let twins = [
        queues::RUN_QUEUE_TWINS,
        queues::MAILBOX_TWINS,
        parking::TWINS,
        waking::SLEEP_TWINS,
        waking::LOOK_TWINS,
        holding::TWINS,
        requests::TWINS,
        ending::TWINS,
    ];
    let unseen = [queues::RUN_QUEUE_UNSEEN, waking::UNSEEN, holding::UNSEEN, requests::UNSEEN];
    let twins = twins.into_iter().flatten().map(|twin| twin.weak);
    let weakened: Vec<Weak> =
        twins.chain(unseen.into_iter().flatten().map(|unseen| unseen.weak)).collect();
    let mut ordered = 0;
    let mut missing = Vec::new();
    for file in ["runq.rs", "mailbox.rs", "idle.rs", "freeze.rs", "handshake.rs", "latch.rs"] {
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
    assert!(missing.is_empty(), "no twin and no reason:\n{}", missing.join("\n"));
}
