#![allow(unsafe_code, reason = "parks")]
//! Sleeping, and parking with a limit of time.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::runtime::gmp::current::{getg, getm};
use crate::runtime::gmp::parker::Parker;
use crate::runtime::gmp::status::WaitReason;
use crate::runtime::gmp::timers;
use crate::runtime::gmp::timers::{ParkClaim, TimerKey, Timers};
use crate::runtime::os::futex;
use crate::runtime::sched::park::gopark;
use crate::runtime::sched::ready::goready;
use crate::runtime::sync::TimedOut;

/// Parks the goroutine for at least `duration`. On a foreign thread this is `std::thread::sleep`.
///
/// ```
/// use std::time::{Duration, Instant};
/// use footbridge::runtime;
///
/// runtime::run(|| {
///     let start = Instant::now();
///     runtime::sleep(Duration::from_millis(2));
///     assert!(start.elapsed() >= Duration::from_millis(2));
/// });
/// ```
///
/// # Panics
/// On a goroutine inside of [`systemstack`](crate::runtime::systemstack), which cannot park.
#[track_caller]
pub fn sleep(duration: Duration) {
    let g = getg();
    if g.is_null() {
        return std::thread::sleep(duration);
    }
    let at = timers::after(duration);
    // SAFETY: the timer readies the goroutine once; the thread is an M.
    unsafe { gopark(WaitReason::Sleep, || (*getm()).p.timers.set(at, Parker(g))) };
}

/// A limit of time for one park, set before it. Dropping the limit withdraws its timer.
pub(crate) struct Limit<'a> {
    wait: &'a ParkClaim,
    clock: Clock,
}

enum Clock {
    /// Of a goroutine: a timer of the P that it was on.
    Timer(&'static Timers, TimerKey),
    /// Of a foreign thread: when it stops waiting by itself, if its clock reaches so far.
    Thread(Option<Instant>),
}

impl<'a> Limit<'a> {
    /// Sets the limit: from now on the timer may claim the wait.
    ///
    /// # Safety
    /// 1. The parker of `wait` is the caller's, and its claim was made by `Claim::arming`.
    /// 2. The limit is dropped, not forgotten.
    pub(crate) unsafe fn set(wait: &'a ParkClaim, timeout: Duration) -> Self {
        if getg().is_null() {
            return Self { wait, clock: Clock::Thread(Instant::now().checked_add(timeout)) };
        }
        let at = timers::after(timeout);
        // SAFETY: a goroutine runs on this thread, so the thread is an M, and an M is never freed.
        let timers: &'static Timers = unsafe { &(*getm()).p.timers };
        // SAFETY: `wait` is borrowed until the limit is dropped, and `drop` withdraws the timer.
        let key = unsafe { timers.set_limit(at, wait) };
        Self { wait, clock: Clock::Timer(timers, key) }
    }

    /// Parks until a peer or the limit has claimed the wait. Called once.
    ///
    /// # Safety
    /// 1. `unlock` makes the wait visible to peers. Each of them claims it before it touches
    ///    anything else of it, and readies the parker if it wins, once.
    /// 2. `unlock` does not park, and does not unwind.
    /// 3. The caller can park, as `may_park` says.
    pub(crate) unsafe fn park(&self, reason: WaitReason, unlock: impl FnOnce()) {
        let (claim, parker) = (&self.wait.claim, self.wait.parker);
        match self.clock {
            // SAFETY: the one that gets the claim readies the goroutine: a peer by contract (1), or
            // the timer if it finds the claim open, or `unlock` below if the timer came before.
            // After `unlock` the goroutine may run elsewhere: then the claim was opened, and
            // nothing of its stack is touched any more.
            Clock::Timer(..) => unsafe {
                gopark(reason, || claim.park(unlock, || goready(parker)));
            },
            // SAFETY: the contract of this function; this thread is no M.
            Clock::Thread(deadline) => unsafe {
                park_thread(self.wait, deadline, reason, unlock);
            },
        }
    }
}

impl Drop for Limit<'_> {
    fn drop(&mut self) {
        if let Clock::Timer(timers, key) = self.clock {
            timers.withdraw(key);
        }
    }
}

/// [`Limit::park`] of a foreign thread. It has no timer: it claims the wait itself when its time is
/// over.
///
/// # Safety
/// As for [`Limit::park`]; the thread is no M.
unsafe fn park_thread(
    wait: &ParkClaim,
    mut deadline: Option<Instant>,
    reason: WaitReason,
    unlock: impl FnOnce(),
) {
    // SAFETY: the parker is this thread's by contract, and names a G, which is never freed.
    let g = unsafe { &*wait.parker.0 };
    g.thread_wake.store(0, Ordering::Relaxed);
    g.set_wait_reason(reason);
    let parked = wait.claim.open_armed();
    debug_assert!(parked, "no timer is set for a thread");
    unlock();
    while g.thread_wake.load(Ordering::Acquire) == 0 {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            if wait.claim.time_out() == TimedOut::MustReady {
                break;
            }
            // A peer has the claim, so that it will wake this thread.
            deadline = None;
            continue;
        }
        futex::wait(&g.thread_wake, 0, left);
    }
    g.set_wait_reason(WaitReason::None);
}
