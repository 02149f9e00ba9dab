//! Which signal preempts, and what is done when the program takes it for itself.
//!
//! **The signal is SIGURG**, as in Go: it is ignored by default. So one that comes late harms
//! nothing, not even in the next program of a thread that calls execve(2), which keeps signals that
//! are on their way. And a debugger does not stop at it.
//!
//! **A program that uses SIGURG keeps it.** Then a real-time signal that is free preempts:
//!
//! * SIGURG is blocked on the thread that starts a run. That is what sigwait(3) and signalfd(2)
//!   need on all threads. A thread of the run that unblocked it would be the one that the kernel
//!   delivers to, and the program would wait for ever.
//! * SIGURG has a handler when a run starts. It keeps its mask and all of its flags: nothing is
//!   between it and the kernel.
//! * SIGURG gets another handler during a run, which does not call the crate's. Signals are not
//!   answered then. [`resend`] finds the cause, and changes the signal of the thread.
//!
//! Rejected: to put the crate's handler in front of the newcomer. One that calls the crate's only
//! sometimes would call, and be called, without end. One that is removed restores the crate's
//! handler, which would then call into a library that is unloaded. Rejected: to send a SIGURG that
//! is the program's to the process again. The kernel would deliver it to a thread that has it
//! unblocked: to another thread of the run. Rejected: a real-time signal in all programs. Without
//! a handler it ends the process: see execve above.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

use crate::runtime::arch::save_area::{PREEMPTS_JIT_CODE, saved_state};
use crate::runtime::gmp::m::M;
use crate::runtime::gmp::preempt_state::{PreemptState, Thread, count};
use crate::runtime::os::signals::{self, Action, Number, URGENT};
use crate::runtime::os::threads::ThreadStatus;
use crate::runtime::sched::async_preempt::on_signal;
use crate::runtime::sched::preempt;
use crate::runtime::sync::preempt_request;

/// The signal that preempts in the newest run, or on the thread that has changed it last. 0: there
/// was no such run.
static NEWEST: AtomicI32 = AtomicI32::new(0);

/// Whether [`NEWEST`] was chosen since SIGURG is the program's.
static IS_SUBSTITUTE: AtomicBool = AtomicBool::new(false);

/// The signals whose handler the program has replaced: a bit each.
static LOST: AtomicU64 = AtomicU64::new(0);

/// The signal that preempts in a run that the calling thread starts, where the program names none.
fn choose() -> Number {
    let is_usable = match signals::action_of(URGENT) {
        Action::Ours => true,
        Action::None => !is_lost(URGENT),
        Action::Other => false,
    };
    if is_usable && !signals::is_blocked(URGENT) {
        return URGENT;
    }
    // A program that blocks all signals leaves no better choice than one of those.
    let free = free_signal(signals::is_blocked).or_else(|| free_signal(|_| false));
    free.unwrap_or(URGENT)
}

/// A real-time signal that nothing else uses. One that has the crate's handler already comes first.
fn free_signal(is_blocked: impl Fn(Number) -> bool) -> Option<Number> {
    let with = |action| {
        signals::real_time_signals().find(|&signal| {
            signals::action_of(signal) == action && !is_lost(signal) && !is_blocked(signal)
        })
    };
    with(Action::Ours).or_else(|| with(Action::None))
}

fn is_lost(signal: Number) -> bool {
    LOST.load(Ordering::Relaxed) >> (signal - 1) & 1 != 0
}

/// Installs the handler of the signal that preempts in a run which the calling thread starts, and
/// returns the signal. `wanted`: the one that the program names.
pub(crate) fn install(wanted: Option<Number>) -> Number {
    let signal = wanted.unwrap_or_else(choose);
    install_handler(signal);
    let is_substitute = wanted.is_none() && signal != URGENT;
    IS_SUBSTITUTE.store(is_substitute, Ordering::Relaxed);
    signal
}

fn install_handler(signal: Number) {
    signals::install(&[(signal, on_signal)]);
    NEWEST.store(signal, Ordering::Relaxed);
}

/// Finds out why the signal of `m` was not answered for some time, and sends another one if none is
/// on its way.
pub(crate) fn resend(m: &M) {
    let PreemptState { thread, pending, counters, .. } = &m.preempt;
    let mut thread = thread.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(Thread { tid, signal: Some(signal), .. }) = &mut *thread else {
        return;
    };
    let status = ThreadStatus::of(*tid);
    if status.is_some_and(|status| status.has_pending(*signal)) {
        return; // The thread blocks it, or has not had a processor.
    }
    if signals::action_of(*signal) != Action::Ours {
        LOST.fetch_or(1 << (*signal - 1), Ordering::Relaxed);
        let is_blocked = |signal| status.is_some_and(|status| status.blocks(signal));
        if let Some(free) = free_signal(is_blocked) {
            count(&counters.lost_handlers);
            install_handler(free);
            *signal = free;
        }
    }
    preempt_request::resend(pending, || {
        count(&counters.resent);
        preempt::send(counters, *tid, *signal)
    });
}

/// The signal that preempts and what is saved then, in one sentence for `environment()`.
pub(crate) fn describe() -> String {
    let state = saved_state();
    if !PREEMPTS_JIT_CODE {
        return state;
    }
    let (signal, is_substitute) = match NEWEST.load(Ordering::Relaxed) {
        0 => (choose(), true),
        newest => (newest, IS_SUBSTITUTE.load(Ordering::Relaxed)),
    };
    let signal = match signal {
        URGENT => "SIGURG".into(),
        other if is_substitute => format!("signal {other}, since the program uses SIGURG"),
        other => format!("signal {other}"),
    };
    let lost: Vec<_> = (1..=64).filter(|&n| is_lost(n)).map(|n| n.to_string()).collect();
    let lost = match lost.is_empty() {
        true => String::new(),
        false => format!(
            " (the program has replaced the crate's handler of signals {}: install handlers before \
             the first run, or name another signal in Config::preempt_signal)",
            lost.join(", ")
        ),
    };
    format!("{signal}{lost}; {state}")
}
