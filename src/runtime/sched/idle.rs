//! What an M does while it sleeps: it decommits memory, and the last one to sleep checks for a
//! deadlock.
//!
//! This file must not decide *whether* an M sleeps. Why an M does not sleep over work, and why not
//! all of them wake for it: `sync/idle.rs`.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::runtime::gmp::m::M;
use crate::runtime::gmp::p::bump;
use crate::runtime::gmp::pools;
use crate::runtime::gmp::sched::Sched;
use crate::runtime::os::threads;
use crate::runtime::sched::ready::work_exists;

/// How long an M has slept when it decommits memory and, as the last one, checks for a deadlock.
const IDLE_AFTER: Duration = Duration::from_millis(10);

/// How often it checks for a deadlock afterwards.
const DEADLOCK_EVERY: Duration = Duration::from_secs(1);

/// Sleeps until another thread or a timer wakes `m`, which has announced that it sleeps. `sleeping`
/// Ms sleep. Returns whether `m` is counted as spinning.
pub(crate) fn sleep(m: &M, sched: &Sched, sleeping: usize) -> bool {
    bump(&m.p.counts.sleeps, 1);
    // The last M to sleep checks for a deadlock: soon, and then from time to time, since a foreign
    // thread that could ready a goroutine may end. An M with a timer need not check.
    let is_last = sleeping == sched.ms.len();
    let is_suspect = || is_last && !m.p.timers.any();
    let mut limit = (is_suspect() || pools::has_surplus(&m.p.pools)).then_some(IDLE_AFTER);
    loop {
        if let Some(is_spinning) = m.park(limit) {
            break is_spinning;
        }
        pools::decommit_idle(&m.p.pools, || m.is_parked());
        if is_suspect() {
            check_deadlock(sched);
        }
        limit = is_suspect().then_some(DEADLOCK_EVERY);
    }
}

/// Ends the process if no goroutine can ever run again. Called by the M that went to sleep last.
/// With no timer set, and no foreign thread in the process, nothing can ready a goroutine any more.
fn check_deadlock(sched: &Sched) {
    let is_quiet = || {
        let asleep = |m: &&M| m.is_parked() && !m.has_remote() && m.p.timers.next().is_none();
        sched.all_idle()
            && sched.ms.iter().all(asleep)
            && !work_exists(sched)
            && !sched.stopping.load(Ordering::SeqCst)
    };
    if is_dead(is_quiet, || sched.idle.wakes(), || threads::count() == sched.own_threads()) {
        (sched.on_deadlock)();
    }
}

/// Whether no M can ever run again: nothing wakes one from inside of the run (`is_quiet`) nor from
/// outside (`is_alone`).
///
/// The Ms are checked one after the other, and each check is of another moment. They add up to one
/// state only if no M has woken meanwhile, which the count of wakes tells. An M counts its wake
/// before it drains its inbox, so that a goroutine which has just left an inbox is not missed.
///
/// A foreign thread may have readied a goroutine just before it ended. So the second check comes
/// after the threads are counted.
fn is_dead(
    is_quiet: impl Fn() -> bool,
    wakes: impl Fn() -> usize,
    is_alone: impl FnOnce() -> bool,
) -> bool {
    let before = wakes();
    is_quiet() && is_alone() && is_quiet() && wakes() == before
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// What happens while the check runs, step by step: a goroutine is in an inbox after `readied`
    /// steps and in no queue any more after `drained`; its M counts its wake after `woken`; there
    /// is a foreign thread until `ended`.
    struct Events {
        step: Cell<u32>,
        readied: u32,
        woken: u32,
        drained: u32,
        ended: u32,
    }

    impl Events {
        fn step(&self) -> u32 {
            self.step.replace(self.step.get() + 1)
        }

        fn is_dead(&self) -> bool {
            let is_quiet = || {
                let step = self.step();
                !(self.readied..self.drained).contains(&step)
            };
            let wakes = || usize::from(self.step() >= self.woken);
            is_dead(is_quiet, wakes, || self.step() >= self.ended)
        }
    }

    #[test]
    fn a_run_is_dead_only_if_both_checks_find_it_so() {
        const NEVER: u32 = u32::MAX;
        let check = |readied, woken, drained, ended| {
            Events { step: Cell::new(0), readied, woken, drained, ended }.is_dead()
        };
        assert!(check(NEVER, NEVER, NEVER, 0), "nothing can happen");
        assert!(!check(0, NEVER, NEVER, 0), "a goroutine is in an inbox");
        assert!(!check(NEVER, NEVER, NEVER, NEVER), "a foreign thread may ready one");
        // The thread readies a goroutine after the first check, and ends before it is counted. The
        // M has not woken yet.
        assert!(!check(2, NEVER, NEVER, 2), "the second check finds the goroutine");
        // The M wakes and drains its inbox between the two checks.
        assert!(!check(2, 2, 3, 2), "the count of wakes tells");
        // It was already woken, and drains between the check of its own inbox and the last count.
        assert!(!check(1, 2, 1, 0), "the count of wakes tells");
    }
}
