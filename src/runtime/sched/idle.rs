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
    // The Ms are checked one after the other, and each check is of another moment. They add up to
    // one state only if no M has woken meanwhile, which the count of wakes tells. An M counts its
    // wake before it drains its inbox, so that a goroutine which has just left an inbox is not
    // missed.
    let wakes = sched.idle.wakes();
    let is_quiet = || {
        let asleep = |m: &&M| m.is_parked() && !m.has_remote() && m.p.timers.next().is_none();
        sched.all_idle()
            && sched.ms.iter().all(asleep)
            && !work_exists(sched)
            && !sched.stopping.load(Ordering::SeqCst)
    };
    if !is_quiet() {
        return;
    }
    let threads = threads::count();
    // A foreign thread may have readied a goroutine just before it ended. So the second check comes
    // after the threads are counted.
    if threads == sched.own_threads() && is_quiet() && sched.idle.wakes() == wakes {
        (sched.on_deadlock)();
    }
}
