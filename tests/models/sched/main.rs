//! Models under loom of what threads of the scheduler do to one another: run queues and inboxes
//! (`queues`), parking and readying (`parking`), falling asleep and waking (`waking`), suspending a
//! goroutine (`suspending`), requests to yield and sysmon's sleep (`requests`), waits that a timer
//! or a peer ends (`limits`), mutexes and reader-writer locks (`locking`), the end of a run
//! (`ending`).
//!
//! The models run the crate's own files of `src/runtime/sync`, with loom's primitives in place of
//! the real ones. The steps of a protocol are functions there, which `src/runtime/sched` calls,
//! too. `gmp` has a model G, M and runtime instance: data, and the traits by which those functions
//! lead them.
//!
//! Each property has mutants: one operation of the source is weakened (`primitive`), or a step is
//! made in the wrong order, and the model must find that, and say the right thing about it. A test
//! checks that no operation of the sources has an order without a mutant, or else a reason.
//!
//! What the models do not run of the crate, and why:
//!
//! * The switch stubs (`jit/stubs/switch`, `arch`), which save and resume a context: they are
//!   assembly. `G::save_context` and `G::resume_context` do their two accesses of the saved pc.
//! * `find.rs`: it chooses by clocks, counters and a lock, and a model without those is another
//!   one. `Search::find` checks the model's queues in the same order. Its protocol is `runq` and
//!   `inbox`, which are the crate's.
//! * `Search::spin` checks once, where the crate checks for some microseconds. loom has no clock.
//! * The scheduler between two goroutines (`deschedule0`, `schedule`) is a call of
//!   `G::begin_running` by the thread itself: loom's threads have one stack each.
//! * `ready`'s choice of a queue: it reads fields that the goroutine's owner has written. The
//!   models call what it chooses, `publish` or `push_remote`.
//! * `G::join`, on which the end of a goroutine meets its joiner: `parking` has an `Event` of its
//!   own. Its exchanges are inside of `task/join.rs`, between reads of results of any type.
//! * `check_deadlock`: it reads the state of all Ms, and counts the threads of the process.
//! * The lock of a channel (`limits`), of the queue of a lock (`locking`), and that of the timers.
//! * The wait of `preempt_request::request` for the lock of its M's thread, which orders
//!   preempters.
//!
//! What is bounded: one to three preemptions in an execution where a model does not say `None`, at
//! most four threads, few goroutines, four slots or two. Indices of queues do not overflow,
//! exchanges do not fail for no reason, and sleeps do not end for no reason. Both fences are full
//! ones, as without membarrier(2); the one model in which that hides something leaves the light one
//! out.

#[path = "../../../src/runtime/sync/claim.rs"]
mod claim;
mod ending;
mod explore;
mod gmp;
#[path = "../../../src/runtime/sync/idle.rs"]
mod idle;
#[path = "../../../src/runtime/sync/inbox.rs"]
mod inbox;
#[path = "../../../src/runtime/sync/latch.rs"]
mod latch;
mod limits;
mod locking;
#[path = "../../../src/runtime/sync/mutex_word.rs"]
mod mutex_word;
#[path = "../../../src/runtime/sync/park.rs"]
mod park;
mod parking;
#[path = "../../../src/runtime/sync/preempt_request.rs"]
mod preempt_request;
mod primitive;
mod queues;
mod requests;
#[path = "../../../src/runtime/sync/runq.rs"]
mod runq;
#[path = "../../../src/runtime/sync/rwlock_word.rs"]
mod rwlock_word;
#[path = "../../../src/runtime/sync/status.rs"]
mod status;
#[path = "../../../src/runtime/sync/suspend.rs"]
mod suspend;
mod suspending;
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
        waking::SPINNING_MUTANTS,
        suspending::MUTANTS,
        requests::MUTANTS,
        ending::MUTANTS,
        limits::MUTANTS,
        locking::MUTANTS,
    ];
    let unseen = [
        queues::RUN_QUEUE_UNSEEN,
        waking::UNSEEN,
        suspending::UNSEEN,
        requests::UNSEEN,
        limits::UNSEEN,
    ];
    let mutants = mutants.into_iter().flatten().map(|mutant| mutant.weak);
    let weakened: Vec<Weak> =
        mutants.chain(unseen.into_iter().flatten().map(|unseen| unseen.weak)).collect();
    let mut ordered = 0;
    let mut missing = Vec::new();
    for file in protocols() {
        for operation in operations(&file) {
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
    println!("{ordered} operations with an order");
    assert!(ordered >= 50, "only {ordered} operations with an order: the search is broken");
    assert!(missing.is_empty(), "no mutant and no reason:\n{}", missing.join("\n"));
}

/// The files of `sync` that have protocols: all that are there.
fn protocols() -> Vec<String> {
    let room = concat!(env!("CARGO_MANIFEST_DIR"), "/../../src/runtime/sync");
    let files = std::fs::read_dir(room).expect("the room is there");
    let names = files.map(|file| file.expect("it can be read").file_name());
    let names = names.map(|name| name.into_string().expect("names are text"));
    let others = ["mod.rs", "primitive.rs", "cache_padded.rs"];
    names.filter(|name| !others.contains(&&**name)).collect()
}
