//! Requests to preempt: between preempters, the M that begins a tick, and its signal handler.
//!
//! **A request and a tick.** A request is [`REQUESTED`] in two stack limits: the goroutine's, which
//! JIT code polls, and the thread's, which Rust code polls.
//!
//! 1. The M begins a tick ([`begin_tick`]): it sets both limits anew, and then publishes which
//!    goroutine it runs.
//! 2. A preempter reads which goroutine the M runs ([`request`]), and stores the request in both
//!    limits.
//!
//! So a request that finds the goroutine current comes after both stores of the M, and stands.
//! (With the goroutine published first, a request in between would be overwritten in the thread's
//! limit, and `checkpoint` would not see it.) A request that comes too late is for a goroutine that
//! runs no more: it is seen once, in the thread's next tick or in the goroutine's, and is over
//! then.
//!
//! **A request and its signal.**
//!
//! 1. The preempter stores the request, and sends a signal unless one is on its way (`pending`).
//! 2. The handler acknowledges first, and inspects the limits then ([`handle`]).
//!
//! So a request for which no signal is sent is seen by the handler of the signal that is on its
//! way: the handler has not acknowledged when the request finds `pending` set. With the two steps
//! of the handler in the other order, a request between them would be lost.
//!
//! **A signal that is lost.** Other code may eat a signal: it waits for it (sigwait(3)), or has
//! replaced the handler. Then `pending` stays set, and requests are [`Signalled::Unanswered`].
//! After some of these the preempter sends another signal ([`resend`]). `pending` stays set
//! meanwhile: it says that a request waits for an answer, so that other requests still send no
//! signal of their own. A signal that was late, and not lost, acknowledges for both. The second one
//! finds nothing to acknowledge, and does nothing.

use super::primitive::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

/// A stack limit that every rsp is below.
pub(crate) const REQUESTED: usize = usize::MAX;

/// The M begins a tick: what was requested of an earlier one is over. `set_thread` makes the
/// goroutine the thread's, and sets the thread's stack limit.
///
/// `current` is stored last: the head of the file says why.
#[inline(always)]
pub(crate) fn begin_tick<G>(
    current: &AtomicPtr<G>,
    g: *mut G,
    stack_limit: &AtomicUsize,
    limit: usize,
    set_thread: impl FnOnce(),
) {
    stack_limit.store(limit, Ordering::Relaxed);
    set_thread();
    current.store(g, Ordering::Release);
}

/// What became of the signal of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signalled {
    /// None was wanted.
    No,
    /// It is on its way.
    Sent,
    /// An earlier one has not been answered.
    Unanswered,
    /// It could not be sent.
    Refused,
}

/// Requests that the goroutine which an M runs yields. `None`: the request was not made.
///
/// `limits_of` gets the current goroutine, or null. It returns the stack limits of the goroutine
/// and the thread, or `None` if the request is not meant for this goroutine. `send` sends a signal,
/// and returns whether it could; `None`: no signal is wanted.
pub(crate) fn request<'a, G>(
    current: &AtomicPtr<G>,
    limits_of: impl FnOnce(*mut G) -> Option<[&'a AtomicUsize; 2]>,
    pending: &AtomicBool,
    send: Option<impl FnOnce() -> bool>,
) -> Option<Signalled> {
    let limits = limits_of(current.load(Ordering::Acquire))?;
    for limit in limits {
        limit.store(REQUESTED, Ordering::Relaxed);
    }
    let Some(send) = send else {
        return Some(Signalled::No);
    };
    if pending.swap(true, Ordering::AcqRel) {
        return Some(Signalled::Unanswered);
    }
    if send() {
        return Some(Signalled::Sent);
    }
    acknowledge(pending);
    Some(Signalled::Refused)
}

/// Sends another signal for requests whose signal seems to be lost. Returns whether it was sent:
/// not if they were answered meanwhile.
pub(crate) fn resend(pending: &AtomicBool, send: impl FnOnce() -> bool) -> bool {
    pending.load(Ordering::Relaxed) && send()
}

/// The handler of a signal: acknowledges it, and inspects the interrupted thread. Every request
/// from now on sends a signal of its own. `None`: no signal was expected.
pub(crate) fn handle<R>(pending: &AtomicBool, inspect: impl FnOnce() -> R) -> Option<R> {
    acknowledge(pending).then(inspect)
}

/// Takes back that a signal is on its way. Returns whether one was.
pub(crate) fn acknowledge(pending: &AtomicBool) -> bool {
    pending.swap(false, Ordering::AcqRel)
}

/// Whether a stack limit has a request.
pub(crate) fn is_requested(stack_limit: &AtomicUsize) -> bool {
    stack_limit.load(Ordering::Relaxed) == REQUESTED
}
