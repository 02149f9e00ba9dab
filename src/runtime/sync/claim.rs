//! The right to end a wait, for which peers and a timer compete: exactly one gets it.
//!
//! A goroutine that waits for several events at once (the cases of a select, a channel and a timer)
//! gives all of them the same claim. A peer that can end the wait first claims it, by one exchange.
//! The peer that wins passes its value and readies the goroutine; all others leave it alone.
//!
//! A timer is set before its goroutine has parked, because the lock of the channel, under which the
//! goroutine parks, is a spin lock that must not be held while the timers are locked. So a timer
//! may expire while the goroutine still runs, and must not ready it then. Hence the state
//! [`ARMING`]: a timer that finds it only leaves [`Claim::TIMED_OUT`]. In time order:
//!
//! 1. The goroutine makes the claim ([`Claim::arming`]), sets its timer, and locks the channel.
//! 2. It queues its waiter, and becomes *waiting*. No peer sees the waiter while the lock is held.
//! 3. [`Claim::park`] opens the claim, and then releases the lock. If the timer came before, the
//!    goroutine readies itself: no peer does, since the claim is taken.
//! 4. [`Claim::claim`] of a peer and [`Claim::time_out`] of the timer compete until one wins.
//!
//! Between the opening and the release of the lock the timer may win and ready the goroutine, which
//! may then run on another thread. It locks the channel to remove its waiter, so it leaves its
//! frame only after the release.

use super::primitive::{AtomicUsize, Ordering};

/// Unclaimed, and the owner can be readied.
const OPEN: usize = usize::MAX;
/// A timer is set, and the owner has not parked yet.
const ARMING: usize = usize::MAX - 1;

/// The right to end one wait.
pub(crate) struct Claim(AtomicUsize);

/// What [`Claim::time_out`] came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TimedOut {
    /// The timer has the claim and must ready the owner.
    MustReady,
    /// The timer has the claim. The owner has not parked: it will find the claim taken, and may
    /// leave its frame at any moment.
    TooEarly,
    /// A peer has the claim. The owner may leave its frame as soon as its timer is withdrawn.
    Lost,
}

impl Claim {
    /// The outcome of a wait that its timer ended.
    pub(crate) const TIMED_OUT: usize = usize::MAX - 2;

    /// For a wait without a timer: open from the start, since peers find it only in a queue that is
    /// locked until the owner can be readied.
    #[inline(always)]
    pub(crate) fn open() -> Self {
        Self(AtomicUsize::new(OPEN))
    }

    /// For a wait whose timer is set before it parks.
    pub(crate) fn arming() -> Self {
        Self(AtomicUsize::new(ARMING))
    }

    /// Opens the claim, and makes the wait visible to peers by `unlock`. Called when the owner can
    /// be readied, and is waiting. `ready_owner` is called if the timer came before.
    ///
    /// Nothing of the owner's frame is touched after `unlock`, but where the timer came before: the
    /// owner may run elsewhere.
    pub(crate) fn park(&self, unlock: impl FnOnce(), ready_owner: impl FnOnce()) {
        let is_open = self.open_armed();
        unlock();
        if !is_open {
            ready_owner();
        }
    }

    /// Opens the claim. Returns false if the timer came before: then the owner must ready itself.
    ///
    /// Release: the timer that claims it finds the owner waiting.
    pub(crate) fn open_armed(&self) -> bool {
        self.0.compare_exchange(ARMING, OPEN, Ordering::Release, Ordering::Relaxed).is_ok()
    }

    /// Claims the wait for one of its cases. A peer that gets the claim must ready the owner.
    #[inline(always)]
    pub(crate) fn claim(&self, case: usize) -> bool {
        self.0.compare_exchange(OPEN, case, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// [`Self::claim`] without a competitor: the wait has one case and no timer.
    #[inline(always)]
    pub(crate) fn claim_alone(&self, case: usize) {
        self.0.store(case, Ordering::Relaxed);
    }

    /// Claims the wait for its timer.
    pub(crate) fn time_out(&self) -> TimedOut {
        let exchange = |from| {
            self.0.compare_exchange(from, Self::TIMED_OUT, Ordering::AcqRel, Ordering::Relaxed)
        };
        // A claim is open once only: after `ARMING` was seen, `OPEN` or a case may follow.
        match exchange(ARMING) {
            Ok(_) => TimedOut::TooEarly,
            Err(_) if exchange(OPEN).is_ok() => TimedOut::MustReady,
            Err(_) => TimedOut::Lost,
        }
    }

    /// The case that was claimed, or [`Self::TIMED_OUT`]. Called by the owner only, after the wait.
    #[inline(always)]
    pub(crate) fn outcome(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }
}
