//! An M that has found nothing to run: it sleeps, decommits memory, and looks for a deadlock.
//!
//! Why an M does not sleep while there is work, and why not every M wakes for it: `sync/idle.rs`.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::runtime::gmp::m::M;
use crate::runtime::gmp::p::bump;
use crate::runtime::gmp::pools;
use crate::runtime::gmp::sched::Sched;
use crate::runtime::os::threads;
use crate::runtime::sched::ready::work_exists;

/// How long an M has slept when it gives memory back and, as the last one, looks for a deadlock.
const IDLE_AFTER: Duration = Duration::from_millis(10);

/// How often a deadlock is looked for then.
const DEADLOCK_EVERY: Duration = Duration::from_secs(1);

/// Returns whether this M is counted as spinning.
pub(crate) fn sleep_until_work(m: &'static M, sched: &'static Sched) -> bool {
    let sleeping = sched.idle.prepare_sleep(&m.remote.parking);
    let stay = m.has_remote()
        || !m.yielded.is_empty()
        || work_exists(sched)
        || sched.stopping.load(Ordering::SeqCst);
    let spinning = if stay {
        sched.idle.stay_awake(&m.remote.parking);
        true
    } else {
        bump(&m.p.counts.sleeps, 1);
        // The last one to sleep looks for a deadlock: soon, and then from time to time, since a
        // foreign thread that could wake a goroutine may end. Whoever has a timer need not look.
        let is_last = sleeping == sched.ms.len();
        let is_suspect = || is_last && !m.p.timers.any();
        let mut limit = (is_suspect() || pools::has_surplus(&m.p.pools)).then_some(IDLE_AFTER);
        loop {
            if let Some(spinning) = m.park(limit) {
                break spinning;
            }
            pools::decommit_idle(&m.p.pools, || m.is_parked());
            if is_suspect() {
                check_deadlock(sched);
            }
            limit = is_suspect().then_some(DEADLOCK_EVERY);
        }
    };
    // Before the mail is taken: see `check_deadlock`.
    sched.idle.leave_sleep();
    sched.sysmon.wake();
    spinning
}

/// Called by the last M that went to sleep. With no timer set and no other thread in the process,
/// nothing can wake a goroutine any more.
fn check_deadlock(sched: &Sched) {
    // The Ms are looked at one after the other. Only if none of them woke meanwhile do the looks
    // add up to one state.
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
    let own_threads = sched.ms.len() + usize::from(sched.has_sysmon.load(Ordering::Relaxed));
    let threads = threads::count();
    // A foreign thread may have readied a goroutine just before it ended: look again.
    if threads == own_threads && is_quiet() && sched.idle.wakes() == wakes {
        (sched.on_deadlock)();
    }
}
