//! The data of the scheduler: goroutines (G), threads that run them (M), the right to run with a queue
//! of work (P), and the runtime instance that they belong to. The three refer to each other, so the
//! import cycle between them stays inside of this room. Methods touch their own fields only; policy
//! is in `sched/`.

pub(crate) mod current;
pub(crate) mod g;
pub(crate) mod m;
pub(crate) mod name;
pub(crate) mod p;
pub(crate) mod parker;
pub(crate) mod pools;
pub(crate) mod preempt_state;
pub(crate) mod queues;
pub(crate) mod sched;
pub(crate) mod status;
pub(crate) mod stub_env;
pub(crate) mod timers;
pub(crate) use g::join_state;
