//! The data of the scheduler: goroutines (G), threads that run them (M), the right to run
//! goroutines with its queue of work (P), and the runtime instance that they belong to.
//!
//! A method here touches the fields of its own structure only. It must not choose a goroutine, wake
//! an M for work, or switch stacks: that is policy, and lives in `sched/`.
//!
//! G, M and P refer to each other, so that the files of this room import each other in a circle. It
//! is the only circle of the crate, and does not leave the room. (Rejected: a G that knows its M by
//! number. Every hop would look the M up in a table.)

pub(crate) mod current;
pub(crate) mod g;
pub(crate) mod join_state;
pub(crate) mod m;
pub(crate) mod name;
pub(crate) mod p;
pub(crate) mod panic_words;
pub(crate) mod parker;
pub(crate) mod pools;
pub(crate) mod preempt_state;
pub(crate) mod queues;
pub(crate) mod sched;
pub(crate) mod slab_set;
pub(crate) mod status;
pub(crate) mod stub_env;
pub(crate) mod timers;
